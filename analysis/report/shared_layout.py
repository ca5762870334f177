"""Lays out the points of several runs on one page: a task for each question, a line for each configuration.

A task's points share prompts and machine and differ in the size of their load, which is the axis. So an engine setting
on a single run's x axis becomes part of the line's name here, and a workload setting separates tasks.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.answers.asking import OF_A_LOAD, every_point, measured_points, names_with_runs, title
from analysis.point_names import LOAD_LABELS, SIZE, PointLayout
from analysis.results import RunResults
from analysis.statistics.contests import GPUS, question_columns
from sweep.base.setting_labels import short

VALUE_ALONE = ("model.name", "workload.name", "load.name", "machine")  # settings whose values are clear without a key


def shared_layout(runs: Sequence[RunResults]) -> PointLayout:
    """Return the layout of one run, or of several runs' points, one run after another."""
    if len(runs) == 1:
        return runs[0].layout
    points = every_point(runs)
    points = points.assign(line=names_with_runs(points), panel=_tasks(points, measured_points(runs).points))
    sizes, labels = _load_sizes(points)
    points, lines = points.assign(**{SIZE: sizes}), list(points["line"].unique())
    return PointLayout(points, lines, SIZE, labels) if sizes.nunique() > 1 else PointLayout(points, lines, None, {})


def _tasks(points: pd.DataFrame, measured: pd.DataFrame) -> "pd.Series[str]":
    """Name each point's task. A point without a result gets the task of its run's points with equal settings."""
    conditions = pd.Series(None, points.index, dtype=object)
    present = points["n"] > 0
    conditions[present] = measured["conditions_at_any_load"].to_numpy(object)
    titles = {
        str(text): title(group, any_load=True)
        for text, group in points[present].groupby(conditions[present], sort=False)
    }
    asked = [key for key in question_columns(points) if key not in {*OF_A_LOAD, "accelerator"}]  # unknown for a failure
    beside = conditions.groupby([points[key] for key in ("order", *asked)], dropna=False).transform("first")
    conditions = conditions.where(conditions.notna(), beside)
    tasks = dict(zip(titles, _told_apart(list(titles.values()), list(map(json.loads, titles))), strict=True))
    alone = [
        ", ".join(filter(None, (panel, "" if by_load else at, f"no result in {run}")))
        for panel, at, by_load, run in points[["panel", "at", "by_load", "run"]].itertuples(index=False, name=None)
    ]
    return conditions.map(tasks).where(conditions.notna(), pd.Series(alone, points.index))


def _told_apart(titles: Sequence[str], settings: Sequence[dict[str, Any]]) -> list[str]:
    """Make titles unique by adding the settings that distinguish equal titles, or else a number."""
    places: dict[str, list[int]] = {}
    for place, text in enumerate(titles):
        places.setdefault(text, []).append(place)
    keys = {text: _telling([settings[place] for place in same]) for text, same in places.items()}
    names = [", ".join([text, *_described(each, keys[text])]) for text, each in zip(titles, settings, strict=True)]
    numbers = [names[:place].count(name) + 1 for place, name in enumerate(names)]
    return [name if number == 1 else f"{name} ({number})" for name, number in zip(names, numbers, strict=True)]


def _telling(settings: Sequence[dict[str, Any]]) -> list[str]:
    """Return the keys that distinguish these settings, names first, as few as needed."""
    chosen: list[str] = []
    distinct = 1
    for key in dict.fromkeys([*VALUE_ALONE, GPUS, *(key for each in settings for key in each)]):
        number = len({repr([each.get(name) for name in (*chosen, key)]) for each in settings})
        if number > distinct:
            chosen, distinct = [*chosen, key], number
    return chosen


def _described(settings: dict[str, Any], keys: Sequence[str]) -> Iterator[str]:
    for key in (key for key in keys if settings.get(key) is not None):
        value = settings[key]
        text = "; ".join(value) if isinstance(value, list) else str(value)
        if text:
            yield text if key in VALUE_ALONE else f"{short(key)}={text}"


def _load_sizes(points: pd.DataFrame) -> tuple["pd.Series[float]", dict[str, str]]:
    """Return each point's load size, and its label by task. For an open loop: the rate or the limit that varies."""
    sizes, labels = pd.Series(np.nan, points.index), {}
    for task, group in points.groupby("panel", sort=False):
        counts = group[["batch_size", "rate", "concurrency"]].nunique()
        if counts.max():
            column = str(counts.idxmax())
            sizes[group.index] = group[column].astype("float64")
            labels[str(task)] = LOAD_LABELS[column]
    return sizes, labels
