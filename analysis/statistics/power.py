"""Computes the change that a number of launches detects, and the launches needed to detect a change.

The spread among a few launches may be half the true spread, and then a change needs four times as many launches. So the
detectable change and the needed launches are averaged over possible true spreads. The true variance is the measured
variance times the degrees of freedom, divided by a chi-squared variable with as many degrees of freedom (Fisher's
fiducial distribution, 1935). The results then hold nine times in ten, regardless of the spread that a few launches
happen to show.
"""

import math
from bisect import bisect_left
from functools import cache
from typing import NamedTuple

import numpy as np
from scipy import special

POWER = 0.9  # probability with which the smallest change is detected
MOST_LAUNCHES = 10_000  # maximum launches to suggest
CHANCES = (np.arange(64) + 0.5) / 64  # quantiles of the spread over which a probability is averaged


class Error(NamedTuple):
    """The standard error of a ratio's logarithm, with its degrees of freedom; NaN if unknown."""

    error: float
    freedom: float
    launches: int  # launches of the point with fewer launches
    known: bool = False  # whether it was measured separately, so that more launches do not add degrees of freedom

    def half_width(self, level: float) -> float:
        """Return half the interval of the logarithm at this level; NaN if there are too few launches."""
        return float(special.stdtrit(self.freedom, (1 + level) / 2)) * self.error if self.freedom > 0 else math.nan


def smallest_change(error: Error, launches: int, level: float) -> float:
    """Return the smallest relative change that these launches detect with probability POWER, or NaN."""
    if launches < (1 if error.known else 2) or not error.freedom > 0:
        return math.nan
    if error.known:
        errors = float(special.stdtrit(error.freedom, (1 + level) / 2) + special.stdtrit(error.freedom, POWER))
    else:
        errors = errors_needed(error.freedom, error.freedom * (launches - 1) / max(1, error.launches - 1), level)
    return math.expm1(errors * error.error * math.sqrt(error.launches / launches))


@cache
def errors_needed(known: float, new: float, level: float, power: float = POWER) -> float:
    """Return how many measured standard errors a change must have to be detected with this probability. `known` are
    the error's degrees of freedom, `new` the degrees of freedom of the measurement that should detect the change.
    """

    def probability(errors: float) -> float:
        chances = special.ndtr(errors / true_error[:, None] - critical * new_error)
        return float(chances.mean())

    true_error = np.sqrt(known / special.chdtri(known, CHANCES))  # relative to the measured error
    new_error = np.sqrt(special.chdtri(new, CHANCES) / new)  # relative to the true error
    critical = special.stdtrit(new, (1 + level) / 2)
    low, high = 0.0, 1.0
    while probability(high) < power:
        low, high = high, 2 * high
    while high - low > 1e-4 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if probability(middle) < power else (low, middle)
    return high


def launches_for(error: Error, change: float, level: float) -> int:
    """Return the minimum launches that detect a relative change with probability POWER; 0 if unknown or too many."""
    if not smallest_change(error, MOST_LAUNCHES, level) <= change:
        return 0
    launches = range(MOST_LAUNCHES)
    return bisect_left(launches, True, 1, key=lambda number: smallest_change(error, number, level) <= change)
