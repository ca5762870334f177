"""The points of one or several runs with their trials, grouped into sets of points to compare ("questions")."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from analysis.answers.slo_bounds import common_percentiles
from analysis.compare.questions import conditions
from analysis.headline import ASKED, COST, THROUGHPUT, one_price
from analysis.point_names import SIZE, Layout
from analysis.quantities import LabelledColumn, labelled_column
from analysis.results import RunResults
from analysis.statistics.comparison import Positions, positions
from analysis.statistics.contests import Contests, joined, question_columns
from analysis.statistics.estimates import merits
from sweep.base.records import LOAD_COLUMNS
from sweep.numbers.warnings import ResultWarning, Severity

LATENCY = "e2el_p50"
OF_A_LOAD = frozenset([*LOAD_COLUMNS, SIZE, *(f"load.{column}" for column in LOAD_COLUMNS)])


@dataclass(frozen=True)
class Measured:
    """All points with a result, from one or several runs.

    `points` have `name` (the configuration), `at` (the x axis), `by_load` (x is a load's size) and `run`. The index is
    the position in `every_point`. `of_a_load` lists the columns that hold a load's size or are determined by it.
    """

    points: pd.DataFrame
    rows: pd.DataFrame  # the trials' rows
    contests: Contests
    runs: Sequence[RunResults]
    of_a_load: frozenset[str]

    @cached_property
    def rows_at(self) -> list[Positions]:
        """The positions of each point's trials."""
        return positions(self.contests.trials.point, len(self.contests.question))

    @cached_property
    def percentiles(self) -> tuple[float, ...]:
        """The percentiles that an SLO can bound."""
        return common_percentiles(self.rows)

    def groups(self, any_load: bool) -> Iterator[pd.DataFrame]:
        """Yield the points of each question. With `any_load`, a question's loads may differ in size."""
        keys = question_columns(self.points)
        if len(self.runs) > 1:
            keys = ["conditions_at_any_load" if any_load else "conditions"]
        if any_load:
            keys = [key for key in keys if key not in self.of_a_load]
        for _, group in self.points.groupby(keys, sort=False, dropna=False):
            yield group

    @cached_property
    def _warnings(self) -> list[list[ResultWarning]]:
        """The warnings about each point, one per code."""
        return [results.point_warnings.get(index, []) for results in self.runs for index in range(len(results.points))]

    def codes(self, point: int, columns: Collection[str]) -> tuple[str, ...]:
        """Return the codes of warnings about a point's columns, the most serious first, without infos."""
        about = [each.kind for each in self._warnings[point] if each.kind.concerns(columns)]
        return tuple(kind.code for kind in about if kind.severity is not Severity.INFO)

    def rows_of(self, point: int, columns: Sequence[str]) -> pd.DataFrame:
        """Return these columns of a point's trials."""
        return self.rows[list(columns)].iloc[self.rows_at[point]]


def measured_points(runs: Sequence[RunResults]) -> Measured:
    """Return the points with a result. A name that occurs in several runs also gets the run's name."""
    every, rows = every_point(runs), placed_trials(runs)
    measured = every[every["n"] > 0]
    layouts = [results.layout for results in runs]  # an axis zipped with the load's size is determined by it
    of_a_load = [OF_A_LOAD.union(layout.zipped if layout.x in OF_A_LOAD else ()) for layout in layouts]
    if len(runs) > 1:
        of_points = [of_a_load[order] for order in measured["order"]]
        texts = conditions(rows, rows["point"].to_numpy(np.int64), list(measured.index), of_points)
        measured = measured.assign(name=names_with_runs(measured), **texts)
    return Measured(measured, rows, _contests(runs, measured, len(every)), runs, of_a_load[0])


def _contests(runs: Sequence[RunResults], measured: pd.DataFrame, count: int) -> Contests:
    """Return the contests (comparisons at one task and load) of all runs' points; a single run keeps its own."""
    if len(runs) == 1:
        return runs[0].contests
    question = -1 - np.arange(count)  # a point without a result gets a separate question
    question[measured.index] = pd.factorize(measured["conditions"])[0]
    return joined([results.contests for results in runs], question)


def every_point(runs: Sequence[RunResults]) -> pd.DataFrame:
    """Return the points of these runs in turn, with `name`, `at`, `by_load`, `run`, the run's position `order`, and
    why the race `dropped` it.
    """
    named = zip(runs, run_names(runs), strict=True)
    points = [
        _named(results.layout, name).assign(order=index, dropped=results.dropped)
        for index, (results, name) in enumerate(named)
    ]
    return pd.concat(points, ignore_index=True)


def placed_trials(runs: Sequence[RunResults]) -> pd.DataFrame:
    """Return these runs' trials that have a result, one run after another, with their `point` in `every_point`."""
    rows, begin = [], 0
    for results in runs:
        placed = results.layout.placed(results.run.ok)
        rows.append(placed.assign(point=placed["point"] + begin))
        begin += len(results.points)
    return pd.concat(rows, ignore_index=True)


def names_with_runs(points: pd.DataFrame) -> "pd.Series[str]":
    """Return the points' names. A name that occurs in several runs also gets the run's name."""
    several = points.groupby("name")["order"].transform("nunique") > 1
    return points["name"].where(~several, points["name"] + " (" + points["run"] + ")")


def run_names(runs: Sequence[RunResults]) -> list[str]:
    """Return unique names for runs: the experiments' names, else the folders' names, else the folders' paths."""
    folders = [results.run.paths.out for results in runs]
    for names in ([results.run.name for results in runs], [folder.name for folder in folders]):
        if len(set(names)) == len(names):
            return names
    return [str(results.run.place) for results in runs]


def _named(layout: Layout, run: str) -> pd.DataFrame:
    """Return the points with `name`, `at`, `by_load` and `run`."""
    points = layout.points
    at = [layout.load(point) for _, point in points.iterrows()]
    names = list(points["line"])
    by_load = layout.x in OF_A_LOAD
    if layout.x and not by_load and layout.x.split(".")[0] not in ASKED:  # an engine setting
        names = [", ".join(filter(None, pair)) for pair in zip(names, at, strict=True)]
        at = [""] * len(at)
    return points.assign(name=names, at=at, by_load=by_load, run=run)


def objective(group: pd.DataFrame, any_load: bool) -> LabelledColumn | None:
    """Return the quantity that decides the answer: throughput, or cost if all have one and prices differ.

    At a single load below saturation, throughput and cost are set by the load, so latency decides.
    """
    figures = group if any_load else merits(group)
    priced = COST in figures and not (THROUGHPUT in figures and one_price(figures))
    for column in (COST, THROUGHPUT) if priced else (THROUGHPUT, COST):
        if column in figures and figures[column].notna().all() and (figures[column] > 0).all():
            return labelled_column(column)
    return labelled_column(LATENCY) if LATENCY in group and group[LATENCY].notna().any() else None


def title(group: pd.DataFrame, any_load: bool) -> str:
    """Describe the task, with the load if it is part of the question."""
    first = group.iloc[0]
    task = first["panel"] if group["panel"].nunique() == 1 else f"{first['workload']}, {first['load']}"
    machine = first.get("accelerator") if group["n"].sum() and "accelerator" in group else None
    at = "" if any_load and first["by_load"] else first["at"]
    in_panel = isinstance(machine, str) and machine not in str(task)
    return ", ".join(str(part) for part in (task, at, machine if in_panel else "") if part)
