"""Checks a finding on a table of points, the study's or a run's, and gives a ruling with the values behind it.

A check of a run holds only if it holds at the unfavourable ends of the intervals. It fails only if it fails at the
favourable ends. Otherwise it is open. It is unknown if the table lacks points or their values lack an interval. If a
study gives no limit, a limit is set here, and the answer mentions it.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, Literal

import pandas as pd
from pydantic import Field

from analysis.studies.answer import CheckAnswer, FindingCheck, absent, choice_text, lacking
from analysis.studies.ruling import all_of, any_of
from analysis.studies.uncertain import (
    Uncertain,
    Where,
    from_parts,
    matching_points,
    point_name,
    points_of_any,
    points_with,
    ratio,
    uncertain,
)

Better = Literal["higher", "lower"]


class BestCheck(FindingCheck):
    """The expected point has the best value, ahead of every other point by more than both intervals.

    The other points come from the choices in `among`, as in the study's comparison. Every choice needs a point.
    """

    kind: Literal["best"]
    column: str
    better: Better
    expected: Where
    where: Where = Field(default_factory=dict)
    among: tuple[Where, ...]

    def answer(self, points: pd.DataFrame) -> CheckAnswer:
        chosen = points_of_any(points_with(matching_points(points, self.where), self.column), self.among)
        if missing := absent(chosen, [self.expected, *self.among]):
            return lacking(f"{choice_text(self.where)}{': ' if self.where else ''}{missing} with {self.column}")
        ordered = chosen.sort_values(self.column, ascending=self.better == "lower")
        expected = matching_points(ordered, self.expected)
        rivals = ordered.drop(expected.index)
        if rivals.empty:
            return lacking(f"{choice_text({**self.where, **self.expected})} and another")
        return _ahead(_named(expected, self.column), _named(rivals, self.column), self.better)


class RatioCheck(FindingCheck):
    """The ratio of one point to another with the same values in `same`. `pick` chooses one of several ratios.

    An upper limit on the largest ratio, or a lower limit on the smallest, applies to all ratios. For a lower limit on
    the largest ratio ("up to"), a single ratio is enough.
    """

    kind: Literal["ratio"]
    column: str
    of: Where
    to: Where
    same: tuple[str, ...]
    pick: Literal["largest", "smallest", "best"]
    among: tuple[Where, ...] = ()  # choices that each need a point
    at_least: float | None = None
    at_most: float | None = None

    def answer(self, points: pd.DataFrame) -> CheckAnswer:
        with_figure = points_with(points, self.column)
        if missing := absent(with_figure, self.among):
            return lacking(f"{missing} with {self.column}")
        numerators, denominators = matching_points(with_figure, self.of), matching_points(with_figure, self.to)
        # The best of each side at any point, e.g. its best throughput. A run without a result lacks the column.
        if self.pick == "best" and not with_figure.empty:
            numerators = numerators.nlargest(1, self.column)
            denominators = denominators.nlargest(1, self.column)
        ratios = [
            ratio(uncertain(numerator, self.column), uncertain(denominator, self.column))
            for top, numerator in numerators.iterrows()
            for bottom, denominator in denominators.iterrows()
            if top != bottom
            and all(numerator.get(key) == denominator.get(key) or key not in points for key in self.same)
        ]
        if not ratios:
            return lacking(f"{choice_text(self.of)} beside {choice_text(self.to)}")
        answered = [(gain.between(self.at_least, self.at_most), gain) for gain in ratios]
        claims_all = self.at_most is not None if self.pick == "largest" else self.at_least is not None
        ruling = (all_of if claims_all else any_of)(answer for answer, _ in answered)
        order = min if self.pick == "smallest" else max
        deciding = order((gain for answer, gain in answered if answer is ruling), key=lambda gain: gain.value)
        return CheckAnswer(ruling, f"{deciding.shown} ({_limits(self.at_least, self.at_most)})")


class RisingCheck(FindingCheck):
    """The ratio of the last value to the first along `over` is within limits, and every step rises."""

    kind: Literal["rising"]
    column: str
    over: str
    where: Where = Field(default_factory=dict)
    ends: tuple[float, float]
    at_least: float = Field(ge=1)
    at_most: float | None = None

    def answer(self, points: pd.DataFrame) -> CheckAnswer:
        chosen = points_with(matching_points(points, self.where), self.column)
        if self.over in chosen:
            chosen = chosen[chosen[self.over].between(*self.ends)]
        if not _is_one_line(chosen, self.over, self.ends):
            return lacking(_line_text(self.where, self.over, self.ends))
        ordered = chosen.sort_values(self.over)
        along = [uncertain(point, self.column) for _, point in ordered.iterrows()]
        names = [f"{size:g}" for size in ordered[self.over]]
        whole, steps = ratio(along[-1], along[0]), [ratio(after, before) for before, after in pairwise(along)]
        within = whole.between(self.at_least, self.at_most)
        ruling = all_of([within, *(step.above(1) for step in steps)])
        figures = f"{whole.shown} from {self.over} {names[0]} to {names[-1]} ({_limits(self.at_least, self.at_most)})"
        if within is not ruling:  # then a step decides
            step, index = next((step, index) for index, step in enumerate(steps) if step.above(1) is ruling)
            figures += f"; {step.shown} from {names[index]} to {names[index + 1]}"
        return CheckAnswer(ruling, figures)


class ConstantCheck(FindingCheck):
    """The column is constant over three or more values of `over`: within limits, relative to the smallest `over`."""

    kind: Literal["constant"]
    column: str
    over: str
    where: Where = Field(default_factory=dict)
    at_least: float
    at_most: float

    def answer(self, points: pd.DataFrame) -> CheckAnswer:
        chosen = points_with(matching_points(points, self.where), self.column)
        if not _is_one_line(chosen, self.over, fewest=3):
            return lacking(_line_text(self.where, self.over))
        ordered = chosen.sort_values(self.over)
        base, *larger = [uncertain(point, self.column) for _, point in ordered.iterrows()]
        sizes = [f"{value:g}" for value in ordered[self.over]]
        compared = [(size, ratio(each, base)) for size, each in zip(sizes[1:], larger, strict=True)]
        answered = [(each.between(self.at_least, self.at_most), size, each) for size, each in compared]
        ruling = all_of(answer for answer, *_ in answered)
        deciding = [each for each in answered if each[0] is ruling]
        _, size, farthest = max(deciding, key=lambda each: abs(each[2].value - 1))
        limits = _limits(self.at_least, self.at_most)
        return CheckAnswer(ruling, f"{farthest.shown} from {self.over} {sizes[0]} to {size}, the farthest ({limits})")


class GainsCheck(FindingCheck):
    """The expected line has the largest gain from one value of `over` to another, by more than the intervals.

    The lines are the choices in `among`, as in the study's comparison. Every line needs both ends.
    """

    kind: Literal["gains"]
    column: str
    over: str
    ends: tuple[float, float]
    lines: tuple[str, ...]  # columns that identify a line, if the table has them
    expected: Where
    among: tuple[Where, ...]

    def answer(self, points: pd.DataFrame) -> CheckAnswer:
        chosen = points_of_any(points_with(points, self.column), self.among)
        lines = [column for column in self.lines if column in chosen]
        if not lines or self.over not in chosen:
            return lacking(f"{self.column} at {self.over} {self.ends[0]:g} and {self.ends[1]:g}")
        first, last = (chosen[chosen[self.over] == end] for end in self.ends)
        for end, there in zip(self.ends, (first, last), strict=True):
            if missing := absent(there, self.among):
                return lacking(f"{missing} with {self.column} at {self.over} {end:g}")
        if any(there.groupby(lines, dropna=False).size().gt(1).any() for there in (first, last)):
            return lacking(f"a single point of each {', '.join(lines)} at a {self.over}")  # one more axis varies
        gains = [
            (not matching_points(line, self.expected).empty, gain)
            for _, line in chosen.groupby(lines, dropna=False)
            for gain in self._gains(line, lines)
        ]
        ours, rivals = ([gain for expected, gain in gains if expected is side] for side in (True, False))
        ours.sort(key=lambda gain: gain[1].value, reverse=True)
        if not ours or not rivals:
            return lacking(f"{choice_text(self.expected)} and another at both ends of {self.over}")
        answer = _ahead(ours, rivals, "higher")
        return answer._replace(figures=f"gains {ours[0][1].shown}, {answer.figures}")

    def _gains(self, line: pd.DataFrame, lines: list[str]) -> Iterable[tuple[str, Uncertain]]:
        """Yield a line's name and gain, or nothing if it lacks an end."""
        first, last = (line[line[self.over] == end] for end in self.ends)
        if len(first) == len(last) == 1:
            gain = ratio(uncertain(last.iloc[0], self.column), uncertain(first.iloc[0], self.column))
            yield point_name(first.iloc[0][lines]), gain


