"""Figures of points with the ends of their intervals, and what they say of a limit: yes, no, open, or unknown.

The interval is that of a new launch. A point that was measured on one launch has none: its interval of these launches
has no part for how much launches differ. By that one figures of the same launch are compared (over loads, say), and
this is said; between launches nothing is sure then, as between engines or settings of one launch each. Where a point
has neither interval, as after a single replicate, nothing about its figure is sure.

A ratio of two points of a run has the interval that it has everywhere (`statistics.standings.Contests`). One of other
figures, or of points that no launches pair, is from the unfavourable ends of both to the favourable ones.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from analysis.quantities import LabelledColumn, labelled_column
from analysis.statistics.standings import Contests
from analysis.studies.ruling import Ruling, all_of

Where = dict[str, Any]
NAMING = ("backend", "backend.quantization", "backend.slots", "ladder", "workload", "batch_size")
"""The columns by which a point is named in an answer."""
LAUNCHES = "launches"
"""The column of a run's points with the launches that gave each its results."""
PLACE = "contests_and_place"
"""The column of a run's points with the contests that all of them are in, and the place of each."""
MEMORY_LABEL = "memory_label"
"""The column of a run's points with the kind of memory of each."""
NOT_OF_A_NEW_LAUNCH = "no interval of a new launch, as after one launch each"


class Uncertain(NamedTuple):
    """A figure, or a ratio of two, with the ends of its interval; NaN where missing."""

    value: float
    low: float
    high: float
    launches: frozenset[int] | None = None  # that the interval is of; None if it has a part for a new launch
    lacking: str = ""  # why there is no interval, and of which point
    memory: str | None = None  # the kind of memory that it is a figure of
    measured: "PointFigure | None" = None  # of a point of a run

    def at_least(self, limit: float) -> Ruling:
        """Return whether it is at least a limit: yes or no with its whole interval, open with a part of it."""
        return self._ruling(self.low >= limit, self.high < limit)

    def at_most(self, limit: float) -> Ruling:
        return self._ruling(self.high <= limit, self.low > limit)

    def above(self, limit: float) -> Ruling:
        return self._ruling(self.low > limit, self.high <= limit)

    def below(self, limit: float) -> Ruling:
        return self._ruling(self.high < limit, self.low >= limit)

    def between(self, least: float | None, most: float | None) -> Ruling:
        """Return whether it is within its limits, of which one may be missing."""
        return all_of(
            [
                Ruling.HOLDS if least is None else self.at_least(least),
                Ruling.HOLDS if most is None else self.at_most(most),
            ]
        )

    def _ruling(self, holds: bool, fails: bool) -> Ruling:
        if math.isnan(self.low) or math.isnan(self.high):
            return Ruling.UNKNOWN
        return Ruling.HOLDS if holds else Ruling.FAILS if fails else Ruling.OPEN

    @property
    def shown(self) -> str:
        """`1.05x (0.98 to 1.12)`, or why it has no interval."""
        return f"{self.value:.2f}x{self.interval}"

    @property
    def absolute(self) -> str:
        """`0.31 (0.25 to 0.37)`, in the figure's own unit."""
        return f"{self.value:.4g}{f' ({self.low:.4g} to {self.high:.4g})' if self.has_interval else ''}"

    @property
    def interval(self) -> str:
        parts = [f"{self.low:.2f} to {self.high:.2f}" if self.has_interval else "", self.reservation]
        return f" ({text})" if (text := ", ".join(filter(None, parts))) else ""

    @property
    def has_interval(self) -> bool:
        """Return whether its ends are known and differ; the ends of a published figure do not."""
        return not math.isnan(self.low) and self.low != self.high

    @property
    def reservation(self) -> str:
        """Say that the interval is of these launches, or why it is missing; empty if it is of a new launch."""
        return self.lacking or ("" if self.launches is None else "of these launches")


class PointFigure(NamedTuple):
    """A figure of a point of a run, by which it is compared with another."""

    contests: Contests
    quantity: LabelledColumn
    place: int


