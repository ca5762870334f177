"""The points of one run or several, with the trials behind them, and the questions in which they are rivals."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from analysis.answers.question import common_percentiles
from analysis.compare.matching import QUESTION_PREFIXES, machines, question_digests
from analysis.compare.sides import trial_settings
from analysis.headline import ASKED
from analysis.points import SIZE, Layout
from analysis.quantities import LabelledColumn, labelled_column
from analysis.results import RunResults
from analysis.statistics.comparison import Trials
from analysis.statistics.estimates import merits
from analysis.statistics.ratios import Positions, positions
from analysis.statistics.standings import GPUS, question_columns
from sweep.base.records import LOAD_COLUMNS

COST, THROUGHPUT, LATENCY = "cost_per_million_tokens", "output_throughput", "e2el_p50"
OF_A_LOAD = frozenset([*LOAD_COLUMNS, SIZE, *(f"load.{column}" for column in LOAD_COLUMNS)])


@dataclass(frozen=True)
class Measured:
    """The points with a result of all runs together.

    `points` have `name` (the configuration), `at` (the x axis), `by_load` (x is the size of a load), and `run`.
    `of_a_load` are the columns of one run that say the size of a load, or follow from it.
    """

    points: pd.DataFrame
    rows: pd.DataFrame  # of the trials
    trials: Trials
    runs: int
    of_a_load: frozenset[str]

    @cached_property
    def rows_at(self) -> list[Positions]:
        """The positions of each point's trials."""
        return positions(self.trials.point, len(self.points))

    @cached_property
    def percentiles(self) -> tuple[float, ...]:
        """The percentiles that an SLO can be on."""
        return common_percentiles(self.rows)

    def groups(self, any_load: bool) -> Iterator[pd.DataFrame]:
        """The points of each question; with `any_load` they may differ in the size of their load."""
        keys = question_columns(self.points)
        if self.runs > 1:
            keys = ["conditions_at_any_load" if any_load else "conditions"]
        if any_load:
            keys = [key for key in keys if key not in self.of_a_load]
        for _, group in self.points.groupby(keys, sort=False, dropna=False):
            yield group

    def rows_of(self, point: int, columns: Sequence[str]) -> pd.DataFrame:
        """The trials of a point, of which these columns: a row is wide."""
        return self.rows[list(columns)].iloc[self.rows_at[point]]


def measured_points(runs: Sequence[RunResults]) -> Measured:
    """The points of these runs that have a result; a name that several runs have gets the run's."""
    every, rows = every_point(runs), placed_trials(runs)
    present = (every["n"] > 0).to_numpy()
    place = np.cumsum(present) - 1  # of a point among those with a result
    launch = rows["launch"].astype(object)
    trials = Trials(
        place[rows["point"].to_numpy(np.int64)],
        rows["replicate"].fillna(0).to_numpy(np.int64),
        launch.where(launch.notna(), None).to_numpy(object),
    )
    measured = every[present].reset_index(drop=True)
    of_a_load = [_of_a_load(results.layout) for results in runs]
    if len(runs) > 1:
        measured["name"] = names_with_runs(measured)
        of_points = [of_a_load[order] for order in measured["order"]]
        measured = measured.assign(**_conditions(rows, trials, of_points))
    return Measured(measured, rows, trials, len(runs), of_a_load[0])


def _of_a_load(layout: Layout) -> frozenset[str]:
    """The columns that say the size of a load, and those that follow from it: what is zipped with the load's axis."""
    return OF_A_LOAD.union(layout.zipped if layout.x in OF_A_LOAD else ())


def every_point(runs: Sequence[RunResults]) -> pd.DataFrame:
    """The points of these runs one after another, with `name`, `at`, `by_load`, `run` and its place, `order`."""
    named = zip(runs, run_names(runs), strict=True)
    points = [_named(results.layout, name).assign(order=index) for index, (results, name) in enumerate(named)]
    return pd.concat(points, ignore_index=True)


def placed_trials(runs: Sequence[RunResults]) -> pd.DataFrame:
    """The trials with a result of these runs one after another, with their `point` among those of `every_point`."""
    rows, begin = [], 0
    for results in runs:
        placed = results.layout.placed(results.run.ok)
        rows.append(placed.assign(point=placed["point"] + begin))
        begin += len(results.points)
    return pd.concat(rows, ignore_index=True)


