"""Finds the design of each task's points: the knobs of a factorial or the steps of a ladder."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis.headline import ASKED
from analysis.point_names import Layout
from analysis.statistics.ratios import is_baseline
from sweep.base.config import ConfigError
from sweep.base.setting_labels import LADDER, PARENT, short

PARTS_OF_ENGINE = ("backend", "gateway")  # prefixes of axes that can be knobs
MOST_KNOBS = 10


class Unexplained(ConfigError):
    """The design of a run or task does not allow its gain to be attributed to settings."""


class Knob(NamedTuple):
    """A setting with two values. The first in the plan's order is "off", unless the baseline has the second."""

    key: str
    off: Any
    on: Any

    @property
    def name(self) -> str:
        return short(self.key)

    @property
    def change(self) -> str:
        """The change as text, e.g. `1 → 8`."""
        return f"{_setting_text(self.off)} → {_setting_text(self.on)}"


@dataclass(frozen=True)
class Factorial:
    """The points of one task with knobs off and on."""

    task: str
    engine: str
    knobs: tuple[Knob, ...]
    points: dict[frozenset[str], int]  # keys of the switched-on knobs -> the point's position
    baseline: int | None  # position of another engine's point, to which all points are compared
    notes: tuple[str, ...] = ()

    @property
    def all_on(self) -> frozenset[str]:
        return frozenset(knob.key for knob in self.knobs)


class Branch(NamedTuple):
    """A side step of a ladder, not on the path to the last step, and its parent step."""

    step: str
    parent: str
    point: int
    parent_point: int


@dataclass(frozen=True)
class Ladder:
    """The points of one task from a ladder's lowest step to its last."""

    task: str
    steps: tuple[str, ...]
    points: tuple[int, ...]
    branches: tuple[Branch, ...] = ()
    notes: tuple[str, ...] = ()


def designs(layout: Layout, baseline: dict[str, Any]) -> list[Factorial | Ladder]:
    """Return the designs of a run's tasks.

    Raises Unexplained if the run has neither a ladder nor engine settings with two values.
    """
    points = layout.points[layout.points["n"] > 0]
    tasks = [str(column) for column in points if str(column).split(".")[0] in ASKED]
    every: list[Factorial | Ladder] = []
    for _, group in points.groupby(tasks, dropna=False, sort=False):
        name = ", ".join(filter(None, (group["panel"].iloc[0], _load(layout, group.iloc[0]))))
        if LADDER in group and PARENT in group and group[LADDER].notna().any():
            every.append(_ladder(name, group))
        else:
            every += _factorials(name, group, layout, baseline)
    if not every:
        raise Unexplained(
            "nothing to explain: this run has neither a ladder nor engine settings with two values each; "
            "expected e.g. +experiment=decomposition or +experiment=serving_ladder (docs/explaining.md)"
        )
    return every


def _load(layout: Layout, point: "pd.Series[Any]") -> str:
    """Return a point's load if the x axis is a load; empty if the x axis may be a knob."""
    return "" if layout.x is None or "." in layout.x else layout.load(point)


# Ladders -------------------------------------------------------------------------------------------------------------


def _ladder(task: str, group: pd.DataFrame) -> Ladder:
    """Return the path from the lowest step to the plan's last, and the side steps."""
    steps = group.dropna(subset=[LADDER])
    parents = {str(step): parent for step, parent in zip(steps[LADDER], steps[PARENT], strict=True)}
    position = {str(step): int(index) for step, index in zip(steps[LADDER], steps.index, strict=True)}
    path: list[str] = []
    step: Any = next(reversed(parents))
    while step is not None and not pd.isna(step) and str(step) in parents and step not in path:
        path.append(str(step))
        step = parents[str(step)]
    notes = []
    if isinstance(step, str):
        notes.append(f"{task}: {step} has no result, so the ladder is explained from {path[-1]} on")
    path.reverse()
    beside = [(name, str(parent)) for name, parent in parents.items() if name not in path]
    branches = tuple(Branch(name, base, position[name], position[base]) for name, base in beside if base in position)
    return Ladder(task, tuple(path), tuple(position[name] for name in path), branches, tuple(notes))


# Factorials ----------------------------------------------------------------------------------------------------------


def _factorials(task: str, group: pd.DataFrame, layout: Layout, baseline: dict[str, Any]) -> Iterator[Factorial]:
    """Yield one design for each engine with knobs. The baseline belongs to another engine."""
    of_baseline = is_baseline(group, {"backend": baseline["backend"]} if "backend" in baseline else {})
    compared = list(group.index[of_baseline])
    for engine, points in group.groupby("backend", sort=False):
        axes = [key for key in map(str, points) if key.partition(".")[0] in PARTS_OF_ENGINE and "." in key]
        varying = [key for key in axes if points[key].nunique(dropna=False) > 1]
        knobs = tuple(_knob(key, points[key], baseline) for key in varying)
        if not knobs:
            continue
        if len(knobs) > MOST_KNOBS:
            raise Unexplained(f"{engine}: {len(knobs)} settings vary; expected at most {MOST_KNOBS}")
        rest = [int(index) for index in compared if index not in points.index]
        notes = [f"{baseline['backend']} has {len(rest)} points, so the baseline is ambiguous"] if len(rest) > 1 else []
        alone = rest[0] if len(rest) == 1 else None
        yield Factorial(task, str(engine), knobs, _combinations(points, knobs), alone, tuple(notes))


def _knob(key: str, column: "pd.Series[Any]", baseline: dict[str, Any]) -> Knob:
    values = list(dict.fromkeys(map(_value, column)))
    if len(values) > 2:
        raise Unexplained(f"{key} has the values {', '.join(map(_setting_text, values))}; expected two (off and on)")
    if key in baseline and _value(baseline[key]) == values[1]:
        values.reverse()
    return Knob(key, values[0], values[1])


def _combinations(points: pd.DataFrame, knobs: Sequence[Knob]) -> dict[frozenset[str], int]:
    keys = [knob.key for knob in knobs]
    rows = points[keys].astype(object).itertuples(index=False, name=None)
    return {
        frozenset(knob.key for knob, value in zip(knobs, row, strict=True) if _value(value) == knob.on): int(index)
        for index, row in zip(points.index, rows, strict=True)
    }


def _value(value: Any) -> Any:
    """Return a setting as a plain value; None if the key was not set."""
    if value is None or pd.isna(value):
        return None
    return value.item() if isinstance(value, np.generic) else value


def _setting_text(value: Any) -> str:
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
