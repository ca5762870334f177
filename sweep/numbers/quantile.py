"""Quantiles: linear between order statistics (numpy's default, type 7 of Hyndman & Fan 1996), for every figure."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sweep.numbers.quantity import percentile_name


class Quantile(NamedTuple):
    """A quantile with what is behind it. A bound is None if there are too few samples for it."""

    value: float | None
    n: int
    low: float | None
    high: float | None


def quantile(values: Sequence[float] | NDArray[Any], share: float) -> float:
    """The value below which this share of the values lies; NaN without values."""
    return float(np.quantile(values, share)) if len(values) else math.nan


def statistics(values: NDArray[Any], percentiles: Sequence[float], unit: float = 1.0) -> dict[str, float | None]:
    """mean, percentiles and max of the values / unit, NaN left out; None if there are none. Reorders `values`."""
    values = values[~np.isnan(values)] if values.dtype.kind == "f" else values
    names = [*map(percentile_name, percentiles)]
    if not values.size:
        return dict.fromkeys(["mean", *names, "max"])
    mean, largest = float(values.mean(dtype=np.float64)) / unit, float(values.max()) / unit
    shares = np.asarray(percentiles, np.float64) / 100
    quantiles = np.quantile(values, shares, overwrite_input=True) / unit
    return {"mean": mean, **dict(zip(names, map(float, quantiles), strict=True)), "max": largest}


def quantile_with_interval(values: NDArray[Any], q: float, confidence: float = 0.95) -> Quantile:
    """The q-quantile with its number of samples and a confidence interval that assumes no distribution.

    The bounds are the order statistics x(l) and x(u) with P(l ≤ Binomial(n, q) < u) ≥ confidence (David & Nagaraja,
    Order Statistics, 3rd ed., §7.1). NaN values are left out. Samples are taken as independent.
    """
    from scipy.stats import binom  # half a second to import, and only reports need it

    ordered = np.sort(np.asarray(values, np.float64))
    ordered = ordered[~np.isnan(ordered)]
    n = ordered.size
    tail = (1 - confidence) / 2
    lower, upper = (int(binom.ppf(tail, n, q)), int(binom.ppf(1 - tail, n, q)) + 1) if n else (0, 1)
    low = float(ordered[lower - 1]) if lower >= 1 else None
    high = float(ordered[upper - 1]) if upper <= n else None
    return Quantile(quantile(ordered, q) if n else None, n, low, high)
