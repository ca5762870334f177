"""The largest batch that fitted in memory, for each engine and task that ran out of memory.

A batch fitted if at least one replicate has a result, none ran out of memory and none was skipped because a smaller
batch had run out. The batches that did not fit are listed as well.
"""

from typing import NamedTuple

import pandas as pd

from analysis.load import Run
from analysis.plotting.layout import Layout

OOM_OUTCOMES = ("oom_load", "oom_run")
NOT_TRIED = "censored"  # because a smaller batch ran out
_SIZES = {"batch_size": "batch", "concurrency": "concurrency"}


class Fit(NamedTuple):
    """The largest batch of one engine and task that fitted."""

    line: str
    task: str
    size: str  # `batch` or `concurrency`
    largest: float | None  # None if nothing did
    detail: str  # the sizes that did not fit, e.g. `ran out at 16; not tried at 64`


def fits(run: Run, layout: Layout) -> list[Fit]:
    """The fit of each engine and task with a trial that ran out of memory; batches and concurrencies separately."""
    trials = layout.placed(run.trials)
    trials = trials.assign(
        oom=trials["outcome"].isin(OOM_OUTCOMES),
        untried=trials["outcome"] == NOT_TRIED,
        ok=trials["outcome"] == "ok",
        task=_tasks(trials, layout),
    )
    results: list[Fit] = []
    for column, size in _SIZES.items():
        by_task = trials[trials[column].notna()].groupby(["line", "task"], sort=False)
        ran_out = by_task["oom"].transform("any") | by_task["untried"].transform("any")
        results += [
            _fit(str(line), str(task), size, _outcome_counts(group, column))
            for (line, task), group in trials.loc[ran_out.index[ran_out]].groupby(["line", "task"], sort=False)
        ]
    return results


def _tasks(trials: pd.DataFrame, layout: Layout) -> list[str]:
    """The task of each trial: its panel, with the value of x unless x is a load."""
    if layout.x is None or layout.x_is_load:
        return list(trials["panel"])
    return [
        f"{panel}, {layout.x_label.lower()} {value:g}" if pd.notna(value) else panel
        for panel, value in zip(trials["panel"], trials[layout.x], strict=True)
    ]


def _outcome_counts(trials: pd.DataFrame, column: str) -> pd.DataFrame:
    """Numbers of trials by size that ran out of memory (oom), were not tried (untried), have a result (ok), and all."""
    by_size = trials.groupby(column)
    return by_size[["oom", "untried", "ok"]].sum().assign(all=by_size.size())


def _fit(line: str, task: str, size: str, outcomes: pd.DataFrame) -> Fit:
    oom, untried, ok = outcomes["oom"], outcomes["untried"], outcomes["ok"]
    without = oom + untried
    fitted = outcomes.index[(ok > 0) & (without == 0)]
    no_result = ((ok == 0) & (without == 0)) * outcomes["all"]
    details = [
        f"{problem} at {', '.join(_sizes(counts, outcomes['all']))}"
        for problem, counts in (("ran out", oom), ("not tried", untried), ("no result", no_result))
        if counts.any()
    ]
    return Fit(line, task, size, float(fitted.max()) if len(fitted) else None, "; ".join(details))


def _sizes(counts: "pd.Series[int]", totals: "pd.Series[int]") -> list[str]:
    """The sizes with a count, each with the share of its trials unless all are counted."""
    return [
        f"{size:g}" + (f" ({count} of {all_} trials)" if count < all_ else "")
        for size, count, all_ in zip(counts.index, counts, totals, strict=True)
        if count
    ]
