"""Checks of a finding on a table of points, be it the study's own or a run's: whether it holds, and the figures.

A check of a run holds only if it does at the unfavourable ends of the intervals too: a difference that is not told
apart is not reproduced. It gives None where the table lacks the points that it needs.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import pandas as pd
from pydantic import Field

from sweep.config import Strict

OUT_OF_MEMORY = ("oom_load", "oom_run", "censored")
Where = dict[str, Any]


class CheckAnswer(NamedTuple):
    """The result of a check: true if the finding holds in the table, and the figures that say so."""

    holds: bool | None  # None: the table cannot tell
    figures: str


class FindingCheck(Strict):
    """The base of all checks."""

    def answer(self, points: pd.DataFrame) -> CheckAnswer:
        raise NotImplementedError


class SpreadCheck(FindingCheck):
    """The largest figure over the smallest, among points that agree in `each`."""

    kind: Literal["spread"]
    column: str
    each: tuple[str, ...]
    at_most: float

    def answer(self, points: pd.DataFrame) -> CheckAnswer:
        measured = _measured(points, self.column)
        groups = [group for _, group in measured.groupby(list(self.each))] if _has_columns(measured, self.each) else []
        ratios = [group[self.column].max() / group[self.column].min() for group in groups if len(group) > 1]
        if not ratios:
            return _lacking(f"two points with {self.column}")
        return CheckAnswer(max(ratios) <= self.at_most, f"up to {max(ratios):.2f}x apart (claimed: {self.at_most:g}x)")


class BestCheck(FindingCheck):
    """The point with the best figure is the expected one, ahead by more than both intervals."""

    kind: Literal["best"]
    column: str
    better: Literal["higher", "lower"]
    expected: Where
    where: Where = Field(default_factory=dict)

    def answer(self, points: pd.DataFrame) -> CheckAnswer:
        ordered = _measured(matching_points(points, self.where), self.column)
        if ordered.empty:
            return _lacking(f"{_words({**self.where, **self.expected})} with {self.column}")
        ordered = ordered.sort_values(self.column, ascending=self.better == "lower")
        expected = matching_points(ordered, self.expected)
        rivals = ordered.drop(expected.index)
        if expected.empty or rivals.empty:
            return _lacking(f"{_words({**self.where, **self.expected})} and another")
        first, second = expected.iloc[0], rivals.iloc[0]
        ratio, low, high = _ratio(first, second, self.column)
        holds = low > 1 if self.better == "higher" else high < 1
        return CheckAnswer(holds, f"{ratio:.2f}x{_interval(low, high)} the next best, {_name(second)}")


class RatioCheck(FindingCheck):
    """The ratio of one point to another that agrees with it in `same`; of several the one that `pick` says."""

    kind: Literal["ratio"]
    column: str
    of: Where
    to: Where
    same: tuple[str, ...]
    pick: Literal["largest", "smallest", "best"]
    at_least: float | None = None
    at_most: float | None = None

    def answer(self, points: pd.DataFrame) -> CheckAnswer:
        measured = _measured(points, self.column)
        numerators, denominators = matching_points(measured, self.of), matching_points(measured, self.to)
        # The best of each, whatever it agrees in: throughput against throughput. A run without a result has no column.
        if self.pick == "best" and not measured.empty:
            numerators = numerators.nlargest(1, self.column)
            denominators = denominators.nlargest(1, self.column)
        ratios = [
            _ratio(numerator, denominator, self.column)
            for _, numerator in numerators.iterrows()
            for _, denominator in denominators.iterrows()
            if all(numerator.get(key) == denominator.get(key) or key not in points for key in self.same)
        ]
        if not ratios:
            return _lacking(f"{_words(self.of)} beside {_words(self.to)}")
        ratio, low, high = (min if self.pick == "smallest" else max)(ratios)
        enough = self.at_least is None or low >= self.at_least
        few = self.at_most is None or high <= self.at_most
        return CheckAnswer(
            enough and few, f"{ratio:.2f}x{_interval(low, high)} (claimed: {_range(self.at_least, self.at_most)})"
        )


class RisingCheck(FindingCheck):
    """The figure at the largest value of `over`, over that at the smallest; it falls nowhere between if above 1."""

    kind: Literal["rising"]
    column: str
    over: str
    where: Where = Field(default_factory=dict)
    at_least: float
    at_most: float | None = None

    def answer(self, points: pd.DataFrame) -> CheckAnswer:
        measured = _measured(matching_points(points, self.where), self.column)
        if not _has_columns(measured, [self.over]) or measured[self.over].nunique() < 2:
            return _lacking(f"several values of {self.over}")
        ordered = measured.sort_values(self.over)
        ratio, low, high = _ratio(ordered.iloc[-1], ordered.iloc[0], self.column)
        steps = ordered[self.column].diff().dropna()
        holds = low >= self.at_least and (self.at_most is None or high <= self.at_most)
        holds = holds and (self.at_least < 1 or bool((steps > 0).all()))
        ends = f"{self.over} {ordered[self.over].iloc[0]:g} to {ordered[self.over].iloc[-1]:g}"
        return CheckAnswer(
            holds, f"{ratio:.2f}x{_interval(low, high)} from {ends} (claimed: {_range(self.at_least, self.at_most)})"
        )


class PeakCheck(FindingCheck):
    """The best figure over a column is at one value, with a point on each side that there is."""

    kind: Literal["peak"]
    column: str
    over: str
    at: float

    def answer(self, points: pd.DataFrame) -> CheckAnswer:
        measured = _measured(points, self.column)
        if not _has_columns(measured, [self.over]) or self.at not in set(measured[self.over]) or len(measured) < 2:
            return _lacking(f"{self.over}={self.at:g} and another")
        best = measured.loc[[measured[self.column].idxmax()]].iloc[0]
        return CheckAnswer(
            best[self.over] == self.at, f"highest at {self.over} {best[self.over]:g}, {best[self.column]:.4g}"
        )


class FitsCheck(FindingCheck):
    """The largest size that has a result, where a larger one ran out of memory."""

    kind: Literal["fits"]
    where: Where
    over: str
    largest: float

    def answer(self, points: pd.DataFrame) -> CheckAnswer:
        chosen = matching_points(points, self.where)
        outcomes = chosen.get("outcomes", pd.Series("", chosen.index)).fillna("").astype(str)
        lost = chosen[outcomes.str.contains("|".join(OUT_OF_MEMORY))]
        if lost.empty or self.largest not in set(chosen[self.over]):
            return _lacking(f"a size at which {_words(self.where)} ran out of memory, and {self.over}={self.largest:g}")
        fitted = chosen.drop(lost.index)[self.over].max()
        return CheckAnswer(bool(fitted == self.largest), f"largest that fitted: {fitted:g} (claimed: {self.largest:g})")


class ColumnsCheck(FindingCheck):
    """One column is nowhere below another."""

    kind: Literal["columns"]
    column: str
    not_below: str

    def answer(self, points: pd.DataFrame) -> CheckAnswer:
        measured = _measured(_measured(points, self.column), self.not_below)
        if measured.empty:
            return _lacking(f"{self.column} and {self.not_below}")
        below = measured[measured[self.column] < measured[self.not_below]]
        return CheckAnswer(
            below.empty, f"{self.column} below {self.not_below} in {len(below)} of {len(measured)} points"
        )


def _has_columns(points: pd.DataFrame, columns: Iterable[str]) -> bool:
    return all(column in points for column in columns)


def _measured(points: pd.DataFrame, column: str) -> pd.DataFrame:
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


def _ratio(numerator: "pd.Series[Any]", denominator: "pd.Series[Any]", column: str) -> tuple[float, float, float]:
    """The ratio of two points, and its unfavourable and favourable end by the intervals of a new launch."""
    ratio = float(numerator[column] / denominator[column])
    ends = [_ends(point, column) for point in (numerator, denominator)]
    return ratio, ends[0][0] / ends[1][1], ends[0][1] / ends[1][0]


def _ends(point: "pd.Series[Any]", column: str) -> tuple[float, float]:
    """The interval of a figure; the figure itself where there is none, as in a published table."""
    value = float(point[column])
    low, high = (point.get(f"{column}_new_launch_{end}") for end in ("low", "high"))
    if low is None or high is None or pd.isna(low) or pd.isna(high) or not low > 0:
        return value, value
    return float(low), float(high)


def _interval(low: float, high: float) -> str:
    return f" ({low:.2f} to {high:.2f})" if low != high else ""


def _range(at_least: float | None, at_most: float | None) -> str:
    ends = [f"at least {at_least:g}x"] if at_least is not None else []
    return " and ".join([*ends, *([f"at most {at_most:g}x"] if at_most is not None else [])])


def _words(where: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in where.items())


def _name(point: "pd.Series[Any]") -> str:
    keys = ("backend", "ladder", "workload", "batch_size")
    return ", ".join(
        f"{point[key]:g}" if isinstance(point[key], float) else str(point[key])
        for key in keys
        if key in point and pd.notna(point[key])
    )


def _lacking(points: str) -> CheckAnswer:
    return CheckAnswer(None, f"needs {points}")
