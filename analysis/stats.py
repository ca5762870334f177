"""Intervals over replicates. A replicate is one observation: requests within a trial share its luck and are not.

No interval is given where there is nothing to base it on (one replicate): its ends are NaN.
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


NOTHING = Estimate(math.nan, math.nan, math.nan, 0)


def half_width(deviation: FloatArray, n: FloatArray) -> FloatArray:
    """Half of Student's t interval of a mean: t(0.975, n - 1) · s / √n, with `deviation` s taken over n - 1."""
    known = np.where(n > 1, n, np.float64("nan"))
    half: FloatArray = _t(known - 1) * deviation / np.sqrt(known)
    return half


def _t(freedom: FloatArray) -> FloatArray:
    """Student's t quantile at 0.975. From scipy.special, since scipy.stats takes as long to import as all else here."""
    quantile: FloatArray = np.asarray(special.stdtrit(freedom, (1 + CONFIDENCE) / 2), np.float64)
    return quantile


class LogMoments(NamedTuple):
    """Of the logarithms of each of many samples: mean, variance over n - 1, n. NaN where a value is not positive."""

    mean: FloatArray
    variance: FloatArray
    n: FloatArray

    def of(self, chosen: NDArray[np.int64] | NDArray[np.bool_]) -> "LogMoments":
        """Those of some samples."""
        return LogMoments(*(values[chosen] for values in self))


def log_moments(values: FloatArray, sample: NDArray[np.int64], count: int) -> LogMoments:
    """The moments of `count` samples, to which `values` belong by position; values that are NaN belong to none."""
    values, sample = values[np.isfinite(values)], sample[np.isfinite(values)]
    logs = np.log(np.where(values > 0, values, np.nan))
    n = np.bincount(sample, minlength=count).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.bincount(sample, logs, count) / n
        variance = np.bincount(sample, (logs - mean[sample]) ** 2, count) / (n - 1)
    return LogMoments(mean, np.where(n > 1, variance, np.nan), n)


def ratio(above: LogMoments, below: LogMoments) -> tuple[FloatArray, FloatArray, FloatArray]:
    """How many times the baseline `below`, and the ends of the intervals: ratios of geometric means.

    With Welch's t interval of the difference of logarithms: t(0.975, ν) · √(s²a/na + s²b/nb) with ν after Welch (1947)
    and Satterthwaite (1946). Logarithms because a ratio is asymmetric: twice and half are equally far from no change.
    """
    of_a, of_b = above.variance / above.n, below.variance / below.n
    error = of_a + of_b
    with np.errstate(invalid="ignore", divide="ignore"):
        freedom = error**2 / (of_a**2 / (above.n - 1) + of_b**2 / (below.n - 1))
        half = np.where(error == 0, 0.0, _t(freedom) * np.sqrt(error))
    difference = above.mean - below.mean
    return np.exp(difference), np.exp(difference - half), np.exp(difference + half)
