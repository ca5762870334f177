"""Layout of an experiment's figures: each axis of the grid becomes the x axis, a line or a panel.

Engines and their settings are lines, workloads and loads are panels, and the axis with the most values is x; with
several kinds of load each panel has its own. A figure has room for a limited number of lines and panels.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd
from pandas.api.types import is_numeric_dtype

from analysis.headline import ASKED
from analysis.load import Run
from analysis.statistics.ratios import is_baseline
from analysis.statistics.winners import best
from analysis.summary import key_columns
from sweep.records import LOAD_COLUMNS

LOAD_LABELS = {"batch_size": "Batch size", "concurrency": "Concurrency", "rate": "Request rate (requests/s)"}
SIZE = "load_size"  # the value of the one of LOAD_COLUMNS that a point has, if loads are of several kinds
MOST_LINES = 21  # distinguishable by colour, marker and dash
MOST_PANELS = 24
MOST_LISTED = 12  # lines in a sentence


@dataclass(frozen=True)
class PointLayout:
    """The names of points: each has a line, a panel and a place on the x axis."""

    points: pd.DataFrame  # the summary, with `line` and `panel`
    lines: list[str]  # in the plan's order: a line looks the same in every figure of a run
    x: str | None  # the column of points and placed trials that is the x axis; None if nothing numeric varies
    x_labels: dict[str, str]  # label of x by panel; a panel whose load has no size (a trace) has none

    def load(self, point: "pd.Series[Any]") -> str:
        """The value of x at a point, e.g. `batch size 8`; empty if nothing numeric varies."""
        label = self.x_labels.get(point["panel"])
        if not self.x or not label or pd.isna(point[self.x]):
            return ""
        return f"{label[0].lower()}{label[1:]} {point[self.x]:g}"

    @property
    def x_label(self) -> str:
        """The labels of x in all panels, e.g. `Batch size or concurrency`; empty if there is none."""
        first, *rest = dict.fromkeys(self.x_labels.values()) or [""]
        return " or ".join([first, *(label.lower() for label in rest)])

    def describe(self, point: "pd.Series[Any]") -> str:
        """A point in a few words, e.g. `vllm, qa, batch size 8`."""
        return ", ".join(part for part in (point["line"], point["panel"], self.load(point)) if part)


@dataclass(frozen=True)
class Layout(PointLayout):
    """The place of each point of a run in its figures."""

    trials: pd.DataFrame  # `line`, `panel` and `point` (its position) of each trial, by the index of the run's trials
    zipped: list[str]  # the numeric columns whose value follows from x in each workload and load: zipped axes
    coloured: list[str]  # the lines that are drawn, each in a colour of its own: at most MOST_LINES

    def axis(self, panel: str) -> str:
        """The label of a panel's x axis."""
        points = self.points[self.points["panel"] == panel]
        label = self.x_labels.get(panel)
        same = ("workload.num_requests",) if label == "Request count" else ()
        zipped = [_spaced(key) for key in self.zipped if points[key].nunique() > 1 and key not in same]
        return self.x_labels.get(panel, "") + (f" (with {', '.join(zipped)})" if zipped else "")

    @cached_property
    def panels(self) -> list[str]:
        return sorted(self.points["panel"].unique())

    @property
    def visible_panels(self) -> list[str]:
        return self.panels[:MOST_PANELS]

    def placed(self, trials: pd.DataFrame) -> pd.DataFrame:
        """Some trials of the run, with their `line`, `panel` and `point`."""
        return trials.join(self.trials)

    def visible(self, trials: pd.DataFrame) -> pd.DataFrame:
        """The trials that a figure has room for."""
        placed = self.placed(trials)
        return placed[placed["line"].isin(self.coloured) & placed["panel"].isin(self.visible_panels)]


