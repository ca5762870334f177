"""The ratio of each configuration to the reference's, how sure it is, and the verdict.

The error is that of the launches of both sides (ratio.py) or, if it is wider, that of launches of one configuration on
the machine (noise.py). By Sidak's inequality (1967) the intervals of one quantity hold for all configurations at once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import pandas as pd

from analysis.compare.matching import Match, match
from analysis.compare.noise import MachineNoise, took_turns
from analysis.compare.ratio import figure_of, half_width, launches_for, log_ratio, smallest_change
from analysis.compare.sides import Side
from analysis.headline import HEADLINE
from analysis.quantities import LabelledColumn, compared_column
from analysis.statistics.intervals import CONFIDENCE

MARGIN = 0.03  # by default: a smaller difference is none
MINUTES = (10, 30, 120)  # of measuring, for which the smallest change that is found is given
CHANGES = (0.1, 0.2)  # for which the launches that find them are given
DURATIONS = ("startup_seconds", "wall_seconds")  # of a trial's row: what a launch takes


class Finding(StrEnum):
    """The result of comparing one configuration by one quantity."""

    FASTER = "better"
    SLOWER = "worse"
    EQUAL = "equal"
    UNDECIDED = "not told apart"
    INCOMPARABLE = "not comparable"


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
    launches: tuple[int, ...] = ()  # of each side that find CHANGES with a probability of 90 %; 0: not known
    launch_minutes: float = 0.0  # that one launch of each side takes; 0: not known
    noise: str = ""  # the machine's, where it was measured apart
    differences: tuple[str, ...] = ()


def comparisons(
    sides: Sequence[Side],
    columns: Sequence[str] | None = None,
    margin: float = MARGIN,
    noise: MachineNoise | None = None,
) -> list[PointComparison]:
    """Every configuration of each later side with the first side's, by each column.

    With `noise`, an interval is never narrower than launches of one configuration make it on that machine.

    Raises:
        ConfigError: if a column is not a measured quantity of which one direction is better, or the noise is of too few
            launches.
    """
    reference, *others = sides
    percentiles = sorted({percentile for each in sides for percentile in each.run.percentiles})
    quantities = [compared_column(column, HEADLINE, percentiles) for column in columns or HEADLINE]
    compared: list[PointComparison] = []
    for other in others:
        matches = match(reference, other)
        for quantity in quantities:
            compared += _by_column(reference.text, other.text, matches, quantity, margin, noise)
    return compared


def _by_column(
    reference: str,
    other: str,
    matches: Sequence[Match],
    quantity: LabelledColumn,
    margin: float,
    noise: MachineNoise | None = None,
) -> list[PointComparison]:
    measured = [each for each in matches if _has(each.first, quantity) or _has(each.second, quantity)]
    usable = [each for each in measured if not each.obstacle_of(quantity)]
    level = CONFIDENCE ** (1 / max(1, len(usable)))
    return [point_comparison(reference, other, each, quantity, margin, level, noise) for each in measured]


def _has(trials: pd.DataFrame, quantity: LabelledColumn) -> bool:
    return quantity.column in trials and bool(trials[quantity.column].notna().any())


def point_comparison(
    reference: str,
    other: str,
    each: Match,
    quantity: LabelledColumn,
    margin: float = MARGIN,
    level: float = CONFIDENCE,
    noise: MachineNoise | None = None,
) -> PointComparison:
    """One configuration by one quantity, with an interval at that level; raises ConfigError as `comparisons`."""
    obstacle = each.obstacle_of(quantity)
    figures = figure_of(each.first, quantity.column), figure_of(each.second, quantity.column)
    if not obstacle and not all(value > 0 for value in figures):
        obstacle = "one side has no figure"
    if obstacle:
        return PointComparison(reference, other, each.label, quantity, Finding.INCOMPARABLE, obstacle, *figures)
    ratio = log_ratio(each.first, each.second, quantity.column)
    if noise is not None:
        of_machine = noise.ratio(ratio, quantity.column, took_turns(each.first, each.second))
        if not half_width(ratio, level) > half_width(of_machine, level):
            ratio = of_machine
    half = half_width(ratio, level)
    low, high = ratio.log - half, ratio.log + half
    cost = minutes_a_launch(each.first, each.second)
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
        smallest=smallest_change(ratio, ratio.units, level),
        in_minutes=tuple(smallest_change(ratio, int(minutes / cost), level) for minutes in MINUTES) if cost else (),
        launches=tuple(launches_for(ratio, change, level) for change in CHANGES),
        launch_minutes=cost,
        noise=noise.description(quantity.column) if noise else "",
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


def minutes_a_launch(*sides: pd.DataFrame) -> float:
    """Minutes that one launch of each side takes, the trials of this configuration included; 0 if unknown."""
    total = 0.0
    for trials in sides:
        seconds = sum(
            float(trials[column].astype("float64").fillna(0).mean()) for column in DURATIONS if column in trials
        )
        total += seconds / 60
    return total if total > 0 else 0.0
