"""Computes each configuration's ratio to the reference, how certain it is, and the verdict.

A ratio has the same interval as everywhere (`statistics.comparison.Contest`), or a wider interval from repeated
launches of one configuration on the machine (noise.py). `--fail-if` looks in one direction, so it uses one-sided
bounds, which hold for all configurations at once by Sidak's inequality (1967).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal

import numpy as np
import pandas as pd
from scipy import special

from analysis.compare.matching import Match, match
from analysis.compare.noise import MachineNoise, apart_text, figure_of
from analysis.compare.rivals import Rivals, alone, rivals
from analysis.compare.sides import Side
from analysis.headline import HEADLINE
from analysis.quantities import LabelledColumn, compared_column
from analysis.statistics.comparison import MARGIN, Contest
from analysis.statistics.intervals import CONFIDENCE, FloatArray
from analysis.statistics.power import Error, launches_for, smallest_change

GUESSED_NOISE = 0.03  # assumed drift of the machine between sides that did not take turns, unless --noise covers it
MINUTES = (10, 30, 120)  # measuring times for which the smallest detectable change is stated
CHANGES = (0.1, 0.2)  # changes for which the needed launches are stated
DURATIONS = ("startup_seconds", "wall_seconds")  # columns whose sum is a launch's time


class Finding(StrEnum):
    """The result of comparing one configuration by one quantity."""

    FASTER = "better"
    SLOWER = "worse"
    EQUAL = "equal"
    UNDECIDED = "tie"
    INCOMPARABLE = "not comparable"


@dataclass(frozen=True)
class PointComparison:
    """One configuration compared by one quantity. `ratio` is the second side's value / the reference's value."""

    reference: str
    other: str
    label: str
    quantity: LabelledColumn
    verdict: Finding
    reason: str = ""  # why there is no numeric verdict
    first: float = math.nan  # the value that the summary shows; of a part of a point, the mean over its launches
    second: float = math.nan
    ratio: float = math.nan
    low: float = math.nan
    high: float = math.nan
    all_low: float = math.nan  # one-sided bounds, each of which holds for all configurations at once
    all_high: float = math.nan
    units: int = 0
    smallest: float = math.nan  # relative change that this many launches detect with 90% probability
    in_minutes: tuple[float, ...] = ()  # the same, for launches of both sides that take MINUTES
    launches: tuple[int, ...] = ()  # launches per side that detect CHANGES with 90% probability; 0: unknown
    launch_minutes: float = 0.0  # minutes for one launch of each side; 0: unknown
    noise: str = ""  # the machine's noise, if measured separately
    apart: str = ""  # how the sides were measured, if not in turns; empty if the known noise covers it
    differences: tuple[str, ...] = ()
    codes: tuple[str, ...] = ()  # codes of warnings about either side's values

    @property
    def within_guess(self) -> bool:
        """True if the sides did not take turns, and a drift of the machine may explain the change."""
        return bool(self.apart) and abs(math.log(self.ratio)) < math.log1p(GUESSED_NOISE)


def comparisons(
    sides: Sequence[Side],
    columns: Sequence[str] | None = None,
    margin: float = MARGIN,
    noise: MachineNoise | None = None,
) -> list[PointComparison]:
    """Compare every configuration of each later side with the same one of the first side, by each column.

    With `noise`, no interval is narrower than repeated launches of one configuration on that machine allow.

    Raises:
        ConfigError: if a column is not a measured quantity with a defined direction (higher or lower is better), or the
        noise run has too few launches.
    """
    reference, *others = sides
    percentiles = sorted({percentile for each in sides for percentile in each.run.percentiles})
    if columns is None:  # if token counts are unverified, add characters
        columns = [*HEADLINE, *(["character_throughput"] if any(map(_unverified, sides)) else [])]
    quantities = [compared_column(column, HEADLINE, percentiles) for column in columns]
    field = rivals(sides, [quantity.column for quantity in quantities])
    compared: list[PointComparison] = []
    for other in others:
        matches = match(reference, other)
        names, places = (reference.text, other.text), (str(reference.run.place), str(other.run.place))
        for quantity in quantities:
            measured = [each for each in matches if _has(each.first, quantity) or _has(each.second, quantity)]
            usable = sum(not each.obstacle_of(quantity) for each in measured)
            compared += [
                point_comparison(names, each, quantity, field, places, margin, usable, noise) for each in measured
            ]
    return compared


def _unverified(side: Side) -> bool:
    """Return whether the tokens of some trials were counted only by the server."""
    trials = side.trials
    return "characters" in trials and bool((trials["characters"].notna() & trials["recounted_share"].isna()).any())


def _has(trials: pd.DataFrame, quantity: LabelledColumn) -> bool:
    return quantity.column in trials and bool(trials[quantity.column].notna().any())


def point_comparison(
    names: tuple[str, str],
    each: Match,
    quantity: LabelledColumn,
    field: Rivals | None = None,
    places: tuple[str, str] = ("", ""),
    margin: float = MARGIN,
    of_all: int = 1,
    noise: MachineNoise | None = None,
) -> PointComparison:
    """Compare one of `of_all` configurations by one quantity. Raises ConfigError as `comparisons` does."""
    obstacle, codes = each.obstacle_of(quantity), tuple(kind.code for kind in each.warnings_about(quantity))
    figures = figure_of(each.first, quantity.column), figure_of(each.second, quantity.column)
    if not obstacle and not all(value > 0 for value in figures):
        obstacle = "one side has no value"
    shown = figures
    if field:
        column = quantity.column
        first_figure = field.figure(places[0], each.first, column, figures[0])
        shown = first_figure, field.figure(places[1], each.second, column, figures[1])
    if obstacle:
        return PointComparison(*names, each.label, quantity, Finding.INCOMPARABLE, obstacle, *shown, codes=codes)
    contest, first, second = field.contest(each, places, quantity) if field else (alone(each, quantity), 0, 1)
    level = CONFIDENCE ** (1 / max(of_all, contest.compared))
    error = contest.error(second, first)
    interval, apart = contest.ratios([second], [first])[:, 0], apart_text(each)
    of_machine = noise.error(error.launches, quantity.column, each.took_turns) if noise else None
    one_sided = _one_sided(contest, (first, second), CONFIDENCE ** (1 / max(1, of_all)), of_machine)
    if noise and of_machine:
        covered = noise.covers(each.pause, error.launches, quantity.column)
        apart = "" if covered else f"{apart}; in {noise.text} the pauses are shorter"
        interval, error = _widened(interval, error, of_machine, level)
    ratio, low, high = map(float, interval)
    cost = minutes_a_launch(each.first, each.second)
    comparison = PointComparison(
        *names,
        each.label,
        quantity,
        verdict(low, high, margin, quantity.better or "higher"),
        "" if math.isfinite(low) else "one launch does not show how much launches differ",
        *shown,
        ratio=ratio,
        low=low,
        high=high,
        all_low=ratio * math.exp(-one_sided),
        all_high=ratio * math.exp(one_sided),
        units=error.launches,
        smallest=smallest_change(error, error.launches, level),
        in_minutes=tuple(smallest_change(error, int(minutes / cost), level) for minutes in MINUTES) if cost else (),
        launches=tuple(launches_for(error, change, level) for change in CHANGES),
        launch_minutes=cost,
        noise=noise.description(quantity.column) if noise else "",
        apart=apart,
        differences=each.differences,
        codes=codes,
    )
    if comparison.within_guess and comparison.verdict in (Finding.FASTER, Finding.SLOWER):
        reason = f"a change below {GUESSED_NOISE:.0%} may come from the machine (a guess)"
        return replace(comparison, verdict=Finding.UNDECIDED, reason=reason)
    return comparison


def _widened(interval: FloatArray, error: Error, of_machine: Error, level: float) -> tuple[FloatArray, Error]:
    """Return the interval and its error; if the machine's noise is larger, both come from that noise."""
    ratio, _, high = interval
    half = of_machine.half_width(level)
    if math.log(high / ratio) > half:
        return interval, error
    return np.array([ratio, ratio * math.exp(-half), ratio * math.exp(half)]), of_machine