def arrange(run: Run, points: pd.DataFrame) -> Layout:
    """The layout of a run's points (`summary.summarise`)."""
    keys = key_columns(run)
    varying = [key for key in keys if points[key].nunique(dropna=False) > 1]
    if "ladder" in varying:  # its steps name the settings that they change
        by_step = points.groupby("ladder", dropna=False)
        varying = [key for key in varying if not key.startswith("backend.") or _differs(by_step[key])]
    x = _x_column(points, varying)
    if x in LOAD_COLUMNS:
        varying = [key for key in varying if key.removeprefix("load.") not in LOAD_COLUMNS]
        if points[x].isna().any():
            sizes = points[[*LOAD_COLUMNS]].astype("float64").bfill(axis="columns")
            points, x = points.assign(**{SIZE: sizes.iloc[:, 0]}), SIZE
    by_x = points.groupby(["workload", "load", x], dropna=False) if x else None
    zipped = [
        key
        for key in varying
        if by_x is not None and key != x and is_numeric_dtype(points[key]) and not _differs(by_x[key])
    ]
    rest = [key for key in varying if key != x and key not in zipped]
    of_task = [key for key in rest if key.split(".")[0] in ASKED]
    of_engine = [key for key in rest if key not in of_task]
    points = points.assign(panel=_names(points, of_task, "workload"), line=_names(points, of_engine, "backend"))
    placed = ["line", "panel", "point", *([SIZE] if x == SIZE else [])]
    positions = points.assign(point=range(len(points)))[[*keys, *placed]]
    trials = run.trials[keys].astype(points.dtypes[keys].to_dict()).merge(positions, on=keys, how="left")[placed]
    order = {name: index for index, name in enumerate(run.trials["backend"].unique())}
    by_engine = points.sort_values("backend", key=lambda names: names.map(order), kind="stable")
    lines = list(by_engine["line"].unique())
    return Layout(
        points=points,
        trials=trials.set_axis(run.trials.index),
        lines=lines,
        x=x,
        x_labels=_x_labels(points, x) if x else {},
        zipped=zipped,
        coloured=_coloured_lines(points, lines, run.baseline),
    )


def _coloured_lines(points: pd.DataFrame, lines: list[str], baseline: dict[str, Any]) -> list[str]:
    """All lines; if there are too many, those with the best figures, the baseline's, and an even choice of the rest."""
    if len(lines) <= MOST_LINES:
        return lines
    preferred = [*(result.point["line"] for result in best(points)), *points.loc[is_baseline(points, baseline), "line"]]
    first = list(dict.fromkeys(preferred))[: MOST_LINES // 3]
    rest = [line for line in lines if line not in first]
    chosen = {*first, *rest[:: math.ceil(len(rest) / (MOST_LINES - len(first)))]}
    return [line for line in lines if line in chosen]


def _x_column(points: pd.DataFrame, varying: list[str]) -> str | None:
    """The numeric column with the most values; the load first, then workloads, then engine flags.

    All points of a workload or load have it, or none: otherwise the lines of some engines would be silently missing.
    """
    numeric = [
        key
        for key in varying
        if is_numeric_dtype(points[key])
        and points[key].nunique() > 1
        and (key in LOAD_COLUMNS or not _differs(points[key].isna().groupby([points["workload"], points["load"]])))
    ]

    def preference(key: str) -> tuple[bool, bool, int]:
        return key in LOAD_COLUMNS, key.startswith(("workload.", "load.")), points[key].nunique(dropna=False)

    return max(numeric, key=preference, default=None)


def _x_labels(points: pd.DataFrame, x: str) -> dict[str, str]:
    """The label of x by panel, for panels in which some point has x."""
    labels: dict[str, str] = {}
    for column in LOAD_COLUMNS if x == SIZE else [x]:
        label = LOAD_LABELS.get(column, _spaced(column).capitalize())
        if x == "batch_size" and _one_batch(points):
            label = "Request count"
        for panel in points.loc[points[column].notna(), "panel"].unique():
            labels[panel] = f"{labels[panel]} or {label.lower()}" if panel in labels else label
    return labels


def _one_batch(points: pd.DataFrame) -> bool:
    """Return whether every trial is one batch of all its requests: what varies is then how many there are."""
    counts = points.get("workload.num_requests")
    return counts is not None and bool((counts == points["batch_size"]).all())


def _differs(values: Any) -> bool:
    """Return whether the grouped values differ within any group."""
    return bool((values.nunique(dropna=False) > 1).any())


def _names(points: pd.DataFrame, columns: list[str], first: str) -> list[str]:
    """The name of each point: `first` and the ladder's step by value alone, other columns as key=value."""
    columns = [key for key in columns if key != first]
    prefixes = ["" if key == "ladder" else f"{_spaced(key)}=" for key in columns]

    def name(values: Iterable[Any]) -> str:
        parts = [f"{prefix}{value}" for prefix, value in zip(prefixes, values, strict=True) if pd.notna(value)]
        return ", ".join(parts)

    rest = map(name, points[columns].astype(object).itertuples(index=False, name=None))
    return [", ".join(filter(None, (str(value), suffix))) for value, suffix in zip(points[first], rest, strict=True)]


def listed(lines: Sequence[str]) -> str:
    """Lines joined for a sentence: if there are many, the first ones and the number of the rest."""
    more = len(lines) - MOST_LISTED
    return ", ".join(lines) if more <= 1 else f"{', '.join(lines[:MOST_LISTED])} and {more:,} others"


def _spaced(key: str) -> str:
    return key.rpartition(".")[2].replace("_", " ")
