"""Confidence intervals over replicates. A replicate is one observation: requests of one trial are not independent.

A single replicate has no interval: its ends are NaN.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

FloatArray = NDArray[np.float64]

CONFIDENCE = 0.95


class Estimate(NamedTuple):
    """A value with the ends of its 95 % confidence interval, and the number of replicates behind it."""

    value: float
    low: float
    high: float
    n: int

    @property
    def relative_half_width(self) -> float:
        """Half the interval over the value: 0.05 reads as ±5 %. NaN without an interval."""
        return (self.high - self.low) / 2 / abs(self.value) if self.value else math.nan


NO_ESTIMATE = Estimate(math.nan, math.nan, math.nan, 0)


def half_width(deviation: FloatArray, n: FloatArray) -> FloatArray:
    """Half of Student's t interval of a mean: t(0.975, n - 1) · s / √n, with `deviation` s taken over n - 1."""
    samples = np.where(n > 1, n, np.float64("nan"))
    half: FloatArray = _t(samples - 1) * deviation / np.sqrt(samples)
    return half


def _t(freedom: FloatArray) -> FloatArray:
    """Student's t quantile at 0.975, from scipy.special: importing scipy.stats takes as long as all the rest."""
    quantile: FloatArray = np.asarray(special.stdtrit(freedom, (1 + CONFIDENCE) / 2), np.float64)
    return quantile
