"""Figures of points with the ends of their intervals, and what can be said of them for sure: yes, no, or not known.

The interval is that of a new launch; where a point has none, that of these launches, which is said; and where it has
neither, as after a single launch, nothing about its figure is sure.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import pandas as pd

Where = dict[str, Any]
NAMING = ("backend", "backend.quantization", "backend.slots", "ladder", "workload", "batch_size")
"""The columns by which a point is named in an answer."""


class Uncertain(NamedTuple):
    """A figure, or a ratio of two, with the ends of its interval; NaN where there is none."""

    value: float
    low: float
    high: float
    of_these: bool = False  # the interval, or one of them, is of these launches: it has no part for a new one
    lacking: str = ""  # the point without an interval, and why

    def at_least(self, limit: float) -> bool | None:
        """Return whether the unfavourable end is too; None without an interval."""
        return None if math.isnan(self.low) else self.low >= limit

    def at_most(self, limit: float) -> bool | None:
        return None if math.isnan(self.high) else self.high <= limit

    def above(self, limit: float) -> bool | None:
        return None if math.isnan(self.low) else self.low > limit

    def below(self, limit: float) -> bool | None:
        return None if math.isnan(self.high) else self.high < limit

    def between(self, least: float | None, most: float | None) -> bool | None:
        """Return whether both ends are within limits, of which there may be one."""
        return together(
            [
                True if least is None else self.at_least(least),
                True if most is None else self.at_most(most),
            ]
        )

    @property
    def shown(self) -> str:
        """`1.05x (0.98 to 1.12)`, or why there is no interval."""
        return f"{self.value:.2f}x{self.interval}"

    @property
    def interval(self) -> str:
        if self.lacking:
            return f" ({self.lacking})"
        if math.isnan(self.low) or self.low == self.high:
            return ""
        return f" ({self.low:.2f} to {self.high:.2f}{', of these launches' if self.of_these else ''})"


def uncertain(point: "pd.Series[Any]", column: str) -> Uncertain:
    """A figure of a point with its interval."""
    value = float(point[column])
    for ends, of_these in (("new_launch_low", "new_launch_high"), False), (("ci_low", "ci_high"), True):
        low, high = (point.get(f"{column}_{end}") for end in ends)
        if low is not None and high is not None and pd.notna(low) and pd.notna(high):
            return Uncertain(value, float(low), float(high), of_these)
    reason = "one launch, no interval" if point.get("n") == 1 else "no interval"
    return Uncertain(value, math.nan, math.nan, lacking=": ".join(filter(None, [point_name(point), reason])))


def ratio(numerator: Uncertain, denominator: Uncertain) -> Uncertain:
    """The ratio of two figures: its interval is from the unfavourable ends of both to the favourable ones."""
    return Uncertain(
        _divided(numerator.value, denominator.value),
        _divided(numerator.low, denominator.high),
        _divided(numerator.high, denominator.low),
        numerator.of_these or denominator.of_these,
        numerator.lacking or denominator.lacking,
    )


def _divided(numerator: float, denominator: float) -> float:
    """A quotient of figures that are not negative: infinite over zero, and NaN of two zeros."""
    if denominator == 0:
        return math.inf if numerator > 0 else math.nan
    return numerator / denominator


def together(answers: Iterable[bool | None]) -> bool | None:
    """Return whether all are true: false if any is, else None if any is not known."""
    answers = list(answers)
    if False in answers:
        return False
    return None if None in answers else True


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


def point_name(point: "pd.Series[Any]") -> str:
    """Name a point in a few words, by what was asked."""
    return ", ".join(
        f"{point[key]:g}" if isinstance(point[key], float) else str(point[key])
        for key in NAMING
        if key in point and pd.notna(point[key])
    )
