"""Divides the gain of each task among the changes in settings, as logarithms, so that the shares add up to the total.

A quantity's logarithm is fitted by least squares as for comparisons (`analysis.statistics.comparison`): point + block +
error, with the launch as the unit. Every result is a weighted sum of the points' effects, with that sum's interval.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from analysis.explain.contrasts import difference, interactions, interactions_alone, shapley
from analysis.explain.design import Factorial, Ladder, Unexplained, designs
from analysis.load import Run
from analysis.point_names import Layout
from analysis.quantities import LabelledColumn, compared_column
from analysis.statistics.comparison import Contest, Positions
from analysis.statistics.contests import Contests, run_contests
from analysis.statistics.intervals import FloatArray

EXPLAINED = ("output_throughput", "ttft_p50", "cost_per_million_tokens")
HALVINGS = 40  # steps of the bisection that finds an end of a share's interval
WIDEST_SHARE = 50.0  # a larger share is meaningless


class Change(NamedTuple):
    """A factor or a share with the ends of its 95% interval. Missing values are NaN."""

    value: float
    low: float
    high: float


NO_CHANGE = Change(np.nan, np.nan, np.nan)


class Part(NamedTuple):
    """A part of the total gain: a knob, a ladder's step, or the engine itself."""

    name: str
    change: str  # the setting
    gain: Change  # a factor; the gains of all parts multiply to the whole
    share: Change  # share of the whole's logarithm; the shares add up to 1
    alone: Change = NO_CHANGE  # factor of this knob with all other knobs off
    last: Change = NO_CHANGE  # factor of this knob with all other knobs on
    dependence: Change = NO_CHANGE  # last / alone


@dataclass(frozen=True)
class Explanation:
    """The gain of one task in one quantity, with its parts."""

    kind: Literal["factorial", "ladder"]
    task: str
    quantity: LabelledColumn
    begin: str  # the name of the point from which the gain is measured
    first: float  # the summary's values at the beginning and at the end; NaN if it has none
    final: float
    total: Change  # ratio of the launches' geometric means, as of every comparison
    parts: tuple[Part, ...]
    interactions: tuple[tuple[str, Change], ...] = ()
    branches: tuple[Part, ...] = ()  # a ladder's side steps; each gain is relative to the step in `change`
    notes: tuple[str, ...] = ()


def explanations(run: Run, layout: Layout, columns: Iterable[str] = EXPLAINED) -> list[Explanation]:
    """Explain every task by each measured quantity.

    If a task cannot be explained, the notes of the other tasks contain the reason.

    Raises:
        Unexplained: if no task of the run can be explained.
        ConfigError: if a column is not a measured quantity.
    """
    quantities = [compared_column(column, EXPLAINED, run.percentiles) for column in columns]
    explained: list[Explanation] = []
    reasons: list[str] = []
    measured = [name for each in quantities if (name := each.column) in run.ok and run.ok[name].gt(0).any()]
    contests = run_contests(run, layout.points, layout.placed(run.ok)["point"].to_numpy(np.int64), measured)
    for design in designs(layout, run.baseline):
        try:
            explained += _explained(design, _Launches(contests, design, layout.points), quantities)
        except Unexplained as error:
            reasons.append(str(error))
    if not explained:
        raise Unexplained("; ".join(dict.fromkeys(reasons)) or "none of the quantities was measured")
    missing = tuple(f"not explained: {reason}" for reason in dict.fromkeys(reasons))
    return [replace(each, notes=(*each.notes, *missing)) for each in explained]


def _explained(
    design: Factorial | Ladder, launches: "_Launches", quantities: Sequence[LabelledColumn]
) -> Iterator[Explanation]:
    for quantity in quantities:
        if (model := launches.model(quantity)) is not None:
            yield (
                _of_factorial(design, quantity, model)
                if isinstance(design, Factorial)
                else _of_ladder(design, quantity, model, launches.contests)
            )


