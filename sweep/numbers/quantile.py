"""Quantiles: linear between order statistics (numpy's default, type 7 of Hyndman & Fan 1996), for every figure."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sweep.numbers.quantity import percentile_name


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
