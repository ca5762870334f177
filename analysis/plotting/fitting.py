"""The largest batch that fitted in memory, of each engine and task that ran out of it.

A batch fitted where at least one replicate has a result, none ran out and none was left untried because a smaller one
had. Which batches did not is said as well.
"""

from typing import NamedTuple

import pandas as pd

from analysis.load import Run
from analysis.plotting.layout import Layout

OUT_OF_MEMORY = ("oom_load", "oom_run")
NOT_TRIED = "censored"  # since a smaller batch ran out
_SIZES = {"batch_size": "batch", "concurrency": "concurrency"}


class Fit(NamedTuple):
    """What fitted of one engine and task."""

    line: str
    task: str
    size: str  # `batch` or `concurrency`
    largest: float | None  # None if nothing did
    told: str  # which sizes did not, and how, e.g. `ran out at 16; not tried at 64`


def fits(run: Run, layout: Layout) -> list[Fit]:
    """One for each engine and task with a trial that ran out of memory; batches and concurrencies apart."""
    trials = layout.placed(run.trials)
    trials = trials.assign(
        oom=trials["outcome"].isin(OUT_OF_MEMORY),
        untried=trials["outcome"] == NOT_TRIED,
        ok=trials["outcome"] == "ok",
        task=_tasks(trials, layout),
    )
    found: list[Fit] = []
    for column, size in _SIZES.items():
        by_task = trials[trials[column].notna()].groupby(["line", "task"], sort=False)
        ran_out = by_task["oom"].transform("any") | by_task["untried"].transform("any")
        found += [
            _fit(str(line), str(task), size, _outcomes(group, column))
            for (line, task), group in trials.loc[ran_out.index[ran_out]].groupby(["line", "task"], sort=False)
        ]
    return found


def _tasks(trials: pd.DataFrame, layout: Layout) -> list[str]:
    """The panel, with the abscissa where that is no load: a length, say."""
    if layout.x is None or layout.x_is_load:
        return list(trials["panel"])
    return [
        f"{panel}, {layout.x_label.lower()} {value:g}" if pd.notna(value) else panel
        for panel, value in zip(trials["panel"], trials[layout.x], strict=True)
    ]


def _outcomes(trials: pd.DataFrame, column: str) -> pd.DataFrame:
    """By size, how many trials ran out of memory (oom), were not tried (untried), have a result (ok), and all."""
    by_size = trials.groupby(column)
    return by_size[["oom", "untried", "ok"]].sum().assign(all=by_size.size())


def _fit(line: str, task: str, size: str, outcomes: pd.DataFrame) -> Fit:
    oom, untried, ok = outcomes["oom"], outcomes["untried"], outcomes["ok"]
    without = oom + untried
    fitted = outcomes.index[(ok > 0) & (without == 0)]
    unknown = ((ok == 0) & (without == 0)) * outcomes["all"]
    told = [
        f"{what} at {', '.join(_sizes(counts, outcomes['all']))}"
        for what, counts in (("ran out", oom), ("not tried", untried), ("no result", unknown))
        if counts.any()
    ]
    return Fit(line, task, size, float(fitted.max()) if len(fitted) else None, "; ".join(told))


def _sizes(counts: "pd.Series[int]", asked: "pd.Series[int]") -> list[str]:
    """The sizes with a count, and how many of the trials asked for it is where that is not all."""
    return [
        f"{size:g}" + (f" ({count} of {all_} trials)" if count < all_ else "")
        for size, count, all_ in zip(counts.index, counts, asked, strict=True)
        if count
    ]