class RangeCheck(FindingCheck):
    """The value of every chosen point lies within limits."""

    kind: Literal["range"]
    column: str
    where: Where
    at_least: float | None = None
    at_most: float | None = None

    def answer(self, points: pd.DataFrame) -> CheckAnswer:
        with_figure = points_with(matching_points(points, self.where), self.column)
        chosen = [uncertain(point, self.column) for _, point in with_figure.iterrows()]
        if not chosen:
            return lacking(f"{choice_text(self.where)} with {self.column}")
        ruling = all_of(figure.between(self.at_least, self.at_most) for figure in chosen)
        reasons = dict.fromkeys(figure.reservation for figure in chosen if figure.reservation)
        figures = ", ".join(figure.absolute for figure in chosen)
        limits = _limits(self.at_least, self.at_most, unit="")
        return CheckAnswer(ruling, f"{'; '.join([figures, *reasons])} ({limits})")


class OnceCheck(FindingCheck):
    """A claim made by only one finding, checked by a function of the points."""

    kind: Literal["once"]
    claim: Literal["exllama_memory_is_linear", "peak_is_not_below_mean"]

    def answer(self, points: pd.DataFrame) -> CheckAnswer:
        linear = self.claim == "exllama_memory_is_linear"
        return exllama_memory_is_linear(points) if linear else peak_is_not_below_mean(points)


