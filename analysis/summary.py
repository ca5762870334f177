"""Summarises each point of the plan as a row: values with 95% intervals, and ratios to the baseline.

Only `ok` trials are summarised. A planned point without an `ok` trial has a row with n = 0, so that it is not
overlooked. Every axis of the plan distinguishes points, with or without a result.
"""

import json
from collections import Counter
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from analysis.headline import ASKED, HEADLINE, STEADY
from analysis.load import Run
from analysis.quantities import labelled_column
from analysis.statistics.comparison import Positions
from analysis.statistics.contests import Contests, contests_of, question_numbers
from analysis.statistics.estimates import INTERVAL_COLUMNS, merits
from analysis.statistics.intervals import Interval
from analysis.statistics.pooled import point_figures, pooled_columns
from analysis.statistics.ratios import against_baseline, against_parent
from analysis.statistics.survivors import is_lost, without_lost
from sweep.base.records import LOAD_COLUMNS
from sweep.disk import run_files
from sweep.numbers.quantity import columns

NOT_RUN = "not run"  # an additional outcome: the sweep stopped before the trial

SUMMARY_COLUMNS = {
    "run": ("", "the run's name, in summary.csv of a report of several runs"),
    "backend, model, workload, load, batch_size, concurrency, rate": ("", "the point, as in trials.parquet"),
    "accelerator": ("", "the same, if the run has several"),
    "KEY": ("", "an axis of the experiment under its dotted key, e.g. backend.flags.max-num-seqs"),
    "ladder_parent": ("", "the parent of a ladder's step"),
    "n, not_ok, planned": ("trials", "trials with a result, other trials that ran, and all planned trials"),
    "outcomes": ("", "the trials by outcome"),
    "requests, failed": ("requests", "answered and failed requests in trials with a result"),
    "COLUMN": ("as in trials.parquet", "a measured column, over all requests of the point's trials"),
    "COLUMN_ci_low, COLUMN_ci_high": ("as COLUMN", "ends of its 95% interval for these launches"),
    "COLUMN_new_launch_low, COLUMN_new_launch_high": ("as COLUMN", "ends of its 95% interval for a new launch"),
    "COLUMN_effective_n": ("requests", "effective number of independent requests"),
    "COLUMN_by_launches": (
        "",
        "whether its intervals come from the launches' values, because there are too few requests",
    ),
    "COLUMN_n": ("trials", "trials with a value, if some trials with a result lack it"),
    "COLUMN_vs_baseline, COLUMN_vs_parent": ("times", "of a headline column: its ratio to the baseline, or parent"),
    "COLUMN_vs_…_ci_low, COLUMN_vs_…_ci_high": ("times", "ends of its 95% interval (docs/comparing.md)"),
    "COLUMN_standing": ("", "of a headline column: best, tie with the best, or behind"),
    "unpooled": ("", "columns that are means over trials, since some requests cannot be read"),
    "as_offered": ("", "whether an open loop determined its throughput"),
    "steady_share": ("share", "share of trials with a result that have a steady-state window"),
    "lost_to_failures": ("", "percentiles that are failed requests, with their lower bounds in seconds"),
    "warnings": ("", "codes of the point's warnings (docs/warnings.md)"),
}
"""The columns of summary.csv, for docs/columns.md: unit, meaning."""

IDENTITY = ("backend", "model", "workload", "load", *LOAD_COLUMNS)
"""The columns that distinguish points, in addition to the experiment's axes."""


def key_columns(run: Run) -> list[str]:
    """Return the columns that identify a point: IDENTITY, the accelerator if there are several, and further axes."""
    axes = [axis for axis in run.axes if not _repeats(run.trials, axis) and axis != "ladder_parent"]
    accelerator = ["accelerator"] if run.ok["accelerator"].nunique() > 1 else []
    return [*IDENTITY, *accelerator, *axes]


def _repeats(trials: pd.DataFrame, axis: str) -> bool:
    """Return whether an axis such as load.batch_size also exists as a column batch_size."""
    column = axis.rpartition(".")[2]
    if column == axis or column not in IDENTITY:
        return False
    set_there = trials[trials[axis].notna()]  # an axis of one kind of load is null for other kinds
    return bool(set_there[axis].eq(set_there[column]).all())


def planned_trials(run: Run) -> int:
    """Return the number of trials in the plan or, if it is unknown, the number of trials with a row."""
    return max(int(run.experiment.get("trials") or 0), len(run.trials))


def measured_columns(run: Run) -> list[str]:
    """Return the measured columns with a value in some trial: headline columns, then all others, then STEADY."""
    whole_run = [name for name, statistic in columns(run.percentiles).items() if not statistic.steady]
    names = dict.fromkeys([*HEADLINE, *whole_run, *STEADY])
    statistics = columns(run.percentiles)
    return [
        name
        for name in names
        if labelled_column(name, run.percentiles)
        and (run.ok[name].notna().any() or is_lost(run.ok, name, statistics[name]).any())
    ]


def summarise(run: Run) -> pd.DataFrame:
    """Return the points of a run, as `summary_and_contests` does."""
    return summary_and_contests(run)[0]


