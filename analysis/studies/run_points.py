"""A run's points for the checks of findings, with each point's launches, hardware and kind of memory."""

import json
from typing import Any

import pandas as pd

from analysis.results import RunResults
from analysis.statistics.pooled import launches
from analysis.studies.uncertain import LAUNCHES, MEMORY_LABEL, PLACE

HARDWARE = "hardware_profile"
"""The column of a run's points with the hardware profile; missing if no trial of the point ran."""


def run_points(results: RunResults) -> pd.DataFrame:
    """Return a run's points with LAUNCHES, HARDWARE, MEMORY_LABEL and PLACE, and with numeric columns as numbers."""
    points = results.points.copy()
    for column in points:
        numbers = pd.to_numeric(points[column], errors="coerce")
        if numbers.notna().any() and (numbers.notna() == points[column].notna()).all():
            points[column] = numbers
    trials = results.run.trials
    columns = [
        _by_point(results, launches(results.run), LAUNCHES, frozenset),
        _by_point(results, trials["settings"].astype(object).map(_profile), HARDWARE, "first"),
        _by_point(results, trials["memory_label"].astype(object), MEMORY_LABEL, "first"),
        pd.Series([(results.contests, place) for place in range(len(points))], name=PLACE, dtype=object),
    ]
    return pd.concat([points, *(column.set_axis(points.index) for column in columns)], axis="columns")


def _by_point(
    results: RunResults, of_trials: "pd.Series[Any]", name: str, aggregate: str | type[frozenset[Any]]
) -> "pd.Series[Any]":
    """Aggregate the trials' values to one value per point; missing if no trial has a value."""
    point = results.layout.trials["point"].reindex(of_trials.index)
    return of_trials.groupby(point).agg(aggregate).reindex(range(len(results.points))).rename(name)


def _profile(settings: str | None) -> str | None:
    """Return the name of the hardware profile in a trial's settings, or None."""
    hardware = json.loads(settings).get("hardware") if isinstance(settings, str) else None
    return hardware.get("name") if hardware else None