def exllama_memory_is_linear(points: pd.DataFrame, within: float = 0.1) -> CheckAnswer:
    """Memory rises with the batch, and every size is within `within` of the straight line between the ends."""
    chosen = points_with(matching_points(points, {"backend": "exllama"}), "memory_mean_bytes")
    if not _is_one_line(chosen, "batch_size", fewest=3):
        return lacking(_line_text({"backend": "exllama"}, "batch_size"))
    ordered = chosen.sort_values("batch_size")
    sizes = ordered["batch_size"].astype(float)
    start, *between, end = [uncertain(point, "memory_mean_bytes") for _, point in ordered.iterrows()]
    shares = (sizes - sizes.iloc[0]) / (sizes.iloc[-1] - sizes.iloc[0])
    beside = [ratio(step, _on_line(start, end, share)) for step, share in zip(between, shares[1:-1], strict=True)]
    rise = ratio(end, start)
    ruling = all_of([rise.above(1), *(step.between(1 / (1 + within), 1 + within) for step in beside)])
    farthest = max(beside, key=lambda step: abs(step.value - 1))
    figures = f"{rise.shown} from batch_size {sizes.iloc[0]:g} to {sizes.iloc[-1]:g}, between them {farthest.shown}"
    return CheckAnswer(ruling, f"{figures} of the straight line (judged by: within {within:.0%})")


def peak_is_not_below_mean(points: pd.DataFrame) -> CheckAnswer:
    """At every point the peak of output throughput is at least its mean."""
    names = "peak_output_throughput", "output_throughput"
    paired = points_with(points_with(points, names[0]), names[1])
    if paired.empty:
        return lacking(" and ".join(names))
    ratios = [ratio(*(uncertain(point, column) for column in names)) for _, point in paired.iterrows()]
    ruling = all_of(gain.at_least(1) for gain in ratios)
    lowest = min((gain for gain in ratios if gain.at_least(1) is ruling), key=lambda gain: gain.value)
    below = sum(gain.value < 1 for gain in ratios)
    return CheckAnswer(ruling, f"{names[0]} below {names[1]} in {below} of {len(paired)} points; lowest {lowest.shown}")


def _named(points: pd.DataFrame, column: str) -> list[tuple[str, Uncertain]]:
    return [(point_name(point), uncertain(point, column)) for _, point in points.iterrows()]


def _ahead(
    configurations: Sequence[tuple[str, Uncertain]], rivals: Sequence[tuple[str, Uncertain]], better: Better
) -> CheckAnswer:
    """Return whether the first (best) of these configurations beats all rivals, with the deciding ratio."""
    answers = [_ahead_of_all(configuration, rivals, better) for _, configuration in configurations]
    ruling = any_of(answer.ruling for answer in answers)
    return next(answer for answer in answers if answer.ruling is ruling)


def _ahead_of_all(configuration: Uncertain, rivals: Sequence[tuple[str, Uncertain]], better: Better) -> CheckAnswer:
    named = [(rival_name, ratio(configuration, rival)) for rival_name, rival in rivals]
    answers = [lead.above(1) if better == "higher" else lead.below(1) for _, lead in named]
    ruling = all_of(answers)
    deciding = [lead for lead, answer in zip(named, answers, strict=True) if answer is ruling]
    rival_name, closest = min(deciding, key=lambda lead: lead[1].value if better == "higher" else -lead[1].value)
    return CheckAnswer(ruling, f"{closest.shown} that of {rival_name}")


def _on_line(first: Uncertain, last: Uncertain, share: float) -> Uncertain:
    """Interpolate between two values. The result has an interval if both values have one."""
    figure, low, high = ((1 - share) * begin + share * end for begin, end in zip(first[:3], last[:3], strict=True))
    return from_parts(figure, low, high, first, last)


def _is_one_line(points: pd.DataFrame, over: str, ends: Sequence[float] = (), fewest: int = 2) -> bool:
    """Return whether a column has at least `fewest` values, including the ends, each with exactly one point."""
    if over not in points or not set(ends) <= set(points[over]):
        return False
    return bool(points[over].nunique() == len(points) >= fewest)


def _line_text(where: Where, over: str, ends: Sequence[float] = ()) -> str:
    needed = f"{over} {' and '.join(f'{end:g}' for end in ends)}" if ends else f"three values of {over}"
    return f"{choice_text(where)}{': ' if where else ''}{needed}, with one point each"


def _limits(at_least: float | None, at_most: float | None, unit: str = "x") -> str:
    """Return a check's limits as text: the study's limits, or limits set here if the study gives none."""
    limits: list[tuple[str, Any]] = [("at least", at_least), ("at most", at_most)]
    return f"judged by: {' and '.join(f'{word} {limit:.4g}{unit}' for word, limit in limits if limit is not None)}"
