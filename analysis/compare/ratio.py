"""The ratio of one side's figure to the other's, its error, and the change that so many launches find.

The unit is the launch: two launches of one engine differ, and a longer trial does not show by how much. Where both
sides sent the same prompts in a replicate the replicates are paired, else launches are compared by Welch's (1947) test,
since the sides may be unequally steady.

The spread that a few launches show may be half of the true one, and four times as many launches would then be needed
to find a change. So the change that is found, and the launches that find it, are averaged over what the true spread may
be: its square is the measured one's times the degrees of freedom over a chi-squared variable of as many (Fisher's
fiducial distribution, 1935). They then hold nine times in ten over all that a few launches may show.
"""

import math
from functools import cache
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import special

from analysis.statistics.intervals import FloatArray

POWER = 0.9  # with which the smallest change is found
MOST_LAUNCHES = 10_000  # that are advised
CHANCES = (np.arange(64) + 0.5) / 64  # of a spread, over which a probability is averaged


class Ratio(NamedTuple):
    """The second side over the first: logarithms, with the error and its degrees of freedom. NaN where unknown."""

    log: float
    error: float
    freedom: float
    units: int  # pairs of launches, or launches of the side that has fewer
    paired: bool
    error_known: bool = False  # from elsewhere: more launches do not add to its freedom


def log_ratio(first: pd.DataFrame, second: pd.DataFrame, column: str) -> Ratio:
    """The difference of the sides' logarithms, by replicates that are paired, else by launches."""
    logs = [logarithms(trials, column) for trials in (first, second)]
    if _sent_the_same(first, second):
        means = [
            series.groupby(trials["replicate"]).mean() for series, trials in zip(logs, (first, second), strict=True)
        ]
        difference = (means[1] - means[0]).dropna().to_numpy(np.float64)
        if len(difference) > 1:
            error = float(difference.std(ddof=1)) / math.sqrt(len(difference))
            return Ratio(float(difference.mean()), error, len(difference) - 1, len(difference), True)
    launches = [_by_launch(series, trials) for series, trials in zip(logs, (first, second), strict=True)]
    return _welch(*launches)


def _welch(first: FloatArray, second: FloatArray) -> Ratio:
    """Welch's test: the sides' own variances, and Satterthwaite's degrees of freedom."""
    sizes = len(first), len(second)
    log = float(second.mean() - first.mean())
    if min(sizes) < 2:
        return Ratio(log, math.nan, 0, min(sizes), False)
    shares = [float(values.var(ddof=1)) / len(values) for values in (first, second)]
    total = sum(shares)
    spread = sum(share**2 / (size - 1) for share, size in zip(shares, sizes, strict=True))
    return Ratio(log, math.sqrt(total), total**2 / spread if spread else min(sizes) - 1, min(sizes), False)


def smallest_change(ratio: Ratio, units: int, level: float) -> float:
    """The smallest relative change that so many units find with a probability of POWER; NaN if they cannot tell."""
    if units < (1 if ratio.error_known else 2) or not ratio.freedom > 0:
        return math.nan
    if ratio.error_known:
        errors = float(special.stdtrit(ratio.freedom, (1 + level) / 2) + special.stdtrit(ratio.freedom, POWER))
    else:
        errors = _errors_needed(ratio.freedom, ratio.freedom * (units - 1) / max(1, ratio.units - 1), level)
    return math.expm1(errors * ratio.error * math.sqrt(ratio.units / units))


@cache
def _errors_needed(known: float, new: float, level: float) -> float:
    """The standard errors, as measured, by which a change must exceed 0 to be found with a probability of POWER.

    `known` are the degrees of freedom of that error, `new` those of the measurement that is to find the change.
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


def half_width(ratio: Ratio, level: float) -> float:
    """Half of the interval of the logarithm at this level; NaN if the launches cannot tell."""
    return float(special.stdtrit(ratio.freedom, (1 + level) / 2)) * ratio.error if ratio.freedom > 0 else math.nan


def launches_for(ratio: Ratio, change: float, level: float) -> int:
    """The fewest units that find this relative change with a probability of POWER; 0 if not known, or over the most."""
    if not smallest_change(ratio, MOST_LAUNCHES, level) <= change:
        return 0
    too_few, enough = 0, MOST_LAUNCHES
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        finds = smallest_change(ratio, middle, level) <= change
        too_few, enough = (too_few, middle) if finds else (middle, enough)
    return enough


def _sent_the_same(first: pd.DataFrame, second: pd.DataFrame) -> bool:
    """True if the sides' common replicates have the same prompts at the same times, each on a launch of its own."""
    for trials in (first, second):
        if trials["replicate"].duplicated().any() or launch_of(trials).duplicated().any():
            return False
    seeds = [trials.set_index("replicate")["seed"] for trials in (first, second) if "seed" in trials]
    if len(seeds) < 2:
        return False
    common = seeds[0].index.intersection(seeds[1].index)
    return len(common) > 1 and bool((seeds[0][common] == seeds[1][common]).all())


def launch_of(trials: pd.DataFrame) -> "pd.Series[str]":
    """The launch of each trial; of an engine that was not launched here, its replicate."""
    replicate = trials["replicate"].astype(str)
    return trials["launch"].fillna(replicate) if "launch" in trials else replicate


def logarithms(trials: pd.DataFrame, column: str) -> "pd.Series[float]":
    """The logarithms of a column; NaN where it is not above 0."""
    values = trials[column].astype("float64")
    return values.where(values > 0).map(np.log)


def _by_launch(logs: "pd.Series[float]", trials: pd.DataFrame) -> FloatArray:
    return np.asarray(logs.groupby(launch_of(trials)).mean().dropna(), np.float64)


def figure_of(trials: pd.DataFrame, column: str) -> float:
    """The geometric mean over the launches, whose ratio is compared; NaN without a value."""
    launches = _by_launch(logarithms(trials, column), trials) if column in trials and len(trials) else np.zeros(0)
    return float(np.exp(launches.mean())) if len(launches) else math.nan
