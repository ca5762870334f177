"""Values of points with the ends of their intervals, and their comparison with a limit: yes, no, open or unknown.

The interval covers a new launch. A point measured on one launch has no such interval: its interval for "these launches"
does not include differences between launches. Such intervals are used only to compare values of the same launch (e.g.
over loads), and the answer mentions it. Nothing is certain between engines or settings with one launch each. If a point
has neither interval, e.g. after a single replicate, nothing about its value is certain.

A ratio of two points of a run has the same interval as in other output (`statistics.contests.Contests`). For other
values, or points without paired launches, the ratio's interval comes from the unfavourable and favourable ends of both.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from analysis.quantities import LabelledColumn, labelled_column
from analysis.statistics.contests import Contests
from analysis.studies.ruling import Ruling, all_of

Where = dict[str, Any]
NAMING = ("backend", "backend.quantization", "backend.slots", "ladder", "workload", "batch_size")
"""The columns used to name a point in an answer."""
LAUNCHES = "launches"
"""The column with the launches behind a point's results."""
PLACE = "contests_and_place"
"""The column with the contests of all points, and the point's position in them."""
MEMORY_LABEL = "memory_label"
"""The column with the kind of memory of a point."""
NOT_OF_A_NEW_LAUNCH = "no interval of a new launch, e.g. since each has one launch"


class Uncertain(NamedTuple):
    """A value or a ratio of two values, with the ends of its interval. Missing values are NaN."""

    value: float
    low: float
    high: float
    launches: frozenset[int] | None = None  # launches that the interval covers; None: it also covers a new launch
    lacking: str = ""  # why there is no interval, and for which point
    memory: str | None = None  # the kind of memory, if it is a memory quantity
    measured: "PointFigure | None" = None  # set for a point of a run

    def at_least(self, limit: float) -> Ruling:
        """Return whether the value is at least a limit: decided by the whole interval, open if the limit is within."""
        return self._ruling(self.low >= limit, self.high < limit)

    def at_most(self, limit: float) -> Ruling:
        return self._ruling(self.high <= limit, self.low > limit)

    def above(self, limit: float) -> Ruling:
        return self._ruling(self.low > limit, self.high <= limit)

    def below(self, limit: float) -> Ruling:
        return self._ruling(self.high < limit, self.low >= limit)

    def between(self, least: float | None, most: float | None) -> Ruling:
        """Return whether the value is within its limits; one limit may be missing."""
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
        """The ratio as text, e.g. `1.05x (0.98 to 1.12)`, or why it has no interval."""
        return f"{self.value:.2f}x{self.interval}"

    @property
    def absolute(self) -> str:
        """The value as text in its unit, e.g. `0.31 (0.25 to 0.37)`."""
        return f"{self.value:.4g}{f' ({self.low:.4g} to {self.high:.4g})' if self.has_interval else ''}"

    @property
    def interval(self) -> str:
        parts = [f"{self.low:.2f} to {self.high:.2f}" if self.has_interval else "", self.reservation]
        return f" ({text})" if (text := ", ".join(filter(None, parts))) else ""

    @property
    def has_interval(self) -> bool:
        """True if the ends are known and differ (they are equal for a published value)."""
        return not math.isnan(self.low) and self.low != self.high

    @property
    def reservation(self) -> str:
        """Note that the interval covers only these launches, or why it is missing; empty if it covers a new launch."""
        return self.lacking or ("" if self.launches is None else "of these launches")


class PointFigure(NamedTuple):
    """The data needed to compare a run's point with another point: contests, quantity and position."""

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
    """Return a point's value with its interval."""
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
    """Return the ratio of two values."""
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
    """Derive a value from other values. It has an interval if all theirs cover a new launch, or the same launches.

    Reserved memory and memory used by processes are different kinds, so a value derived from both has no interval.
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
    """Return the quotient of two non-negative values; infinite for x / 0 and NaN for 0 / 0."""
    if denominator == 0:
        return math.inf if numerator > 0 else math.nan
    return numerator / denominator


def points_with(points: pd.DataFrame, column: str) -> pd.DataFrame:
    return points[points[column].notna()] if column in points else points.iloc[:0]


def matching_points(points: pd.DataFrame, where: Mapping[str, Any]) -> pd.DataFrame:
    """Return the points with these settings; a list matches any of its values."""
    for column, value in where.items():
        if column not in points:
            return points.iloc[:0]
        values = value if isinstance(value, list) else [value]
        points = points[points[column].isin(values)]
    return points


def points_of_any(points: pd.DataFrame, among: Sequence[Where]) -> pd.DataFrame:
    """Return the points that match any of these choices; all points if there are no choices."""
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
