"""Finds, for each engine and task that ran out of memory, the largest batch that fitted and the batches that did not.

A batch fitted if at least one replicate has a result, and no replicate ran out of memory or was skipped after a smaller
batch ran out.
"""

from typing import NamedTuple

import pandas as pd

from analysis.load import Run
from analysis.point_names import SIZE, Layout
from sweep.base.records import LOAD_COLUMNS

OOM_OUTCOMES = ("oom_load", "oom_run")
NOT_TRIED = "censored"  # skipped because a smaller batch ran out of memory
_SIZES = {"batch_size": "batch", "concurrency": "concurrency"}


class Fit(NamedTuple):
    line: str
    task: str
    size: str  # `batch` or `concurrency`
    largest: float | None  # None if no batch fitted
    detail: str  # the sizes that did not fit, e.g. `ran out at 16; not tried at 64`


def fits(run: Run, layout: Layout) -> list[Fit]:
    """Return the fit of each engine and task that ran out of memory, separately for batches and concurrencies."""
    trials = layout.placed(run.trials)
    trials = trials.assign(
        oom=trials["outcome"].isin(OOM_OUTCOMES),
        untried=trials["outcome"] == NOT_TRIED,
        ok=trials["outcome"] == "ok",
        task=_tasks(trials, layout),
    )
    return [
        _fit(str(line), str(task), size, group.groupby(column)[["oom", "untried", "ok"]].agg(["sum", "size"]))
        for column, size in _SIZES.items()
        for (line, task), group in trials[trials[column].notna()].groupby(["line", "task"], sort=False)
        if group["oom"].any() or group["untried"].any()
    ]


def _tasks(trials: pd.DataFrame, layout: Layout) -> list[str]:
    """Name each trial's task: the panel, plus the x value unless x is a load."""
    if layout.x in (None, SIZE, *LOAD_COLUMNS):
        return list(trials["panel"])
    return [
        f"{panel}, {layout.x_label.lower()} {value:g}" if pd.notna(value) else panel
        for panel, value in zip(trials["panel"], trials[layout.x], strict=True)
    ]


def _fit(line: str, task: str, size: str, outcomes: pd.DataFrame) -> Fit:
    """Return the fit, from counts per size: trials out of memory, not tried, with a result, and in total."""
    (oom, untried, ok), trials = (outcomes[name]["sum"] for name in ("oom", "untried", "ok")), outcomes["ok"]["size"]
    without = oom + untried
    fitted = outcomes.index[(ok > 0) & (without == 0)]
    no_result = ((ok == 0) & (without == 0)) * trials
    details = [
        f"{problem} at {', '.join(_sizes(counts, trials))}"
        for problem, counts in (("ran out", oom), ("not tried", untried), ("no result", no_result))
        if counts.any()
    ]
    return Fit(line, task, size, float(fitted.max()) if len(fitted) else None, "; ".join(details))


def _sizes(counts: "pd.Series[int]", totals: "pd.Series[int]") -> list[str]:
    """List the sizes with counted trials. If only some of a size's trials are counted, add their share."""
    return [
        f"{size:g}" + (f" ({count} of {total} trials)" if count < total else "")
        for size, count, total in zip(counts.index, counts, totals, strict=True)
        if count
    ]