def _point_figure(point: "pd.Series[Any]", column: str) -> PointFigure | None:
    contests, place = point.get(PLACE, (None, 0))
    quantity = labelled_column(column)
    if contests is None or quantity is None or column not in contests.figures:
        return None
    return PointFigure(contests, quantity, place)


def uncertain(point: "pd.Series[Any]", column: str) -> Uncertain:
    """A figure of a point with its interval."""
    value, measured = float(point[column]), _point_figure(point, column)
    label = point.get(MEMORY_LABEL) if column.startswith("memory_") else None
    memory = str(label) if pd.notna(label) else None
    for ends, launches in (
        (("new_launch_low", "new_launch_high"), None),
        (("ci_low", "ci_high"), point.get(LAUNCHES, frozenset())),
    ):
        low, high = (point.get(f"{column}_{end}") for end in ends)
        if low is not None and high is not None and pd.notna(low) and pd.notna(high):
            return Uncertain(value, float(low), float(high), launches, memory=memory, measured=measured)
    reason = "one replicate, no interval" if point.get("n") == 1 else "no interval"
    reason = ": ".join(filter(None, [point_name(point), reason]))
    return Uncertain(value, math.nan, math.nan, lacking=reason, memory=memory, measured=measured)


def ratio(numerator: Uncertain, denominator: Uncertain) -> Uncertain:
    """The ratio of two figures."""
    of_ends = from_parts(
        _divided(numerator.value, denominator.value),
        _divided(numerator.low, denominator.high),
        _divided(numerator.high, denominator.low),
        numerator,
        denominator,
    )
    first, second = numerator.measured, denominator.measured
    if first is None or second is None or first.quantity != second.quantity:
        return of_ends
    value, low, high = map(float, first.contests.ratios(first.quantity, [(first.place, second.place)])[:, 0])
    if numerator.memory != denominator.memory or not (math.isfinite(low) and math.isfinite(high)):
        return of_ends
    return Uncertain(value, low, high, numerator.launches and of_ends.launches, memory=numerator.memory)


def from_parts(value: float, low: float, high: float, *parts: Uncertain) -> Uncertain:
    """A figure made from others: it has an interval if all of them have one for a new launch, or for the same launches.

    Reserved memory and memory that processes use are different kinds: a figure of both has no interval.
    """
    kinds = sorted({part.memory for part in parts if part.memory})
    reasons = [f"memory of different kinds: {', '.join(kinds)}"] if len(kinds) > 1 else []
    reasons += [part.lacking for part in parts if part.lacking]
    if any(part.launches != parts[0].launches for part in parts):
        reasons.append(NOT_OF_A_NEW_LAUNCH)
    if reasons:
        return Uncertain(value, math.nan, math.nan, lacking=reasons[0])
    return Uncertain(value, low, high, parts[0].launches, memory=parts[0].memory)


def _divided(numerator: float, denominator: float) -> float:
    """A quotient of figures that are not negative: infinite over zero, and NaN of two zeros."""
    if denominator == 0:
        return math.inf if numerator > 0 else math.nan
    return numerator / denominator


def points_with(points: pd.DataFrame, column: str) -> pd.DataFrame:
    """The points with a value in a column."""
    return points[points[column].notna()] if column in points else points.iloc[:0]


def matching_points(points: pd.DataFrame, where: Mapping[str, Any]) -> pd.DataFrame:
    """The points with these values; a list of values means any of them."""
    for column, value in where.items():
        if column not in points:
            return points.iloc[:0]
        values = value if isinstance(value, list) else [value]
        points = points[points[column].isin(values)]
    return points


def points_of_any(points: pd.DataFrame, among: Sequence[Where]) -> pd.DataFrame:
    """The points of any of several choices; all points without a choice."""
    if not among:
        return points
    chosen = {label for where in among for label in matching_points(points, where).index}
    return points[points.index.isin(chosen)]


def point_name(point: "pd.Series[Any]") -> str:
    """Name a point in a few words, by its task and load."""
    return ", ".join(
        f"{point[key]:g}" if isinstance(point[key], float) else str(point[key])
        for key in NAMING
        if key in point and pd.notna(point[key])
    )
