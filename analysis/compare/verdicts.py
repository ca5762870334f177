"""The ratio of each configuration to the reference's, how sure it is, and the verdict.

The unit is the launch: two launches of one engine differ, and a longer trial does not show by how much. Where both
sides sent the same prompts in a replicate the replicates are paired, else launches are compared by Welch's (1947) test,
since the sides may be unequally steady. By Sidak's inequality (1967) the intervals of one quantity hold for all
configurations at once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy import special

from analysis.compare.matching import Match, match
from analysis.compare.sides import Side
from analysis.headline import HEADLINE
from analysis.intervals import CONFIDENCE, FloatArray
from analysis.quantities import LabelledColumn, compared_column

MARGIN = 0.03  # by default: a smaller difference is none
POWER = 0.9  # with which the smallest change is found
MINUTES = (10, 30, 120)  # of measuring, for which it is given
DURATIONS = ("startup_seconds", "wall_seconds")  # of a trial's row: what a launch takes


class Finding(StrEnum):
    """The result of comparing one configuration by one quantity."""

    FASTER = "better"
    SLOWER = "worse"
    EQUAL = "equal"
    UNDECIDED = "not told apart"
    INCOMPARABLE = "not comparable"


class Ratio(NamedTuple):
    """The second side over the first: logarithms, with the error and its degrees of freedom. NaN where unknown."""

    log: float
    error: float
    freedom: float
    units: int  # pairs of launches, or launches of the side that has fewer
    paired: bool


@dataclass(frozen=True)
class PointComparison:
    """One configuration by one quantity. `ratio` is the second side's figure over the reference's."""

    reference: str
    other: str
    label: str
    quantity: LabelledColumn
    verdict: Finding
    reason: str = ""  # of a verdict that is not one of the figures
    first: float = math.nan
    second: float = math.nan
    ratio: float = math.nan
    low: float = math.nan
    high: float = math.nan
    units: int = 0
    paired: bool = False
    smallest: float = math.nan  # relative change that as many launches find with a probability of 90 %
    in_minutes: tuple[float, ...] = ()  # likewise, in MINUTES of launches of both sides
    differences: tuple[str, ...] = ()


def comparisons(
    sides: Sequence[Side], columns: Sequence[str] | None = None, margin: float = MARGIN
) -> list[PointComparison]:
    """Every configuration of each later side with the first side's, by each column.

    Raises:
        ConfigError: if a column is not a measured quantity of which one direction is better.
    """
    reference, *others = sides
    quantities = [compared_column(column, HEADLINE) for column in columns or HEADLINE]
    compared: list[PointComparison] = []
    for other in others:
        matches = match(reference, other)
        for quantity in quantities:
            compared += _by_column(reference.text, other.text, matches, quantity, margin)
    return compared


def _by_column(
    reference: str, other: str, matches: Sequence[Match], quantity: LabelledColumn, margin: float
) -> list[PointComparison]:
    measured = [each for each in matches if _has(each.first, quantity) or _has(each.second, quantity)]
    usable = [each for each in measured if not each.obstacle_of(quantity.column)]
    level = CONFIDENCE ** (1 / max(1, len(usable)))
    return [_compared(reference, other, each, quantity, margin, level) for each in measured]


def _has(trials: pd.DataFrame, quantity: LabelledColumn) -> bool:
    return quantity.column in trials and bool(trials[quantity.column].notna().any())


def _compared(
    reference: str, other: str, each: Match, quantity: LabelledColumn, margin: float, level: float
) -> PointComparison:
    obstacle = each.obstacle_of(quantity.column)
    figures = _figure(each.first, quantity.column), _figure(each.second, quantity.column)
    if not obstacle and not all(value > 0 for value in figures):
        obstacle = "one side has no figure"
    if obstacle:
        return PointComparison(reference, other, each.label, quantity, Finding.INCOMPARABLE, obstacle, *figures)
    ratio = log_ratio(each.first, each.second, quantity.column)
    half = float(special.stdtrit(ratio.freedom, (1 + level) / 2)) * ratio.error if ratio.freedom > 0 else math.nan
    low, high = ratio.log - half, ratio.log + half
    smallest, cost = smallest_change(ratio, ratio.units, level), minutes_a_launch(each.first, each.second)
    return PointComparison(
        reference,
        other,
        each.label,
        quantity,
        verdict(low, high, margin, quantity.better or "higher"),
        "" if math.isfinite(half) else "one launch does not show how much launches differ",
        *figures,
        ratio=math.exp(ratio.log),
        low=math.exp(low),
        high=math.exp(high),
        units=ratio.units,
        paired=ratio.paired,
        smallest=smallest,
        in_minutes=tuple(smallest_change(ratio, int(minutes / cost), level) for minutes in MINUTES) if cost else (),
        differences=each.differences,
    )


def verdict(low: float, high: float, margin: float, better: Literal["higher", "lower"]) -> Finding:
    """The verdict on an interval of a log ratio. Within the margin it is equal, also if the sides do differ."""
    if math.isnan(low):
        return Finding.UNDECIDED
    if low > math.log1p(-margin) and high < math.log1p(margin):
        return Finding.EQUAL
    if low <= 0 <= high:
        return Finding.UNDECIDED
    return Finding.FASTER if (low > 0) == (better == "higher") else Finding.SLOWER


def log_ratio(first: pd.DataFrame, second: pd.DataFrame, column: str) -> Ratio:
    """The difference of the sides' logarithms, by replicates that are paired, else by launches."""
    logs = [_logs(trials, column) for trials in (first, second)]
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
    """The smallest relative change that so many units find with a probability of POWER; NaN if they cannot tell.

    (t(level) + t(POWER)) standard errors, which fall as the square root of the number of units.
    """
    if units < 2 or not ratio.freedom > 0:
        return math.nan
    freedom = ratio.freedom * (units - 1) / max(1, ratio.units - 1)
    quantiles = special.stdtrit(freedom, (1 + level) / 2) + special.stdtrit(freedom, POWER)
    return math.expm1(float(quantiles) * ratio.error * math.sqrt(ratio.units / units))


