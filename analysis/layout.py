"""What varies in an experiment, and so where it goes in a figure: along the axis, as a line, or as a panel.

Engines and their settings are lines, workloads are panels, and the axis that varies most is the abscissa. A figure has
room for so many of each; what it leaves out, it says.
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
    x: str | None  # the column that is the abscissa; None if nothing numeric varies
    x_label: str
    distinct: list[str]  # the lines with a colour of their own: at most MOST_LINES

    def load(self, point: "pd.Series[Any]") -> str:
        """Where a point stands on the abscissa, e.g. `batch size 8`; empty if nothing numeric varies."""
        return (
            f"{self.x_label[0].lower()}{self.x_label[1:]} {point[self.x]:g}"
            if self.x and pd.notna(point[self.x])
            else ""
        )

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
    rest = [key for key in varying if key != x]
    asked = [key for key in rest if key.split(".")[0] in ASKED and key not in LOAD_COLUMNS]
    own = [key for key in rest if key not in asked]
    points = points.assign(panel=_names(points, asked, "workload"), line=_names(points, own, "backend"))
    trials = run.trials[keys].merge(points[[*keys, "line", "panel"]], on=keys, how="left")[["line", "panel"]]
    order = {name: index for index, name in enumerate(run.trials["backend"].unique())}
    by_engine = points.sort_values("backend", key=lambda names: names.map(order), kind="stable")
    lines = list(by_engine["line"].unique())
    return Layout(
        points=points,
        trials=trials.set_axis(run.trials.index),
        keys=keys,
        lines=lines,
        x=x,
        x_label=_LABELS.get(x or "", _words(x or "").capitalize()),
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
    """The numeric column with the most values, the load before others; never an engine's flag against a load."""
    numeric = [key for key in varying if pd.api.types.is_numeric_dtype(points[key]) and points[key].nunique() > 1]
    for preferred in (
        [key for key in numeric if key in LOAD_COLUMNS],
        [key for key in numeric if key.split(".")[0] in ("workload", "load")],
        numeric,
    ):
        if preferred:
            return max(preferred, key=lambda key: points[key].drop_duplicates().size)
    return None


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
