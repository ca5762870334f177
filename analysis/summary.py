"""One row per point of the plan: its replicates' mean with a 95 % interval, and how it compares to the baseline.

Only `ok` trials are summarised. A point without any, or of which no trial has run yet, is a row with n = 0, so that it
is not taken for one that was never asked for; and every axis of the plan tells points apart, whatever has a result.
"""

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis import stats
from analysis.intervals import Interval
from analysis.load import Run
from analysis.pooled import point_figures, pooled_columns
from analysis.quantities import LabelledColumn, labelled_column
from analysis.stats import Estimate
from sweep.disk import run_files
from sweep.numbers.quantity import columns
from sweep.records import LOAD_COLUMNS

NOT_RUN = "not run"  # beside the outcomes: the sweep was stopped before

Positions = NDArray[np.int64]  # of each trial: the position of its point

IDENTITY = ("backend", "model", "workload", "load", *LOAD_COLUMNS)
"""The columns that tell points apart besides the experiment's own axes."""

ASKED = ("model", "accelerator", "workload", "load", *LOAD_COLUMNS)
"""First parts of the columns that say what was asked, of what model on what GPU: equal for points to be compared."""

COUNTS = ("n", "not_ok", "planned", "outcomes", "requests")
"""The columns that say how a point's trials ended, and how many requests its figures are of."""


def _headline(steady: bool) -> tuple[str, ...]:
    """The columns of the statistics that are declared as headlines, by their rank."""
    ranks = {
        column: statistic.quantity.headline[statistic.name]
        for column, statistic in columns().items()
        if statistic.name in statistic.quantity.headline and statistic.steady is steady
    }
    return tuple(sorted(ranks, key=ranks.__getitem__))


HEADLINE = _headline(steady=False)
"""The figures to read first: in the terminal's table, among the best figures, and compared with the baseline."""

STEADY = _headline(steady=True)
"""The steady-state figures that are summarised; the others are in trials.parquet."""


class Best(NamedTuple):
    """The best mean of a quantity, and the point that has it."""

    quantity: LabelledColumn
    estimate: Estimate
    point: "pd.Series[Any]"


def key_columns(run: Run) -> list[str]:
    """The columns that make a point: IDENTITY, the accelerator if results are of several, and axes that say more."""
    axes = [axis for axis in run.axes if not _repeats(run.trials, axis) and axis != "ladder_parent"]
    accelerator = ["accelerator"] if run.ok["accelerator"].nunique() > 1 else []
    return [*IDENTITY, *accelerator, *axes]


def _repeats(trials: pd.DataFrame, axis: str) -> bool:
    """Return whether an axis such as load.batch_size also exists as batch_size."""
    column = axis.rpartition(".")[2]
    if column == axis or column not in IDENTITY:
        return False
    set_there = trials[trials[axis].notna()]  # an axis of one kind of load is null for the others
    return bool(set_there[axis].eq(set_there[column]).all())


def planned_trials(run: Run) -> int:
    """The number of trials in the plan; if unknown, the number with a row."""
    return max(int(run.experiment.get("trials") or 0), len(run.trials))


def measured_columns(run: Run) -> list[str]:
    """The measured columns that have a value in some trial: the headline first, then the whole runs' and STEADY."""
    whole_run = [name for name, statistic in columns(run.percentiles).items() if not statistic.steady]
    names = dict.fromkeys([*HEADLINE, *whole_run, *STEADY])
    return [name for name in names if labelled_column(name, run.percentiles) and run.ok[name].notna().any()]