def _one_sided(contest: Contest, pair: tuple[int, int], level: float, of_machine: Error | None) -> float:
    """Return how far the one-sided bounds at this level are from the logarithm of a ratio; NaN if unknown.

    The widest of three bounds counts: by the contest's pooled variance, the pair's own (Welch), the machine's noise.
    """
    pooled, own, freedom = contest.model.errors(contest.model.pairs(pair[1:], pair[:1]))
    errors = [(contest.model.freedom, float(pooled[0])), (float(freedom[0]), float(own[0]))]
    errors += [(of_machine.freedom, of_machine.error)] if of_machine else []
    return float(np.fmax.reduce([special.stdtrit(freedom, level) * error for freedom, error in errors]))


def verdict(low: float, high: float, margin: float, better: Literal["higher", "lower"]) -> Finding:
    """Return the verdict on a ratio's interval. Within the margin it is "equal", even if the sides differ."""
    if math.isnan(low):
        return Finding.UNDECIDED
    if low > 1 - margin and high < 1 + margin:
        return Finding.EQUAL
    if low <= 1 <= high:
        return Finding.UNDECIDED
    return Finding.FASTER if (low > 1) == (better == "higher") else Finding.SLOWER


def minutes_a_launch(*sides: pd.DataFrame) -> float:
    """Return the minutes for one launch of each side, including this configuration's trials; 0 if unknown."""
    durations = [trials[column].astype("float64") for trials in sides for column in DURATIONS if column in trials]
    seconds = sum(float(duration.fillna(0).mean()) for duration in durations)
    return seconds / 60 if seconds > 0 else 0.0