def names_with_runs(points: pd.DataFrame) -> "pd.Series[str]":
    """The names of the points of several runs: one that several have gets the run's."""
    several = points.groupby("name")["order"].transform("nunique") > 1
    return points["name"].where(~several, points["name"] + " (" + points["run"] + ")")


def run_names(runs: Sequence[RunResults]) -> list[str]:
    """Names that tell the runs apart: those of their experiments, else of their folders, else the folders' paths."""
    folders = [results.run.paths.out for results in runs]
    for names in ([results.run.name for results in runs], [folder.name for folder in folders]):
        if len(set(names)) == len(names):
            return names
    return [str(results.run.place) for results in runs]


def _named(layout: Layout, run: str) -> pd.DataFrame:
    """The points with `name`, `at`, `by_load` and `run`."""
    points = layout.points
    at = [layout.load(point) for _, point in points.iterrows()]
    names = list(points["line"])
    by_load = layout.x in OF_A_LOAD
    if layout.x and not by_load and layout.x.split(".")[0] not in ASKED:  # a setting of the engine
        names = [", ".join(filter(None, pair)) for pair in zip(names, at, strict=True)]
        at = [""] * len(at)
    return points.assign(name=names, at=at, by_load=by_load, run=run)


def _conditions(rows: pd.DataFrame, trials: Trials, of_a_load: Sequence[frozenset[str]]) -> dict[str, list[str]]:
    """The conditions of each point as JSON: model, workload and load with their files, the protocol and the machine."""
    rows_at = positions(trials.point, len(of_a_load))
    equal = [_equal_settings(rows.iloc[of_point[:1]]) for of_point in rows_at]
    at_any = [
        {key: value for key, value in each.items() if key not in sizes}
        for each, sizes in zip(equal, of_a_load, strict=True)
    ]
    files = rows[["digests"]]  # a row is wide
    digests = [question_digests(files.iloc[of_point]) for of_point in rows_at]
    return {
        "conditions": _condition_texts(equal, digests),
        "conditions_at_any_load": _condition_texts(at_any, digests),
    }


def _equal_settings(first: pd.DataFrame) -> dict[str, Any]:
    """The settings in which rivals agree, of a point's first row."""
    settings = trial_settings(first.to_dict("records")[0])
    equal = {key: value for key, value in settings.items() if key.startswith(QUESTION_PREFIXES)}
    equal |= {"protocol": str(first["protocol"].iloc[0]), "machine": sorted(machines(first))}
    return equal | {GPUS: settings.get(GPUS)}


def _condition_texts(settings: Sequence[dict[str, Any]], digests: Sequence[dict[str, str]]) -> list[str]:
    """The settings of each point as JSON, with the digests of a part of which several are known with these settings.

    With one alone, a point whose digest is not known is taken to have it, as a comparison of two runs takes it.
    """
    texts = [_settings_text(each) for each in settings]
    known: dict[tuple[str, str], set[str]] = {}
    for text, of_point in zip(texts, digests, strict=True):
        for part, digest in of_point.items():
            known.setdefault((text, part), set()).add(digest)
    return [
        _settings_text(each | {f"files of {part}": of_point[part] for part in of_point if len(known[text, part]) > 1})
        for each, text, of_point in zip(settings, texts, digests, strict=True)
    ]


def _settings_text(settings: dict[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True, default=str)


def objective(group: pd.DataFrame, any_load: bool) -> LabelledColumn | None:
    """The quantity that decides: the cost if every point has one, else throughput.

    At one load, throughput and cost below saturation are what the load asked for: there the latency decides.
    """
    figures = group if any_load else merits(group)
    for column in (COST, THROUGHPUT):
        if column in figures and figures[column].notna().all() and (figures[column] > 0).all():
            return labelled_column(column)
    return labelled_column(LATENCY) if LATENCY in group and group[LATENCY].notna().any() else None


def title(group: pd.DataFrame, any_load: bool) -> str:
    """The task in words, with the load if it is asked."""
    first = group.iloc[0]
    task = first["panel"] if group["panel"].nunique() == 1 else f"{first['workload']}, {first['load']}"
    machine = first.get("accelerator") if group["n"].sum() and "accelerator" in group else None
    at = "" if any_load and first["by_load"] else first["at"]
    in_panel = isinstance(machine, str) and machine not in str(task)
    return ", ".join(str(part) for part in (task, at, machine if in_panel else "") if part)