def summarise(run: Run) -> pd.DataFrame:
    """The points of a run, sorted.

    Columns: the key columns, `n` ok trials, `not_ok` others that ran, of `planned` ones, `outcomes`, `requests`
    answered in ok trials; for each measured column the figure of all of them, its interval of these launches `*_ci_low`
    and `*_ci_high` and of a new launch `*_new_launch_low` and `*_new_launch_high`, `*_effective_n` where it is of
    requests, and `*_n` if some ok trials lack it; `steady_share`, the share of ok trials with a steady-state window, if
    there is one; for HEADLINE columns `*_vs_baseline` (times the baseline) and `*_vs_parent` (times the ladder's step
    below) with intervals of their own.
    """
    keys = key_columns(run)
    trials = _planned(run, keys)
    point: Positions = np.asarray(trials.groupby(keys, dropna=False, sort=False).ngroup(), np.int64)
    outcomes = _outcomes(trials["outcome"], point)
    points = trials[keys].iloc[np.unique(point, return_index=True)[1]].reset_index(drop=True)
    points["n"] = [counts["ok"] for counts in outcomes]
    points["not_ok"] = [counts.total() - counts["ok"] - counts[NOT_RUN] for counts in outcomes]
    points["planned"] = [counts.total() for counts in outcomes]
    points["outcomes"] = [", ".join(f"{name} {count}" for name, count in counts.most_common()) for counts in outcomes]
    answered = (run.ok["num_requests"] - run.ok["num_failed"]).reindex(trials.index)
    points["requests"] = answered.groupby(point).sum()
    measured = run.ok[measured_columns(run)].astype("float64").reindex(trials.index)
    counts = measured.groupby(point).count()
    columns: dict[str, Any] = {}
    pooled = pooled_columns(run)
    for name, figure in point_figures(run, measured, point).items():
        columns |= _columns(name, figure, name in pooled)
        if (counts[name].gt(0) & counts[name].lt(points["n"])).any():
            columns[f"{name}_n"] = counts[name]
    if run.ok["steady_begin"].notna().any():
        columns["steady_share"] = run.ok["steady_begin"].notna().reindex(trials.index).groupby(point).mean()
    compared = [compare(run, points, measured, point) for compare in (_against_baseline, _against_parent)]
    return _sorted(pd.concat([points, pd.DataFrame(columns), *compared], axis="columns"), run)


def _columns(name: str, figure: Interval, of_requests: bool) -> dict[str, Any]:
    """The columns of a figure."""
    ends = {
        "ci_low": figure.low,
        "ci_high": figure.high,
        "new_launch_low": figure.new_low,
        "new_launch_high": figure.new_high,
    }
    if of_requests:
        ends["effective_n"] = figure.effective_n
    return {name: figure.value} | {f"{name}_{end}": values for end, values in ends.items()}


def _outcomes(outcomes: "pd.Series[str]", point: Positions) -> list[Counter[str]]:
    """The number of trials of each point by how they ended."""
    counts = [Counter[str]() for _ in range(int(point.max(initial=-1)) + 1)]
    for index, outcome in zip(point, outcomes, strict=True):
        counts[index][outcome] += 1
    return counts


def _sorted(points: pd.DataFrame, run: Run) -> pd.DataFrame:
    """By workload and load, engines in the plan's order within: rows to be compared stand together."""
    order = {name: index for index, name in enumerate(run.trials["backend"].unique())}
    by_engine = points.sort_values("backend", key=lambda names: names.map(order), kind="stable")
    by = [column for column in ASKED if column in points]
    return by_engine.sort_values(by, kind="stable", ignore_index=True)


def estimate(point: "pd.Series[Any]", column: str) -> Estimate:
    """A mean of the summary with its interval."""
    if column not in point:
        return stats.NO_ESTIMATE
    n = int(point.get(f"{column}_n", point["n"]))
    return Estimate(point[column], point[f"{column}_ci_low"], point[f"{column}_ci_high"], n)


# Baseline ------------------------------------------------------------------------------------------------------------


def _against_baseline(run: Run, points: pd.DataFrame, measured: pd.DataFrame, point: Positions) -> pd.DataFrame:
    """`<headline>_vs_baseline`, times the baseline at the same workload and load, with its interval."""
    if not is_baseline(points, run.baseline).any():
        return pd.DataFrame(index=points.index)
    return _ratios(measured, point, baseline_points(points, run.baseline), "vs_baseline")


def _against_parent(run: Run, points: pd.DataFrame, measured: pd.DataFrame, point: Positions) -> pd.DataFrame:
    """`ladder_parent` and `<headline>_vs_parent`, times the step that a ladder's step is on top of."""
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
    return pd.concat(
        [parents.rename("ladder_parent"), _ratios(measured, point, parent_points, "vs_parent")], axis="columns"
    )


