"""Names a run's points: each has a line, a panel and a position on the x axis."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

LOAD_LABELS = {"batch_size": "Batch size", "concurrency": "Concurrency", "rate": "Request rate (requests/s)"}
SIZE = "load_size"  # value of a point's load column, if there are several kinds of load
MOST_PANELS = 24
MOST_LISTED = 12  # maximum lines listed in a sentence


@dataclass(frozen=True)
class PointLayout:
    """The names of points. Each point has a line, a panel and a position on the x axis."""

    points: pd.DataFrame  # the summary, with `line` and `panel`
    lines: list[str]  # in the plan's order, so that a line looks the same in every chart
    x: str | None  # column on the x axis, in points and placed trials; None if no number varies
    x_labels: dict[str, str]  # label of x by panel, except for panels whose load has no size (a trace)

    def load(self, point: "pd.Series[Any]") -> str:
        """Return a point's position on x, e.g. `batch size 8`; empty if no number varies."""
        label = self.x_labels.get(point["panel"])
        if not self.x or not label or pd.isna(point[self.x]):
            return ""
        return f"{label[0].lower()}{label[1:]} {point[self.x]:g}"

    @property
    def x_label(self) -> str:
        """The labels of x in all panels, e.g. `Batch size or concurrency`; empty if there is no x."""
        first, *rest = dict.fromkeys(self.x_labels.values()) or [""]
        return " or ".join([first, *(label.lower() for label in rest)])

    def describe(self, point: "pd.Series[Any]") -> str:
        """Describe a point in a few words, e.g. `vllm, qa, batch size 8`."""
        return ", ".join(part for part in (point["line"], point["panel"], self.load(point)) if part)


@dataclass(frozen=True)
class Layout(PointLayout):
    """The layout of a run's points in its charts."""

    trials: pd.DataFrame  # `line`, `panel` and `point` (its position) of each trial, by the index of the run's trials
    zipped: list[str]  # zipped axes: numeric columns that follow from x within a workload and load
    coloured: list[str]  # the lines to draw, with different colours; at most MOST_LINES

    def axis(self, panel: str) -> str:
        """Return the label of a panel's x axis."""
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
        """Return these trials with their `line`, `panel` and `point`."""
        return trials.join(self.trials)

    def visible(self, trials: pd.DataFrame) -> pd.DataFrame:
        """Return the trials whose lines and panels fit into a chart."""
        placed = self.placed(trials)
        return placed[placed["line"].isin(self.coloured) & placed["panel"].isin(self.visible_panels)]


def listed(lines: Sequence[str], most: int = MOST_LISTED) -> str:
    """Join lines for a sentence. If there are many, list the first and count the rest."""
    more = len(lines) - most
    return ", ".join(lines) if more <= 1 else f"{', '.join(lines[:most])} and {more:,} others"


def spaced(key: str) -> str:
    """Return the last part of a dotted key in words, e.g. `max num seqs` for backend.flags.max_num_seqs."""
    return key.rpartition(".")[2].replace("_", " ")