def _sent_the_same(first: pd.DataFrame, second: pd.DataFrame) -> bool:
    """True if the sides' common replicates have the same prompts at the same times, each on a launch of its own."""
    for trials in (first, second):
        if trials["replicate"].duplicated().any() or _units(trials).duplicated().any():
            return False
    seeds = [trials.set_index("replicate")["seed"] for trials in (first, second) if "seed" in trials]
    if len(seeds) < 2:
        return False
    common = seeds[0].index.intersection(seeds[1].index)
    return len(common) > 1 and bool((seeds[0][common] == seeds[1][common]).all())


def _units(trials: pd.DataFrame) -> "pd.Series[str]":
    """The launch of each trial; of an engine that was not launched here, its replicate."""
    replicate = trials["replicate"].astype(str)
    return trials["launch"].fillna(replicate) if "launch" in trials else replicate


def _logs(trials: pd.DataFrame, column: str) -> "pd.Series[float]":
    values = trials[column].astype("float64")
    return values.where(values > 0).map(np.log)


def _by_launch(logs: "pd.Series[float]", trials: pd.DataFrame) -> FloatArray:
    return np.asarray(logs.groupby(_units(trials)).mean().dropna(), np.float64)


def _figure(trials: pd.DataFrame, column: str) -> float:
    """The geometric mean over the launches, whose ratio is compared; NaN without a value."""
    launches = _by_launch(_logs(trials, column), trials) if column in trials and len(trials) else np.zeros(0)
    return float(np.exp(launches.mean())) if len(launches) else math.nan


def minutes_a_launch(*sides: pd.DataFrame) -> float:
    """Minutes that one launch of each side takes, the trials of this configuration included; 0 if unknown."""
    total = 0.0
    for trials in sides:
        seconds = sum(
            float(trials[column].astype("float64").fillna(0).mean()) for column in DURATIONS if column in trials
        )
        total += seconds / 60
    return total if total > 0 else 0.0
