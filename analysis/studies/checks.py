"""Checks of a finding on a table of points, be it the study's own or a run's: whether it holds, and the figures.

A check of a run holds only if it does at the unfavourable ends of the intervals too: a difference that is not told
apart is not reproduced. It gives None where the table lacks the points that it needs, or their figures an interval.
What fits in memory is no figure: that goes by how the trials ended.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise, permutations
from typing import Any, Literal, NamedTuple

import pandas as pd
from pydantic import Field

from analysis.studies.uncertain import (
    Uncertain,
    Where,
    from_parts,
    matching_points,
    point_name,
    points_with,
    ratio,
    together,
    uncertain,
)
from sweep.config import Strict

OUT_OF_MEMORY = ("oom_load", "oom_run", "censored")


class CheckAnswer(NamedTuple):
    """The result of a check: true if the finding holds in the table, and the figures that say so."""

    holds: bool | None  # None: the table cannot tell
    figures: str
    measured: bool = True  # false: the table has not the points


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
        with_figure = points_with(points, self.column)
        groups = (
            [group for _, group in with_figure.groupby(list(self.each))] if _has_all(with_figure, self.each) else []
        )
        ratios = [
            ratio(*pair)
            for group in groups
            for pair in permutations([uncertain(point, self.column) for _, point in group.iterrows()], 2)
        ]
        if not ratios:
            return _lacking(f"two points with {self.column}")
        holds = together(each.at_most(self.at_most) for each in ratios)
        deciding = max((each for each in ratios if each.at_most(self.at_most) is holds), key=lambda each: each.value)
        return CheckAnswer(holds, f"up to {deciding.shown} apart (claimed: at most {self.at_most:g}x)")


class BestCheck(FindingCheck):
    """The point with the best figure is the expected one, ahead of every other by more than both intervals."""

    kind: Literal["best"]
    column: str
    better: Literal["higher", "lower"]
    expected: Where
    where: Where = Field(default_factory=dict)

    def answer(self, points: pd.DataFrame) -> CheckAnswer:
        ordered = points_with(matching_points(points, self.where), self.column)
        if ordered.empty:
            return _lacking(f"{_words({**self.where, **self.expected})} with {self.column}")
        ordered = ordered.sort_values(self.column, ascending=self.better == "lower")
        expected = matching_points(ordered, self.expected)
        rivals = ordered.drop(expected.index)
        if expected.empty or rivals.empty:
            return _lacking(f"{_words({**self.where, **self.expected})} and another")
        first = uncertain(expected.iloc[0], self.column)
        named = [(point_name(rival), ratio(first, uncertain(rival, self.column))) for _, rival in rivals.iterrows()]
        return _ahead(named, self.better)


class RatioCheck(FindingCheck):
    """The ratio of one point to another that agrees with it in `same`; of several the one that `pick` says.

    Where the largest is at most something, or the smallest at least, all of them are.
    """

    kind: Literal["ratio"]
    column: str
    of: Where
    to: Where
    same: tuple[str, ...]
    pick: Literal["largest", "smallest", "best"]
    at_least: float | None = None
    at_most: float | None = None

    def answer(self, points: pd.DataFrame) -> CheckAnswer:
        with_figure = points_with(points, self.column)
        numerators, denominators = matching_points(with_figure, self.of), matching_points(with_figure, self.to)
        # The best of each, whatever it agrees in: throughput against throughput. A run without a result has no column.
        if self.pick == "best" and not with_figure.empty:
            numerators = numerators.nlargest(1, self.column)
            denominators = denominators.nlargest(1, self.column)
        ratios = [
            ratio(uncertain(numerator, self.column), uncertain(denominator, self.column))
            for _, numerator in numerators.iterrows()
            for _, denominator in denominators.iterrows()
            if all(numerator.get(key) == denominator.get(key) or key not in points for key in self.same)
        ]
        if not ratios:
            return _lacking(f"{_words(self.of)} beside {_words(self.to)}")
        order = min if self.pick == "smallest" else max
        claims_all = self.at_most is not None if self.pick == "largest" else self.at_least is not None
        claimed = ratios if claims_all else [order(ratios, key=lambda each: each.value)]
        answered = [(each.between(self.at_least, self.at_most), each) for each in claimed]
        holds = together(answer for answer, _ in answered)
        deciding = order((each for answer, each in answered if answer is holds), key=lambda each: each.value)
        return CheckAnswer(holds, f"{deciding.shown} (claimed: {_range(self.at_least, self.at_most)})")


class RisingCheck(FindingCheck):
    """The figure at the largest value of `over`, over that at the smallest; each step between rises if above 1."""

    kind: Literal["rising"]
    column: str
    over: str
    where: Where = Field(default_factory=dict)
    at_least: float
    at_most: float | None = None

    def answer(self, points: pd.DataFrame) -> CheckAnswer:
        chosen = points_with(matching_points(points, self.where), self.column)
        if not _is_one_line(chosen, self.over, fewest=2):
            return _lacking(f"several values of {self.over}, with one point each")
        ordered = chosen.sort_values(self.over)
        along = [uncertain(point, self.column) for _, point in ordered.iterrows()]
        names = [f"{value:g}" for value in ordered[self.over]]
        whole, steps = ratio(along[-1], along[0]), [ratio(after, before) for before, after in pairwise(along)]
        within = whole.between(self.at_least, self.at_most)
        holds = together([within, *(step.above(1) for step in steps if self.at_least >= 1)])
        figures = f"{whole.shown} from {self.over} {names[0]} to {names[-1]}"
        figures += f" (claimed: {_range(self.at_least, self.at_most)})"
        if within is not holds:  # a step decides
            step, place = next((step, place) for place, step in enumerate(steps) if step.above(1) is holds)
            figures += f"; {step.shown} from {names[place]} to {names[place + 1]}"
        return CheckAnswer(holds, figures)


class LinearCheck(FindingCheck):
    """The figure rises with `over` along a straight line through its ends, no point farther off it than `within`."""

    kind: Literal["linear"]
    column: str
    over: str
    where: Where = Field(default_factory=dict)
    within: float  # of the figure

    def answer(self, points: pd.DataFrame) -> CheckAnswer:
        chosen = points_with(matching_points(points, self.where), self.column)
        if not _is_one_line(chosen, self.over, fewest=3):
            return _lacking(f"three values of {self.over}, with one point each")
        ordered = chosen.sort_values(self.over)
        at = ordered[self.over].astype(float)
        along = [uncertain(point, self.column) for _, point in ordered.iterrows()]
        shares = (at - at.iloc[0]) / (at.iloc[-1] - at.iloc[0])
        beside = [
            ratio(figure, _on_line(along[0], along[-1], share))
            for figure, share in zip(along[1:-1], shares[1:-1], strict=True)
        ]
        rise = ratio(along[-1], along[0])
        near = [each.between(1 / (1 + self.within), 1 + self.within) for each in beside]
        farthest = max(beside, key=lambda each: abs(each.value - 1))
        return CheckAnswer(
            together([rise.above(1), *near]),
            f"{rise.shown} from {self.over} {at.iloc[0]:g} to {at.iloc[-1]:g}, between them {farthest.shown} of the"
            f" straight line (claimed: within {self.within:.0%})",
        )


class GainsCheck(FindingCheck):
    """The gain of a line from one value of `over` to another is the largest of all, by more than the intervals."""

    kind: Literal["gains"]
    column: str
    over: str
    ends: tuple[float, float]
    lines: tuple[str, ...]  # the columns that make a line, where the table has them
    expected: Where
    where: Where = Field(default_factory=dict)

    def answer(self, points: pd.DataFrame) -> CheckAnswer:
        chosen = points_with(matching_points(points, self.where), self.column)
        lacking = _lacking(f"{_words(self.expected)} and another at {self.over} {self.ends[0]:g} and {self.ends[1]:g}")
        lines = [column for column in self.lines if column in chosen]
        if not lines or not _has_all(chosen, [self.over]):
            return lacking
        gains: list[tuple[bool, str, Uncertain]] = []
        for _, line in chosen.groupby(lines, dropna=False):
            first, last = (line[line[self.over] == end] for end in self.ends)
            if len(first) > 1 or len(last) > 1:  # a further axis: the ends may be of different settings
                return _lacking(f"a single point of each {', '.join(lines)} at a {self.over}")
            if len(first) == len(last) == 1:
                gain = ratio(uncertain(last.iloc[0], self.column), uncertain(first.iloc[0], self.column))
                gains.append((not matching_points(first, self.expected).empty, point_name(first.iloc[0][lines]), gain))
        ours, rivals = ([gain for gain in gains if gain[0] is expected] for expected in (True, False))
        if not ours or not rivals:
            return lacking
        most = max((gain for *_, gain in ours), key=lambda gain: gain.value)
        answer = _ahead([(name, ratio(most, gain)) for _, name, gain in rivals], "higher")
        return answer._replace(figures=f"gains {most.shown}, {answer.figures}")


class RangeCheck(FindingCheck):
    """The figure of each of some points lies within limits."""

    kind: Literal["range"]
    column: str
    where: Where
    at_least: float | None = None
    at_most: float | None = None

    def answer(self, points: pd.DataFrame) -> CheckAnswer:
        with_figure = points_with(matching_points(points, self.where), self.column)
        chosen = [uncertain(point, self.column) for _, point in with_figure.iterrows()]
        if not chosen:
            return _lacking(f"{_words(self.where)} with {self.column}")
        holds = together(each.between(self.at_least, self.at_most) for each in chosen)
        limits = [
            f"{word} {limit:.4g}"
            for word, limit in (("at least", self.at_least), ("at most", self.at_most))
            if limit is not None
        ]
        reasons = dict.fromkeys(each.reservation for each in chosen if each.reservation)
        figures = ", ".join(f"{each.value:.4g}" for each in chosen)
        return CheckAnswer(holds, f"{'; '.join([figures, *reasons])} (claimed: {' and '.join(limits)})")


class PeakCheck(FindingCheck):
    """The best figure over a column is at one value, ahead of every other by more than both intervals."""

    kind: Literal["peak"]
    column: str
    over: str
    at: float

    def answer(self, points: pd.DataFrame) -> CheckAnswer:
        chosen = points_with(points, self.column)
        if (
            not _has_all(chosen, [self.over])
            or self.at not in set(chosen[self.over])
            or chosen[self.over].nunique() < 2
        ):
            return _lacking(f"{self.over}={self.at:g} and another")
        highest = chosen.sort_values(self.column, ascending=False)
        claimed = uncertain(highest[highest[self.over] == self.at].iloc[0], self.column)
        named = [
            (f"{self.over} {point[self.over]:g}", ratio(claimed, uncertain(point, self.column)))
            for _, point in highest[highest[self.over] != self.at].iterrows()
        ]
        best = highest.iloc[0]
        answer = _ahead(named, "higher")
        highest_at = f"highest at {self.over} {best[self.over]:g}, {best[self.column]:.4g}"
        return answer._replace(figures=f"{highest_at}; at {self.at:g} {answer.figures}")


class FitsCheck(FindingCheck):
    """The largest size that has a result, where a larger one ran out of memory: by outcomes, which have no interval."""

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
        with_result = outcomes.eq("") | outcomes.str.contains(r"\bok\b")  # a published row says only what did not fit
        fitted = chosen[with_result].drop(lost.index, errors="ignore")[self.over].max()
        if pd.isna(fitted):
            return _lacking(f"a size at which {_words(self.where)} has a result")
        return CheckAnswer(bool(fitted == self.largest), f"largest that fitted: {fitted:g} (claimed: {self.largest:g})")


class ColumnsCheck(FindingCheck):
    """One column is nowhere below another."""

    kind: Literal["columns"]
    column: str
    not_below: str

    def answer(self, points: pd.DataFrame) -> CheckAnswer:
        both = points_with(points_with(points, self.column), self.not_below)
        if both.empty:
            return _lacking(f"{self.column} and {self.not_below}")
        ratios = [
            ratio(uncertain(point, self.column), uncertain(point, self.not_below)) for _, point in both.iterrows()
        ]
        below = both[both[self.column] < both[self.not_below]]
        lowest = min(ratios, key=lambda each: each.value)
        return CheckAnswer(
            together(each.at_least(1) for each in ratios),
            f"{self.column} below {self.not_below} in {len(below)} of {len(both)} points; lowest {lowest.shown}",
        )


def _ahead(rivals: Sequence[tuple[str, Uncertain]], better: Literal["higher", "lower"]) -> CheckAnswer:
    """Whether the figure over that of each rival says that it is better; the figures are of the rival that decides."""
    answers = [each.above(1) if better == "higher" else each.below(1) for _, each in rivals]
    holds = together(answers)
    deciding = [rival for rival, answer in zip(rivals, answers, strict=True) if answer is holds]
    name, closest = min(deciding, key=lambda rival: rival[1].value if better == "higher" else -rival[1].value)
    return CheckAnswer(holds, f"{closest.shown} that of {name}")


def _on_line(first: Uncertain, last: Uncertain, share: float) -> Uncertain:
    """The figure at a share of the way from one to another, and its interval if both have one."""
    value, low, high = ((1 - share) * begin + share * end for begin, end in zip(first[:3], last[:3], strict=True))
    return from_parts(value, low, high, first, last)


def _has_all(points: pd.DataFrame, columns: Iterable[str]) -> bool:
    return all(column in points for column in columns)


def _is_one_line(points: pd.DataFrame, over: str, fewest: int) -> bool:
    """True if at least `fewest` values of a column have one point each, and none has several, of other settings."""
    return over in points and points[over].nunique() == len(points) >= fewest


def _range(at_least: float | None, at_most: float | None) -> str:
    ends = [f"at least {at_least:g}x"] if at_least is not None else []
    return " and ".join([*ends, *([f"at most {at_most:g}x"] if at_most is not None else [])])


def _words(where: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in where.items())


def _lacking(points: str) -> CheckAnswer:
    return CheckAnswer(None, f"needs {points}", measured=False)
