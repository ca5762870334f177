"""Confidence intervals over replicates. A replicate is one observation: requests of one trial are not independent.

A single replicate has no interval: its ends are NaN.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analysis.intervals import FloatArray, t


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


class LogMoments(NamedTuple):
    """Moments of the logarithms of many samples: mean, variance over n - 1, n. NaN where a value is not positive."""

    mean: FloatArray
    variance: FloatArray
    n: FloatArray

    def select(self, chosen: NDArray[np.int64] | NDArray[np.bool_]) -> "LogMoments":
        """The moments of some of the samples."""
        return LogMoments(*(values[chosen] for values in self))


def log_moments(values: FloatArray, sample: NDArray[np.int64], count: int) -> LogMoments:
    """The moments of `count` samples; `sample` is the index of each value's sample, and NaN values are left out."""
    values, sample = values[np.isfinite(values)], sample[np.isfinite(values)]
    logs = np.log(np.where(values > 0, values, np.nan))
    n = np.bincount(sample, minlength=count).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.bincount(sample, logs, count) / n
        variance = np.bincount(sample, (logs - mean[sample]) ** 2, count) / (n - 1)
    return LogMoments(mean, np.where(n > 1, variance, np.nan), n)


def ratio(above: LogMoments, below: LogMoments) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Ratios of geometric means to the baseline `below`, and the ends of their intervals.

    The intervals are Welch's for the difference of logarithms: t(0.975, ν) · √(s²a/na + s²b/nb) with ν after Welch
    (1947) and Satterthwaite (1946). Logarithms, since twice and half should be equally far from no change.
    """
    error_above, error_below = above.variance / above.n, below.variance / below.n
    error = error_above + error_below
    with np.errstate(invalid="ignore", divide="ignore"):
        freedom = error**2 / (error_above**2 / (above.n - 1) + error_below**2 / (below.n - 1))
        half = np.where(error == 0, 0.0, t(freedom) * np.sqrt(error))
    difference = above.mean - below.mean
    return np.exp(difference), np.exp(difference - half), np.exp(difference + half)
