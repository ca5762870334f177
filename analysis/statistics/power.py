"""The change that so many launches detect, and the launches that detect a change.

The spread that a few launches show may be half of the true one, and a change would then need four times as many
launches. So the detectable change, and the launches that detect it, are averaged over the possible true spreads: the
square is the measured one's times the degrees of freedom over a chi-squared variable of as many (Fisher's fiducial
distribution, 1935). They then hold nine times in ten over everything that a few launches may show.
"""

import math
from functools import cache
from typing import NamedTuple

import numpy as np
from scipy import special

POWER = 0.9  # with which the smallest change is found
MOST_LAUNCHES = 10_000  # that are advised
CHANCES = (np.arange(64) + 0.5) / 64  # of a spread, over which a probability is averaged


class Error(NamedTuple):
    """The standard error of the logarithm of a ratio, with its degrees of freedom; NaN where unknown."""

    error: float
    freedom: float
    launches: int  # of the point that has fewer
    known: bool = False  # from elsewhere: more launches do not add to its freedom

    def half_width(self, level: float) -> float:
        """Half of the interval of the logarithm at this level; NaN if the launches are too few."""
        return float(special.stdtrit(self.freedom, (1 + level) / 2)) * self.error if self.freedom > 0 else math.nan


def smallest_change(error: Error, launches: int, level: float) -> float:
    """The smallest relative change that so many launches detect with a probability of POWER; NaN if they cannot."""
    if launches < (1 if error.known else 2) or not error.freedom > 0:
        return math.nan
    if error.known:
        errors = float(special.stdtrit(error.freedom, (1 + level) / 2) + special.stdtrit(error.freedom, POWER))
    else:
        errors = _errors_needed(error.freedom, error.freedom * (launches - 1) / max(1, error.launches - 1), level)
    return math.expm1(errors * error.error * math.sqrt(error.launches / launches))


@cache
def _errors_needed(known: float, new: float, level: float) -> float:
    """The standard errors, as measured, by which a change must exceed 0 to be detected with a probability of POWER.

    `known` are the degrees of freedom of that error, `new` of the measurement that should detect the change.
    """

    def probability(errors: float) -> float:
        chances = special.ndtr(errors / true_error[:, None] - critical * new_error)
        return float(chances.mean())

    true_error = np.sqrt(known / special.chdtri(known, CHANCES))  # over the measured one
    new_error = np.sqrt(special.chdtri(new, CHANCES) / new)  # over the true one
    critical = special.stdtrit(new, (1 + level) / 2)
    low, high = 0.0, 1.0
    while probability(high) < POWER:
        low, high = high, 2 * high
    while high - low > 1e-4 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if probability(middle) < POWER else (low, middle)
    return high


def launches_for(error: Error, change: float, level: float) -> int:
    """The fewest launches that detect this relative change with a probability of POWER; 0 if unknown, or too many."""
    if not smallest_change(error, MOST_LAUNCHES, level) <= change:
        return 0
    too_few, enough = 0, MOST_LAUNCHES
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        finds = smallest_change(error, middle, level) <= change
        too_few, enough = (too_few, middle) if finds else (middle, enough)
    return enough
