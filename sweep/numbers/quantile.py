"""Quantiles for all quantities: linear between order statistics (type 7 of Hyndman & Fan 1996).

Between two order statistics that are far apart, e.g. two modes, nothing was measured: there the higher one is the
quantile. (This needs several values: a few values are always far apart.)
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sweep.numbers.quantity import percentile_name

FEWEST_OF_MODES = 10  # values
WIDEST_STEP = 1.2  # ratio of neighbouring order statistics above which nothing is interpolated
ROUNDING = 1e-9  # tolerance of an order statistic's index: 0.99 × 100 may be slightly above 99


def quantile(values: Sequence[float] | NDArray[Any], share: float) -> float:
    """Return the quantile of the values at `share` (0..1); NaN if there are no values."""
    return float(np.quantile(values, share)) if len(values) else math.nan


def statistics(values: NDArray[Any], percentiles: Sequence[float], unit: float = 1.0) -> dict[str, float | None]:
    """Return mean, percentiles and max of the values / unit, ignoring NaN; None if all are NaN. Reorders `values`.

    An infinite value is a failed request (`selection.with_failures`): percentiles include it, and are None where they
    reach it; mean and max cover only finite values.
    """
    values = values[~np.isnan(values)] if values.dtype.kind == "f" else values
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    names = [*map(percentile_name, percentiles)]
    if not finite.size:
        return dict.fromkeys(["mean", *names, "max"])
    mean, largest = float(finite.mean(dtype=np.float64)) / unit, float(finite.max()) / unit
    quantiles = _quantiles(finite, values.size, np.asarray(percentiles, np.float64) / 100)
    each = [None if math.isinf(value) else value / unit for value in quantiles]
    return {"mean": mean, **dict(zip(names, each, strict=True)), "max": largest}


def _quantiles(finite: NDArray[Any], count: int, shares: NDArray[np.float64]) -> list[float]:
    """Return quantiles of `count` values; values that are not in `finite` are +∞. Reorders `finite`."""
    at = shares * (count - 1)  # position between two order statistics: if either is infinite, so is the quantile
    lower = np.floor(at + ROUNDING).astype(np.int64)
    upper = np.ceil(at - ROUNDING).astype(np.int64)
    known, last = upper <= finite.size - 1, finite.size - 1
    places = np.minimum([lower, upper], last)
    finite.partition(np.unique(places))
    low, high = finite[places].astype(np.float64)
    return [float(value) for value in np.where(known, between(low, high, np.maximum(at - lower, 0), count), np.inf)]


def between(low: NDArray[Any], high: NDArray[Any], share: NDArray[Any], count: Any) -> NDArray[np.float64]:
    """Interpolate by `share` between two of `count` order statistics; if they are far apart, return the higher."""
    apart = (high > WIDEST_STEP * low) & (share > ROUNDING) & (np.asarray(count) >= FEWEST_OF_MODES)
    return np.asarray(np.where(apart, high, low + share * (high - low)), np.float64)