class _Launches:
    """The trials of a design's points, which are numbered from 0 in the design's order."""

    def __init__(self, contests: Contests, design: Factorial | Ladder, summary: pd.DataFrame) -> None:
        self.contests, self.summary = contests, summary
        self.points = list(design.points.values()) if isinstance(design, Factorial) else list(design.points)
        if isinstance(design, Factorial) and design.baseline is not None:
            self.points.append(design.baseline)

    def model(self, quantity: LabelledColumn) -> "_Model | None":
        """Return the least-squares fit of one quantity's logarithm; None if a point has no value."""
        if quantity.column not in self.contests.figures:
            return None
        summarised = self.summary.get(quantity.column, pd.Series(np.nan, self.summary.index))
        values = np.asarray(summarised, np.float64)[self.points]
        model = _Model(*self.contests.shared(quantity, self.points), values)
        return model if np.isfinite(model.effects).all() else None


class _Model(NamedTuple):
    """A least-squares fit of the points at one task and load, with the positions of a design's points in it."""

    contest: Contest
    places: Positions
    values: FloatArray  # of the design's points, as in the summary

    @property
    def effects(self) -> FloatArray:
        return self.contest.model.effects[self.places]

    def of_all(self, weights: FloatArray) -> FloatArray:
        """Extend weights of the design's points to all points of the contest."""
        whole = np.zeros((len(weights), len(self.contest.model.n)))
        whole[:, self.places] = weights
        return whole


# Ladders -------------------------------------------------------------------------------------------------------------


def _of_ladder(design: Ladder, quantity: LabelledColumn, model: _Model, contests: Contests) -> Explanation:
    unit = np.eye(len(design.points))
    steps, total = unit[1:] - unit[:-1], unit[-1] - unit[0]
    parts = [
        Part(name, "", gain, share)
        for name, gain, share in zip(
            design.steps[1:], _gains(model, steps, len(steps)), _shares(model, steps, total), strict=True
        )
    ]
    ratios = contests.ratios(quantity, [(branch.point, branch.parent_point) for branch in design.branches])
    branches = [
        Part(branch.step, branch.parent, Change(*map(float, ratio)), NO_CHANGE)
        for branch, ratio in zip(design.branches, ratios.T, strict=True)
        if np.isfinite(ratio[0])
    ]
    notes = (
        *design.notes,
        "the shares hold for this ladder's order; in another order the same steps may have other shares",
    )
    first, final = map(float, model.values[[0, -1]])
    (change,) = _gains(model, total[None], 1)
    return Explanation(
        "ladder",
        design.task,
        quantity,
        design.steps[0],
        first,
        final,
        change,
        tuple(parts),
        branches=tuple(branches),
        notes=notes,
    )


# Factorials ----------------------------------------------------------------------------------------------------------


def _of_factorial(design: Factorial, quantity: LabelledColumn, model: _Model) -> Explanation:
    """Compute the shares of the knobs and, if there is a baseline, of the engine itself.

    Raises:
        Unexplained: if the combinations with a result do not suffice.
    """
    measured, knobs = list(design.points), [knob.key for knob in design.knobs]
    solution = shapley(measured, knobs)
    if solution is None:
        raise Unexplained(_reason(design, measured))
    weights, order = solution
    begin, rows = f"{design.engine}, all off", _padded(weights, model)
    none, every = measured.index(frozenset()), measured.index(design.all_on)
    unit = np.eye(len(model.effects))
    names = [(knob.name, knob.change) for knob in design.knobs]
    if design.baseline is not None:
        begin, none = "the baseline", len(measured)
        rows = np.vstack([unit[measured.index(frozenset())] - unit[none], rows])
        names.insert(0, (design.engine, "all off"))
    total = unit[every] - unit[none]
    alone = [difference(measured, frozenset([key]), frozenset()) for key in knobs]
    last = [difference(measured, design.all_on, design.all_on - {key}) for key in knobs]
    both = [None if one is None or other is None else other - one for one, other in zip(alone, last, strict=True)]
    rest = [NO_CHANGE] * (len(names) - len(knobs))
    columns = [_gains(model, rows, len(rows)), _shares(model, rows, total)]
    columns += [
        rest + [_single(model, weights, len(knobs)) for weights in of_knobs] for of_knobs in (alone, last, both)
    ]
    parts = [Part(*name, *each) for name, *each in zip(names, *columns, strict=True)]
    first, final = map(float, model.values[[none, every]])
    (change,) = _gains(model, total[None], 1)
    return Explanation(
        "factorial",
        design.task,
        quantity,
        begin,
        first,
        final,
        change,
        tuple(parts),
        tuple(_interactions(design, measured, model)),
        notes=(*design.notes, *_order_notes(order, len(knobs), measured)),
    )