def _ratios(measured: pd.DataFrame, point: Positions, partner_points: Sequence[int | None], name: str) -> pd.DataFrame:
    """For each point how many times its partner in `found` it is, with the interval, in the HEADLINE columns."""
    compared = np.array([partner not in (None, index) for index, partner in enumerate(partner_points)], np.bool_)
    partners = np.array([partner for partner, is_one in zip(partner_points, compared, strict=True) if is_one], np.int64)
    columns: dict[str, Any] = {}
    for headline in (headline for headline in HEADLINE if headline in measured):
        every = stats.log_moments(measured[headline].to_numpy(np.float64), point, len(partner_points))
        ratios = stats.ratio(every.select(compared), every.select(partners))
        for suffix, values in zip(("", "_ci_low", "_ci_high"), ratios, strict=True):
            column = np.full(len(partner_points), np.nan)
            column[compared] = values
            columns[f"{headline}_{name}{suffix}"] = column
    return pd.DataFrame(columns, index=range(len(partner_points)))


def baseline_points(points: pd.DataFrame, baseline: dict[str, Any]) -> list[int | None]:
    """For each point the position of the one it is compared with; None where there is none, or no single one.

    It must have been asked the same (workload and load), and be as alike as can be in everything else that the baseline
    does not name.
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
    """Which points are of the baseline; none if there is no baseline or none of its points."""
    baseline = _in_columns(points, baseline)
    if not baseline or not set(baseline) <= set(points.columns):
        return np.zeros(len(points), np.bool_)
    named = points[list(baseline)].astype(object)
    rows = named.where(named.notna(), None).itertuples(index=False, name=None)
    expected = list(baseline.values())
    return np.array([all(map(_same, row, expected)) for row in rows], np.bool_)


def _in_columns(points: pd.DataFrame, baseline: dict[str, Any]) -> dict[str, Any]:
    """The baseline with the columns that stand for its keys: batch_size for load.batch_size (see `_repeats`)."""
    return {key if key in points else key.rpartition(".")[2]: value for key, value in baseline.items()}


def _same(value: Any, expected: Any) -> bool:
    """An axis of mixed values is text in the table."""
    return bool(value == expected) or (isinstance(value, str) and value == str(expected))


# What to read first --------------------------------------------------------------------------------------------------


def best(points: pd.DataFrame, columns: Sequence[str] = HEADLINE) -> list[Best]:
    """The best mean of each quantity for each model: models do not compete, a small one is always faster."""
    results: list[Best] = []
    for column in columns:
        shown = labelled_column(column)
        if shown is None or shown.better is None or column not in points:
            continue
        measured = points[points[column].notna()]
        for _, of_model in measured.groupby("model", sort=False, dropna=False):
            place = int(of_model[column].argmax() if shown.better == "higher" else of_model[column].argmin())
            point = of_model.iloc[place]
            results.append(Best(shown, estimate(point, column), point))
    return results


def _planned(run: Run, keys: list[str]) -> pd.DataFrame:
    """The planned trials, those with a row first; an axis whose pending values are of another type is of one for both.

    As in trials.parquet, where all have a row: numbers if all of them are, else text.
    """
    measured, pending = run.trials[[*keys, "outcome"]], _not_run(run, keys)
    for key in keys:
        for type_ in (measured[key].dtype, "float64", "string"):
            with suppress(TypeError, ValueError):
                pending[key] = pending[key].astype(type_)
                measured = measured.astype({key: type_})
                break
    return pd.concat([measured, pending], ignore_index=True)


def _not_run(run: Run, keys: list[str]) -> pd.DataFrame:
    """The planned trials without a row. Of a complete run the long plan is not read."""
    plan = run_files.read_plan(run.paths.plan) if planned_trials(run) > len(run.trials) else []
    measured = set(run.trials["trial_id"])
    deployments: dict[str, dict[str, Any]] = {}
    trials = []
    for entry in plan:
        if entry["kind"] == "deployment":
            deployments[entry["deployment_id"]] = {key: entry[key] for key in ("backend", "model")}
        elif entry["kind"] == "trial" and entry["trial_id"] not in measured:
            values = {**entry["coordinates"], **entry, **deployments[entry["deployment_id"]]}
            trials.append({**{key: _nested_as_text(values.get(key)) for key in keys}, "outcome": NOT_RUN})
    return pd.DataFrame(trials, columns=[*keys, "outcome"], dtype=object)


def _nested_as_text(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, dict | list) else value
