"""A run's points without a published counterpart, e.g. if a smaller form of the study ran without a GPU."""

from collections.abc import Iterator
from typing import NamedTuple

import pandas as pd

from analysis.results import RunResults
from analysis.studies.run_points import run_points
from analysis.studies.uncertain import matching_points, point_name, points_with

FIGURE = "output_throughput"
REFERENCES = {"vs_parent": "× parent step", "vs_baseline": "× baseline"}
"""The kinds of ratios in the summary, and their reference: for a ladder, the parent step."""


class SmallerPoint(NamedTuple):
    """A point's throughput in tokens/s, and its ratio to its baseline or parent step (None if missing)."""

    point: str
    throughput: float
    ratio: float | None
    low: float | None
    high: float | None
    as_offered: bool


def ratio_reference(results: RunResults) -> str | None:
    """Return which of REFERENCES the run's ratios refer to; None if the run compares nothing."""
    return next((name for name in REFERENCES if f"{FIGURE}_{name}" in results.points), None)


def smaller_points(results: RunResults) -> Iterator[SmallerPoint]:
    """Yield the points with a result, each with its ratio to `ratio_reference`."""
    column = f"{FIGURE}_{ratio_reference(results)}"
    points = points_with(run_points(results), FIGURE)
    baseline = matching_points(points, results.run.baseline).index if results.run.baseline else ()
    for label, point in points.iterrows():
        ratio, low, high = (
            float(point[name]) if pd.notna(point.get(name)) else None
            for name in (column, f"{column}_ci_low", f"{column}_ci_high")
        )
        ratio = 1.0 if ratio is None and label in baseline else ratio
        as_offered = bool(point.get("as_offered", False))
        yield SmallerPoint(point_name(point), float(point[FIGURE]), ratio, low, high, as_offered)
