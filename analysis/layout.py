"""What varies in an experiment, and so where it goes in a figure: along the axis, as a line, or as a panel.

Engines and their settings are lines, workloads are panels, and the axis that varies most is the abscissa.
"""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.load import Run
from analysis.summary import ASKED, key_columns

_LOAD = ("batch_size", "concurrency", "rate")
_LABELS = {"batch_size": "Batch size", "concurrency": "Concurrency", "rate": "Request rate (requests/s)"}


@dataclass(frozen=True)
class Layout:
    """Where the points of a run stand in its figures."""

    points: pd.DataFrame  # the summary, with `line` and `panel`
    keys: list[str]  # the columns that tell points apart
    lines: list[str]  # in the plan's order: a line looks the same in every figure of a run
    x: str | None  # the column that is the abscissa; None if nothing numeric varies
    x_label: str

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

    @property
    def panels(self) -> list[str]:
        return sorted(self.points["panel"].unique())


def arrange(run: Run, points: pd.DataFrame) -> Layout:
    """The layout of a run's points (`summary.summarise`)."""
    keys = key_columns(run)
    varying = [key for key in keys if points[key].nunique(dropna=False) > 1]
    if "ladder" in varying:  # its steps name the settings that they change
        varying = [key for key in varying if not key.startswith("backend.")]
    x = _abscissa(points, varying)
    rest = [key for key in varying if key != x]
    asked = [key for key in rest if key.split(".")[0] in ASKED and key not in _LOAD]
    own = [key for key in rest if key not in asked]
    points = points.assign(
        panel=[_name(row, asked, "workload") for _, row in points.iterrows()],
        line=[_name(row, own, "backend") for _, row in points.iterrows()],
    )
    order = {name: index for index, name in enumerate(run.trials["backend"].unique())}
    by_engine = points.sort_values("backend", key=lambda names: names.map(order), kind="stable")
    return Layout(points, keys, list(by_engine["line"].unique()), x, _LABELS.get(x or "", _words(x or "").capitalize()))


def _abscissa(points: pd.DataFrame, varying: list[str]) -> str | None:
    """The numeric column with the most values, the load before others; never an engine's flag against a load."""
    numeric = [key for key in varying if pd.api.types.is_numeric_dtype(points[key]) and points[key].nunique() > 1]
    for preferred in (
        [key for key in numeric if key in _LOAD],
        [key for key in numeric if key.split(".")[0] in ("workload", "load")],
        numeric,
    ):
        if preferred:
            return max(preferred, key=lambda key: points[key].drop_duplicates().size)
    return None


def _name(row: "pd.Series[Any]", columns: list[str], first: str) -> str:
    """`first` and steps of a ladder by their value alone, other columns as key=value."""
    parts = [str(row[first])]
    for key in columns:
        if key != first and pd.notna(row[key]):
            parts.append(str(row[key]) if key == "ladder" else f"{_words(key)}={row[key]}")
    return ", ".join(parts)


def _words(key: str) -> str:
    return key.rpartition(".")[2].replace("_", " ")