def _single(model: _Model, weights: FloatArray | None, family: int) -> Change:
    """Return the change that weights of the combinations give. Its interval holds jointly for `family` changes."""
    return NO_CHANGE if weights is None else _gains(model, _padded(weights[None], model), family)[0]


def _interactions(design: Factorial, measured: list[frozenset[str]], model: _Model) -> Iterator[tuple[str, Change]]:
    names = {knob.key: knob.name for knob in design.knobs}
    pairs = interactions(measured, list(names)) or interactions_alone(measured, list(names))
    for group, weights in pairs:
        label = " or ".join(" × ".join(names[key] for key in pair) for pair in group)
        yield label, _gains(model, _padded(weights[None], model), len(pairs))[0]


def _order_notes(order: int, knobs: int, measured: Sequence[frozenset[str]]) -> Iterator[str]:
    if order < knobs:
        singles = sum(len(combination) == 1 for combination in measured)
        yield (
            f"{len(measured)} of {2**knobs} combinations: the shares are exact if no more than {order} knobs interact; "
            "interactions of more knobs distort them"
            + (". The factors `alone` and `last` need further combinations" if singles < knobs else "")
        )


def _reason(design: Factorial, measured: Sequence[frozenset[str]]) -> str:
    missing = [
        name for name, combination in (("none", frozenset()), ("all", design.all_on)) if combination not in measured
    ]
    where = f"{design.engine}, {design.task}"
    if missing:
        return f"{where}: no result with {' or '.join(missing)} of the {len(design.knobs)} knobs on"
    return (
        f"{where}: {len(measured)} of {2 ** len(design.knobs)} combinations have a result, too few to separate the "
        "knobs' shares; measure the rest, or the half with an even number of knobs on"
    )


# Weighted sums -------------------------------------------------------------------------------------------------------


def _padded(weights: FloatArray, model: _Model) -> FloatArray:
    """Extend the combinations' weights with a zero for the baseline, if there is one."""
    return np.pad(weights, ((0, 0), (0, len(model.places) - weights.shape[1])))


def _gains(model: _Model, weights: FloatArray, comparisons: int) -> list[Change]:
    return [Change(*map(float, column)) for column in model.contest.gains(model.of_all(weights), comparisons).T]


def _shares(model: _Model, rows: FloatArray, total: FloatArray) -> list[Change]:
    """Return each row's share of the whole with Fieller's (1954) interval: all s for which row - s·total may be 0.

    All are NaN if the whole may be zero, since then shares are undefined. The value is NaN too if the whole is close to
    zero, where any part would be a large multiple.
    """
    (change,) = _gains(model, total[None], 1)
    if change.low <= 1 <= change.high:
        return [NO_CHANGE] * len(rows)
    sums, size = rows @ model.effects, float(total @ model.effects)
    if not np.abs(sums).max(initial=0.0) < WIDEST_SHARE * abs(size):
        return [NO_CHANGE] * len(rows)
    values = sums / size

    def excess(share: FloatArray) -> FloatArray:
        """Return |row - share·total| minus half its interval; positive if the share can be ruled out."""
        weights = model.of_all(rows - share[:, None] * total)
        sums, half = model.contest.model.contrasts(weights, model.contest.model.sidak(len(rows)))
        return np.asarray(np.abs(sums) - half, np.float64)

    ends = []
    for far in (-WIDEST_SHARE, WIDEST_SHARE):
        inside, outside = values.copy(), np.full_like(values, far)
        bounded = excess(outside) > 0
        for _ in range(HALVINGS):
            middle = (inside + outside) / 2
            beyond = excess(middle) > 0
            outside, inside = np.where(beyond, middle, outside), np.where(beyond, inside, middle)
        ends.append(np.where(bounded, outside, np.nan))
    low, high = (np.where(np.isfinite(ends).all(axis=0), end, np.nan) for end in ends)
    return [Change(*map(float, column)) for column in zip(values, low, high, strict=True)]
