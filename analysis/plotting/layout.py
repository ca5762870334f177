"""What varies in an experiment, and so where it goes in a figure: along the axis, as a line, or as a panel.

Engines and their settings are lines, workloads and loads are panels, and the axis that varies most is the abscissa; of
several kinds of load each panel has its own. A figure has room for so many of each; what it leaves out, it says.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from analysis.load import Run
from analysis.summary import ASKED, best, is_baseline, key_columns
from sweep.records import LOAD_COLUMNS

_LABELS = {"batch_size": "Batch size", "concurrency": "Concurrency", "rate": "Request rate (requests/s)"}
_SIZE = "load_size"  # whichever of LOAD_COLUMNS a point has, where the loads are of several kinds
MOST_LINES = 21  # that can be told apart by colour, marker and dash
MOST_PANELS = 24
MOST_LISTED = 12  # lines in a sentence


@dataclass(frozen=True)
class Layout:
    """Where the points of a run stand in its figures."""

    points: pd.DataFrame  # the summary, with `line` and `panel`
    trials: pd.DataFrame  # `line` and `panel` of each trial, by the index of the run's trials
    keys: list[str]  # the columns that tell points apart
    lines: list[str]  # in the plan's order: a line looks the same in every figure of a run
    x: str | None  # the column of points and placed trials that is the abscissa; None if nothing numeric varies
    x_labels: dict[str, str]  # what the abscissa is in each panel; a panel whose load has no size (a trace) has none
    in_step: list[str]  # the columns that change with the abscissa and only with it: zipped axes
    distinct: list[str]  # the lines with a colour of their own: at most MOST_LINES

    def load(self, point: "pd.Series[Any]") -> str:
        """Where a point stands on the abscissa, e.g. `batch size 8`; empty if nothing numeric varies."""
        label = self.x_labels.get(point["panel"])
        return f"{label[0].lower()}{label[1:]} {point[self.x]:g}" if self.x and label else ""

    @property
    def x_label(self) -> str:
        """What the abscissa is in some panel or other, e.g. `Batch size or concurrency`; empty if there is none."""
        first, *others = dict.fromkeys(self.x_labels.values()) or [""]
        return " or ".join([first, *(label.lower() for label in others)])

    @property
    def x_is_load(self) -> bool:
        return self.x in (*LOAD_COLUMNS, _SIZE)

    def axis(self, panel: str) -> str:
        """The label of a panel's abscissa."""
        here = self.points[self.points["panel"] == panel]
        others = [_words(key) for key in self.in_step if here[key].nunique() > 1]
        return self.x_labels.get(panel, "") + (f" (with {', '.join(others)})" if others else "")

    def describe(self, point: "pd.Series[Any]") -> str:
        """A point in a few words, e.g. `vllm, qa, batch size 8`."""
        return ", ".join(part for part in (point["line"], point["panel"], self.load(point)) if part)

    @cached_property
    def panels(self) -> list[str]:
        return sorted(self.points["panel"].unique())

    @property
    def drawn_panels(self) -> list[str]:
        return self.panels[:MOST_PANELS]

    def placed(self, trials: pd.DataFrame) -> pd.DataFrame:
        """Some trials of the run, with their `line` and `panel`."""
        return trials.join(self.trials)

    def drawn(self, trials: pd.DataFrame) -> pd.DataFrame:
        """Those of them that a figure has room for."""
        placed = self.placed(trials)
        return placed[placed["line"].isin(self.distinct) & placed["panel"].isin(self.drawn_panels)]


def arrange(run: Run, points: pd.DataFrame) -> Layout:
    """The layout of a run's points (`summary.summarise`)."""
    keys = key_columns(run)
    varying = [key for key in keys if points[key].nunique(dropna=False) > 1]
    if "ladder" in varying:  # its steps name the settings that they change
        by_step = points.groupby("ladder", dropna=False)
        varying = [key for key in varying if not key.startswith("backend.") or _differs(by_step[key])]
    x = _abscissa(points, varying)
    if x in LOAD_COLUMNS:
        varying = [key for key in varying if key.removeprefix("load.") not in LOAD_COLUMNS]
        if points[x].isna().any():
            points = points.assign(
                **{_SIZE: points[[*LOAD_COLUMNS]].astype("float64").bfill(axis="columns").iloc[:, 0]}
            )
            x = _SIZE
    in_step = [key for key in varying if x and key != x and _is_in_step(points, x, key)]
    rest = [key for key in varying if key != x and key not in in_step]
    asked = [key for key in rest if key.split(".")[0] in ASKED]
    own = [key for key in rest if key not in asked]
    points = points.assign(panel=_names(points, asked, "workload"), line=_names(points, own, "backend"))
    placed = ["line", "panel", *([_SIZE] if x == _SIZE else [])]
    trials = run.trials[keys].merge(points[[*keys, *placed]], on=keys, how="left")[placed]
    order = {name: index for index, name in enumerate(run.trials["backend"].unique())}
    by_engine = points.sort_values("backend", key=lambda names: names.map(order), kind="stable")
    lines = list(by_engine["line"].unique())
    return Layout(
        points=points,
        trials=trials.set_axis(run.trials.index),
        keys=keys,
        lines=lines,
        x=x,
        x_labels=_x_labels(points, x) if x else {},
        in_step=in_step,
        distinct=_distinct(points, lines, run.baseline),
    )


