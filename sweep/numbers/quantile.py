"""Quantiles: linear between order statistics (numpy's default, type 7 of Hyndman & Fan 1996), for every figure."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sweep.numbers.quantity import percentile_name

ROUNDING = 1e-9  # tolerance of an order statistic's index: 0.99 × 100 may be slightly above 99


def quantile(values: Sequence[float] | NDArray[Any], share: float) -> float:
    """Return the value below which this share of the values lies; NaN if there are no values."""
    return float(np.quantile(values, share)) if len(values) else math.nan


def statistics(values: NDArray[Any], percentiles: Sequence[float], unit: float = 1.0) -> dict[str, float | None]:
    """Return mean, percentiles and max of the values / unit, ignoring NaN; None if all are NaN. Reorders `values`.

    An infinite value is a failed request (`selection.with_failures`): percentiles count it and are None if they reach
    it; mean and max cover only finite values.
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
    """Return quantiles of `count` values, of which those not in `finite` are +∞. Reorders `finite`."""
    if finite.size == count:
        return [float(value) for value in np.quantile(finite, shares, overwrite_input=True)]
    at = shares * (count - 1)  # position between two order statistics: if either is infinite, so is the quantile
    known = np.ceil(at - ROUNDING) <= finite.size - 1
    among = np.clip(at / max(finite.size - 1, 1), 0, 1)
    values = np.quantile(finite, among, overwrite_input=True)
    return [float(value) for value in np.where(known, values, np.inf)]
