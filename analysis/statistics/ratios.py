"""Computes the ratio of each point to the baseline, and of each step of a ladder to the step below it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.headline import ASKED, COUNTS, HEADLINE
from analysis.load import Run
from analysis.quantities import labelled_column
from analysis.statistics.contests import Contests

RATIO_COLUMNS = ("", "_ci_low", "_ci_high")
"""Suffixes of a ratio's columns: the ratio, and its interval (`contests.Contests`)."""


def against_baseline(run: Run, points: pd.DataFrame, contests: Contests) -> pd.DataFrame:
    """Return `<headline>_vs_baseline`: the ratio to the baseline at the same workload and load, with its interval."""
    if not is_baseline(points, run.baseline).any():
        return pd.DataFrame(index=points.index)
    return _ratios(contests, baseline_points(points, run.baseline), "vs_baseline")


def against_parent(run: Run, points: pd.DataFrame, contests: Contests) -> pd.DataFrame:
    """Return `ladder_parent` and `<headline>_vs_parent`, the ratio to the parent of a ladder's step."""
    if "ladder" not in points or "ladder_parent" not in run.trials:
        return pd.DataFrame(index=points.index)
    steps = run.trials.dropna(subset=["ladder", "ladder_parent"])
    parents = points["ladder"].map(dict(zip(steps["ladder"], steps["ladder_parent"], strict=True)))
    parent_points: list[int | None] = [None] * len(points)
    for parent in parents.dropna().unique():
        family = np.flatnonzero((parents == parent) | (points["ladder"] == parent))  # a plan may have many steps
        partners = baseline_points(points.iloc[family].reset_index(drop=True), {"ladder": parent})
        for index, partner in zip(family, partners, strict=True):
            if partner is not None and parents[index] == parent:
                parent_points[index] = int(family[partner])
    ratios = _ratios(contests, parent_points, "vs_parent")
    return pd.concat([parents.rename("ladder_parent"), ratios], axis="columns")


def _ratios(contests: Contests, partners: Sequence[int | None], name: str) -> pd.DataFrame:
    """Return each point's ratio to its partner, with the interval, for the HEADLINE columns."""
    pairs = [(index, partner) for index, partner in enumerate(partners) if partner is not None and partner != index]
    columns: dict[str, NDArray[np.float64]] = {}
    for headline in HEADLINE:
        quantity = labelled_column(headline)
        if headline not in contests.figures or quantity is None:
            continue
        for end, values in zip(RATIO_COLUMNS, contests.ratios(quantity, pairs), strict=True):
            column = columns[f"{headline}_{name}{end}"] = np.full(len(partners), np.nan)
            column[[point for point, _ in pairs]] = values
    return pd.DataFrame(columns, index=range(len(partners)))


def baseline_points(points: pd.DataFrame, baseline: dict[str, Any]) -> list[int | None]:
    """Return the position of each point's baseline point; None unless there is exactly one such point.

    It must have the same workload and load, and be as similar as possible in keys that the baseline does not set.
    """
    baseline = _in_columns(points, baseline)
    keys = [str(column) for column in points.columns if column not in COUNTS]
    of_task = [key for key in keys if key.split(".")[0] in ASKED and key not in baseline]
    of_engine = [key for key in keys if key not in of_task and key not in baseline]
    values: list[dict[str, Any]] = [
        {str(key): None if pd.isna(value) else value for key, value in row.items()}
        for row in points[keys].to_dict("records")
    ]
    candidates: dict[tuple[Any, ...], list[int]] = {}
    for index in np.flatnonzero(is_baseline(points, baseline)):
        candidates.setdefault(tuple(values[index][key] for key in of_task), []).append(int(index))

    def partner(value: dict[str, Any]) -> int | None:
        fitting = candidates.get(tuple(value[key] for key in of_task), [])
        alike = {index: sum(values[index][key] == value[key] for key in of_engine) for index in fitting}
        closest = [index for index in fitting if alike[index] == max(alike.values())]
        return closest[0] if len(closest) == 1 else None

    return [partner(value) for value in values]


def is_baseline(points: pd.DataFrame, baseline: dict[str, Any]) -> NDArray[np.bool_]:
    """Return which points belong to the baseline; none if there is no baseline or it has no points."""
    baseline = _in_columns(points, baseline)
    if not baseline or not set(baseline) <= set(points.columns):
        return np.zeros(len(points), np.bool_)
    named = points[list(baseline)].astype(object)
    rows = named.where(named.notna(), None).itertuples(index=False, name=None)
    expected = list(baseline.values())
    return np.array([all(map(_same, row, expected)) for row in rows], np.bool_)


def _in_columns(points: pd.DataFrame, baseline: dict[str, Any]) -> dict[str, Any]:
    """Return the baseline with its keys renamed to the table's columns, e.g. load.batch_size to batch_size."""
    return {key if key in points else key.rpartition(".")[2]: value for key, value in baseline.items()}


def _same(value: Any, expected: Any) -> bool:
    """Compare a value with the expected value; an axis of mixed types is text in the table."""
    return bool(value == expected) or (isinstance(value, str) and value == str(expected))