def _distinct(points: pd.DataFrame, lines: list[str], baseline: dict[str, Any]) -> list[str]:
    """All lines, or of too many those of the best figures, those of the baseline, and others evenly from the plan."""
    if len(lines) <= MOST_LINES:
        return lines
    known = [*(found.point["line"] for found in best(points)), *points.loc[is_baseline(points, baseline), "line"]]
    first = list(dict.fromkeys(known))[: MOST_LINES // 3]
    others = [line for line in lines if line not in first]
    chosen = {*first, *others[:: math.ceil(len(others) / (MOST_LINES - len(first)))]}
    return [line for line in lines if line in chosen]


def _abscissa(points: pd.DataFrame, varying: list[str]) -> str | None:
    """The numeric column with the most values, the load before others; never an engine's flag against a load.

    A workload or a load may lack it, but not some points of one: their engine's line would be missing without a word.
    """
    numeric = [
        key
        for key in varying
        if pd.api.types.is_numeric_dtype(points[key])
        and points[key].nunique() > 1
        and (key in LOAD_COLUMNS or not _differs(_by_load(points, points[key].isna())))
    ]
    for preferred in (
        [key for key in numeric if key in LOAD_COLUMNS],
        [key for key in numeric if key.split(".")[0] in ("workload", "load")],
        numeric,
    ):
        if preferred:
            return max(preferred, key=lambda key: points[key].drop_duplicates().size)
    return None


def _is_in_step(points: pd.DataFrame, x: str, key: str) -> bool:
    """Whether a number is another where the abscissa is, and only there; in some workloads and loads it may be one."""
    if not pd.api.types.is_numeric_dtype(points[key]):
        return False  # it has a name, and is told by it
    pairs = points[["workload", "load", x, key]].drop_duplicates()
    count, values = _by_load(pairs, pairs[x]).size(), _by_load(pairs, pairs[key]).nunique(dropna=False)
    one_to_one = (count == values) & (count == _by_load(pairs, pairs[x]).nunique(dropna=False))
    return bool((one_to_one & (count > 1)).any() and (one_to_one | (values == 1)).all())


def _x_labels(points: pd.DataFrame, x: str) -> dict[str, str]:
    """By panel, of those where some point has the abscissa."""
    labels: dict[str, str] = {}
    for column in LOAD_COLUMNS if x == _SIZE else [x]:
        label = _LABELS.get(column, _words(column).capitalize())
        for panel in points.loc[points[column].notna(), "panel"].unique():
            labels[panel] = f"{labels[panel]} or {label.lower()}" if panel in labels else label
    return labels


def _by_load(points: pd.DataFrame, values: "pd.Series[Any]") -> Any:
    return values.groupby([points["workload"], points["load"]], dropna=False)


def _differs(values: Any) -> bool:
    """Whether the grouped values differ within a group."""
    return bool((values.nunique(dropna=False) > 1).any())


def _names(points: pd.DataFrame, columns: list[str], first: str) -> list[str]:
    """Of each point `first` and the steps of a ladder by their value alone, other columns as key=value."""
    columns = [key for key in columns if key != first]
    words = ["" if key == "ladder" else f"{_words(key)}=" for key in columns]

    def name(values: Iterable[Any]) -> str:
        parts = [f"{word}{value}" for word, value in zip(words, values, strict=True) if pd.notna(value)]
        return ", ".join(parts)

    rest = map(name, points[columns].astype(object).itertuples(index=False, name=None))
    return [", ".join(filter(None, (str(value), told))) for value, told in zip(points[first], rest, strict=True)]


def listed(lines: Sequence[str]) -> str:
    """Lines in a sentence: of many, the first and the number of others."""
    others = len(lines) - MOST_LISTED
    return ", ".join(lines) if others <= 1 else f"{', '.join(lines[:MOST_LISTED])} and {others:,} others"


def _words(key: str) -> str:
    return key.rpartition(".")[2].replace("_", " ")
