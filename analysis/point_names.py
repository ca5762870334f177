"""The points of a run with their names: the line, the panel and the place on the x axis of each."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

LOAD_LABELS = {"batch_size": "Batch size", "concurrency": "Concurrency", "rate": "Request rate (requests/s)"}
SIZE = "load_size"  # the value of the one of LOAD_COLUMNS that a point has, if loads are of several kinds
MOST_PANELS = 24
MOST_LISTED = 12  # lines in a sentence


@dataclass(frozen=True)
class PointLayout:
    """The names of points: each has a line, a panel and a position on the x axis."""

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
        """The labels of x in all panels, e.g. `Batch size or concurrency`; empty without one."""
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
        zipped = [spaced(key) for key in self.zipped if points[key].nunique() > 1 and key not in same]
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
        """The trials that fit into a figure."""
        placed = self.placed(trials)
        return placed[placed["line"].isin(self.coloured) & placed["panel"].isin(self.visible_panels)]


def listed(lines: Sequence[str]) -> str:
    """Lines joined for a sentence: if there are many, the first ones and the number of the others."""
    more = len(lines) - MOST_LISTED
    return ", ".join(lines) if more <= 1 else f"{', '.join(lines[:MOST_LISTED])} and {more:,} others"


def spaced(key: str) -> str:
    """The last part of a dotted key in words: `max num seqs` of backend.flags.max_num_seqs."""
    return key.rpartition(".")[2].replace("_", " ")
