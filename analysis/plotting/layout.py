"""Decides the layout of an experiment's charts: each axis of the grid becomes the x axis, a line or a panel.

Engines and their settings are lines, workloads and loads are panels, and the axis with the most values is x. If there
are several kinds of load, each panel has its own x. A chart has room for a limited number of lines and panels.
"""

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pandas as pd
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from analysis.headline import ASKED
from analysis.load import Run
from analysis.point_names import LOAD_LABELS, SIZE, Layout, spaced
from analysis.statistics.contests import Standing
from analysis.statistics.ratios import is_baseline
from analysis.summary import key_columns
from sweep.base.config import one_of
from sweep.base.records import LOAD_COLUMNS
from sweep.base.setting_labels import as_typed

OF_STEP = ("backend", "gateway")  # prefixes of the keys that a ladder's steps set
MOST_LINES = 21  # lines that colour, marker and dash can distinguish


def arrange(run: Run, points: pd.DataFrame, by: str | None = None) -> Layout:
    """Return the layout of a run's points (`summary.summarise`), with `by` as x if given.

    Raises ConfigError unless `by` is a number that varies.
    """
    keys = key_columns(run)
    varying = [key for key in keys if points[key].nunique(dropna=False) > 1]
    if "ladder" in varying:  # its steps already show the settings that they change
        by_step = points.groupby("ladder", dropna=False)
        varying = [key for key in varying if key.split(".")[0] not in OF_STEP or _differs(by_step[key])]
    x = _x_column(points, varying) if by is None else by
    numeric = [key for key in varying if _holds_numbers(points[key])]
    if by is not None and by not in numeric:
        raise one_of("by", by, numeric)
    if x in LOAD_COLUMNS:
        varying = [key for key in varying if key.removeprefix("load.") not in LOAD_COLUMNS]
        if points[x].isna().any():
            sizes = points[[*LOAD_COLUMNS]].astype("float64").bfill(axis="columns")
            points, x = points.assign(**{SIZE: sizes.iloc[:, 0]}), SIZE
    by_x = points.groupby(["workload", "load", x], dropna=False) if x else None
    zipped = [
        key
        for key in varying
        if by_x is not None and key != x and _holds_numbers(points[key]) and _follows(points, key, by_x, x)
    ]
    rest = [key for key in varying if key != x and key not in zipped and not _of_workload(points, key)]
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


def _holds_numbers(values: "pd.Series[Any]") -> bool:
    """Return whether a column holds numbers. Switches, which are on or off, are not numbers."""
    return is_numeric_dtype(values) and not is_bool_dtype(values)


def _follows(points: pd.DataFrame, key: str, by_x: Any, x: str | None) -> bool:
    """True if x determines the key's value, for all points or for the points of the only engines that have it."""
    if not _differs(by_x[key]):
        return True
    engines = points[points[key].notna()].groupby("backend")
    return bool((engines[key].nunique() > 1).all()) and not _differs(
        points.groupby(["workload", "load", x, "backend"], dropna=False)[key]
    )


def _of_workload(points: pd.DataFrame, key: str) -> bool:
    """True for a workload setting with one value per workload, so that the workload's name is enough."""
    return key.startswith("workload.") and not _differs(points.groupby("workload")[key])


def _coloured_lines(points: pd.DataFrame, lines: list[str], baseline: dict[str, Any]) -> list[str]:
    """Return all lines or, if there are too many, the lines with the best values, the baseline, and a few more."""
    if len(lines) <= MOST_LINES:
        return lines
    standings = points[[name for name in points if str(name).endswith("_standing")]]
    is_best = (standings == Standing.BEST).any(axis="columns")
    preferred = [*points.loc[is_best, "line"], *points.loc[is_baseline(points, baseline), "line"]]
    first = list(dict.fromkeys(preferred))[: MOST_LINES // 3]
    rest = [line for line in lines if line not in first]
    chosen = {*first, *rest[:: math.ceil(len(rest) / (MOST_LINES - len(first)))]}
    return [line for line in lines if line in chosen]


def _x_column(points: pd.DataFrame, varying: list[str]) -> str | None:
    """Return the numeric column with the most values, preferring loads, then workloads, then engine flags.

    In each workload or load, either all points or none must have this column, or some engines' lines would be missing.
    """
    numeric = [
        key
        for key in varying
        if _holds_numbers(points[key])
        and points[key].nunique() > 1
        and not _of_workload(points, key)
        and (key in LOAD_COLUMNS or not _differs(points[key].isna().groupby([points["workload"], points["load"]])))
    ]

    def preference(key: str) -> tuple[bool, bool, int]:
        return key in LOAD_COLUMNS, key.startswith(("workload.", "load.")), points[key].nunique(dropna=False)

    return max(numeric, key=preference, default=None)


def _x_labels(points: pd.DataFrame, x: str) -> dict[str, str]:
    """Return the label of x by panel, for panels whose points have x."""
    labels: dict[str, str] = {}
    for column in LOAD_COLUMNS if x == SIZE else [x]:
        label = LOAD_LABELS.get(column, spaced(column).capitalize())
        if x == "batch_size" and _one_batch(points):
            label = "Request count"
        for panel in points.loc[points[column].notna(), "panel"].unique():
            labels[panel] = f"{labels[panel]} or {label.lower()}" if panel in labels else label
    return labels


def _one_batch(points: pd.DataFrame) -> bool:
    """Return whether every trial is one batch of all its requests, so that only the number of requests varies."""
    counts = points.get("workload.num_requests")
    return counts is not None and bool((counts == points["batch_size"]).all())


def _differs(values: Any) -> bool:
    """Return whether the grouped values differ within any group."""
    return bool((values.nunique(dropna=False) > 1).any())


def _names(points: pd.DataFrame, columns: list[str], first: str) -> list[str]:
    """Name each point: `first` and the ladder's step appear as their value, other columns as key=value."""
    columns = [key for key in columns if key != first]
    alike = Counter(map(spaced, columns))  # e.g. the means of two distributions
    spoken = [spaced(key) if alike[spaced(key)] < 2 else " ".join(map(spaced, key.split(".")[-2:])) for key in columns]
    prefixes = ["" if key == "ladder" else f"{name}=" for key, name in zip(columns, spoken, strict=True)]

    def name(values: Iterable[Any]) -> str:
        settings = [(prefix, value) for prefix, value in zip(prefixes, values, strict=True) if pd.notna(value)]
        return ", ".join(f"{prefix}{as_typed(value)}" for prefix, value in settings)

    rest = map(name, points[columns].astype(object).itertuples(index=False, name=None))
    return [", ".join(filter(None, (str(value), suffix))) for value, suffix in zip(points[first], rest, strict=True)]
