"""Intervals over replicates. A replicate is one observation: requests within a trial share its luck and are not.

No interval is given where there is nothing to base it on (one replicate): its ends are NaN.
"""

import math
from collections.abc import Sequence
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
    n = np.where(n > 1, n, np.nan)
    half: FloatArray = _t(n - 1) * deviation / np.sqrt(n)
    return half


def _t(freedom: FloatArray | float) -> FloatArray:
    """Student's t quantile at 0.975. From scipy.special, since scipy.stats takes as long to import as all else here."""
    quantile: FloatArray = special.stdtrit(freedom, (1 + CONFIDENCE) / 2)
    return quantile


def ratio(values: Sequence[float] | FloatArray, baseline: Sequence[float] | FloatArray) -> Estimate:
    """How many times the baseline: ratio of geometric means, with Welch's t interval of the difference of logarithms.

    Logarithms because a ratio is asymmetric: twice and half are equally far from no change. Both samples must be
    positive, else there is no ratio. `n` is the smaller of the two.
    """
    above, below = _finite(values), _finite(baseline)
    if above.size == 0 or below.size == 0 or min(above.min(), below.min()) <= 0:
        return NOTHING
    above, below = np.log(above), np.log(below)
    difference = float(above.mean() - below.mean())
    n = min(above.size, below.size)
    if n == 1:
        return Estimate(math.exp(difference), math.nan, math.nan, 1)
    half = _welch_half_width(above, below)
    return Estimate(math.exp(difference), math.exp(difference - half), math.exp(difference + half), n)


def _welch_half_width(a: FloatArray, b: FloatArray) -> float:
    """t(0.975, ν) · √(s²a/na + s²b/nb) with ν after Welch (1947) and Satterthwaite (1946)."""
    of_a, of_b = _variance_of_mean(a), _variance_of_mean(b)
    if of_a + of_b == 0:
        return 0.0
    freedom = (of_a + of_b) ** 2 / (of_a**2 / (a.size - 1) + of_b**2 / (b.size - 1))
    return float(_t(freedom)) * math.sqrt(of_a + of_b)


def _variance_of_mean(sample: FloatArray) -> float:
    return float(sample.var(ddof=1)) / sample.size


def _finite(values: Sequence[float] | FloatArray) -> FloatArray:
    sample = np.asarray(values, np.float64)
    return sample[np.isfinite(sample)]
