"""The points of one run or several, with the trials behind them, and the questions in which they are rivals."""

from __future__ import annotations  # RunResults is made of what is here

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.answers.question import common_percentiles
from analysis.compare.matching import QUESTION_PREFIXES, machines, question_digests
from analysis.compare.sides import trial_settings
from analysis.headline import ASKED
from analysis.plotting.layout import SIZE, Layout
from analysis.quantities import LabelledColumn, labelled_column
from analysis.statistics.comparison import Trials
from analysis.statistics.ratios import Positions, positions
from analysis.statistics.standings import GPUS, question_columns
from analysis.summary import merits
from sweep.records import LOAD_COLUMNS

if TYPE_CHECKING:
    from analysis.results import RunResults

COST, THROUGHPUT, LATENCY = "cost_per_million_tokens", "output_throughput", "e2el_p50"
OF_A_LOAD = {*LOAD_COLUMNS, SIZE, *(f"load.{column}" for column in LOAD_COLUMNS)}


@dataclass(frozen=True)
class Measured:
    """The points with a result of all runs together.

    `points` have `name` (the configuration), `at` (the x axis), `by_load` (x is the size of a load), and `run`.
    """

    points: pd.DataFrame
    rows: pd.DataFrame  # of the trials
    trials: Trials
    runs: int

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
            keys = [key for key in keys if key not in OF_A_LOAD]
        for _, group in self.points.groupby(keys, sort=False, dropna=False):
            yield group

    def rows_of(self, point: int, columns: Sequence[str]) -> pd.DataFrame:
        """The trials of a point, of which these columns: a row is wide."""
        return self.rows[list(columns)].iloc[self.rows_at[point]]


def measured_points(runs: Sequence[RunResults]) -> Measured:
    """The points of these runs; a name that several runs have gets the run's."""
    points, rows, numbers = [], [], []
    begin = 0
    for index, (results, run_name) in enumerate(zip(runs, _run_names(runs), strict=True)):
        layout = results.layout
        placed = layout.placed(results.run.ok)
        present = np.flatnonzero(layout.points["n"] > 0)
        number = pd.Series(range(begin, begin + len(present)), present)
        points.append(_named(layout, run_name).iloc[present].assign(order=index))
        rows.append(placed)
        numbers.append(placed["point"].map(number).to_numpy(np.int64))
        begin += len(present)
    every, all_rows = pd.concat(points, ignore_index=True), pd.concat(rows, ignore_index=True)
    launch = all_rows["launch"].astype(object)
    trials = Trials(
        np.concatenate(numbers),
        all_rows["replicate"].fillna(0).to_numpy(np.int64),
        launch.where(launch.notna(), None).to_numpy(object),
    )
    if len(runs) > 1:
        several = every.groupby("name")["order"].transform("nunique") > 1
        every["name"] = every["name"].where(~several, every["name"] + " (" + every["run"] + ")")
        every = every.assign(**_conditions(all_rows, trials, len(every)))
    return Measured(every, all_rows, trials, len(runs))


def _run_names(runs: Sequence[RunResults]) -> list[str]:
    """Names that tell the runs apart: those of their experiments, else of their folders, else the folders' paths."""
    folders = [results.run.paths.out for results in runs]
    for names in ([results.run.name for results in runs], [folder.name for folder in folders]):
        if len(set(names)) == len(names):
            return names
    return list(map(str, folders))


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


def _conditions(rows: pd.DataFrame, trials: Trials, points: int) -> dict[str, list[str]]:
    """The conditions of each point as text: model, workload and load with their files, the protocol and the machine."""
    rows_at = positions(trials.point, points)
    equal = [_equal_settings(rows.iloc[of_point[:1]]) for of_point in rows_at]
    at_any = [{key: value for key, value in each.items() if key not in OF_A_LOAD} for each in equal]
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
    """The settings of each point as text, with the digests of a part of which several are known with these settings.

    With one alone, a point whose digest is not known is taken to have it, as a comparison of two runs takes it.
    """
    texts = [json.dumps(each, sort_keys=True, default=str) for each in settings]
    known: dict[tuple[str, str], set[str]] = {}
    for text, of_point in zip(texts, digests, strict=True):
        for part, digest in of_point.items():
            known.setdefault((text, part), set()).add(digest)
    return [
        text + "".join(f" {part} {digest}" for part, digest in of_point.items() if len(known[text, part]) > 1)
        for text, of_point in zip(texts, digests, strict=True)
    ]


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