def summary_and_contests(run: Run) -> tuple[pd.DataFrame, Contests]:
    """Return a run's points, sorted, under SUMMARY_COLUMNS, and the contests that compare any two of them."""
    keys = key_columns(run)
    trials = _planned(run, keys)
    point: Positions = np.asarray(trials.groupby(keys, dropna=False, sort=False).ngroup(), np.int64)
    points = trials[keys].iloc[np.unique(point, return_index=True)[1]].reset_index(drop=True)
    order = _order(points, run)
    points, point = points.iloc[order].reset_index(drop=True), np.argsort(order)[point]
    outcomes = _outcomes(trials["outcome"], point)
    points["n"] = [counts["ok"] for counts in outcomes]
    points["not_ok"] = [counts.total() - counts["ok"] - counts[NOT_RUN] for counts in outcomes]
    points["planned"] = [counts.total() for counts in outcomes]
    points["outcomes"] = [", ".join(f"{name} {count}" for name, count in counts.most_common()) for counts in outcomes]
    answered = (run.ok["num_requests"] - run.ok["num_failed"]).reindex(trials.index)
    points["requests"] = answered.groupby(point).sum()
    failed = run.ok["num_failed"]
    if "earlier_failed" in run.ok:  # rows of attempts that did not become the result
        failed = failed + run.ok["earlier_failed"].fillna(0)
    points["failed"] = failed.reindex(trials.index).groupby(point).sum()
    measured = run.ok[measured_columns(run)].astype("float64").reindex(trials.index)
    measured = without_lost(run, measured, point)
    counts = measured.groupby(point).count()
    columns: dict[str, Any] = {}
    pooled = pooled_columns(run)
    figures_of_points, unpooled = point_figures(run, measured, point)
    for name, figure in figures_of_points.items():
        columns |= _columns(name, figure, name in pooled)
        if figure.by_launches.any():
            columns[f"{name}_by_launches"] = figure.by_launches
        if (counts[name].gt(0) & counts[name].lt(points["n"])).any():
            columns[f"{name}_n"] = counts[name]
    columns["unpooled"] = unpooled
    if run.ok["below_saturation"].notna().any():
        as_offered = run.ok["below_saturation"].eq(True).fillna(False).reindex(trials.index, fill_value=False)
        columns["as_offered"] = as_offered.groupby(point).any()
    if run.ok["steady_begin"].notna().any():
        columns["steady_share"] = run.ok["steady_begin"].notna().reindex(trials.index).groupby(point).mean()
    contests = contests_of(run, question_numbers(points), point[run.ok.index], measured.loc[run.ok.index], unpooled)
    compared = [compare(run, points, contests) for compare in (against_baseline, against_parent)]
    compared.append(_standings(contests, merits(pd.DataFrame(columns))))
    return pd.concat([points, pd.DataFrame(columns), *compared], axis="columns"), contests


def _standings(contests: Contests, figures: pd.DataFrame) -> pd.DataFrame:
    """Return each point's `<headline>_standing`, by its value; null if no other point has its task and load."""
    quantities = [labelled_column(headline) for headline in HEADLINE if headline in contests.figures]
    columns = {
        f"{quantity.column}_standing": contests.standings(quantity, figures[quantity.column].to_numpy(np.float64))
        for quantity in quantities
        if quantity is not None and quantity.better is not None
    }
    return pd.DataFrame(columns, index=figures.index, dtype=object)


def _columns(name: str, figure: Interval, of_requests: bool) -> dict[str, Any]:
    ends = (figure.low, figure.high, figure.new_low, figure.new_high)
    columns = dict(zip((name, *(f"{name}_{end}" for end in INTERVAL_COLUMNS)), (figure.value, *ends), strict=True))
    return columns | ({f"{name}_effective_n": figure.effective_n} if of_requests else {})


def _outcomes(outcomes: "pd.Series[str]", point: Positions) -> list[Counter[str]]:
    """Return each point's number of trials by outcome."""
    counts = [Counter[str]() for _ in range(int(point.max(initial=-1)) + 1)]
    for index, outcome in zip(point, outcomes, strict=True):
        counts[index][outcome] += 1
    return counts


def _order(points: pd.DataFrame, run: Run) -> Positions:
    """Sort by workload and load, then by engine in the plan's order, so that rows to compare are adjacent."""
    order = {name: index for index, name in enumerate(run.trials["backend"].unique())}
    by_engine = points.sort_values("backend", key=lambda names: names.map(order), kind="stable")
    by = [column for column in ASKED if column in points]
    axes = [str(key) for key in points if str(key).partition(".")[0] in ASKED and "." in str(key)]
    by += [key for key in axes if is_numeric_dtype(points[key])]  # e.g. lengths: 32, 64, 128
    return np.asarray(by_engine.sort_values(by, kind="stable").index, np.int64)


def _planned(run: Run, keys: list[str]) -> pd.DataFrame:
    """Return the planned trials; trials with a row come first.

    An axis with mixed types gets one type, as in trials.parquet: numbers if all values are, else text.
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
    """Return the planned trials without a row. For a complete run, the long plan is not read."""
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
