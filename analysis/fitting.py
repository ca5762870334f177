"""The largest batch that fitted in memory, of each engine and task that ran out of it.

A batch fitted where at least one replicate has a result and none ran out. Which batches did not is said as well.
"""

from collections.abc import Iterator
from typing import NamedTuple

import pandas as pd

from analysis.layout import Layout
from analysis.load import Run

OUT_OF_MEMORY = ("oom_load", "oom_run", "censored")
_SIZES = {"batch_size": "batch", "concurrency": "concurrency"}


class Fit(NamedTuple):
    """What fitted of one engine and task."""

    line: str
    task: str
    size: str  # `batch` or `concurrency`
    largest: float | None  # None if nothing did
    told: str  # which sizes did not, and how


def fits(run: Run, layout: Layout) -> list[Fit]:
    """One for each engine and task with a trial that ran out of memory; batches and concurrencies apart."""
    trials = layout.placed(run.trials)
    trials = trials.assign(
        oom=trials["outcome"].isin(OUT_OF_MEMORY),
        ok=trials["outcome"] == "ok",
        task=_tasks(trials, layout),
    )
    found: list[Fit] = []
    for column, size in _SIZES.items():
        by_task = trials[trials[column].notna()].groupby(["line", "task"], sort=False)
        ran_out = by_task["oom"].transform("any")
        found += [
            _fit(str(line), str(task), size, group.groupby(column)[["oom", "ok"]].agg(["sum", "size"]))
            for (line, task), group in trials.loc[ran_out.index[ran_out]].groupby(["line", "task"], sort=False)
        ]
    return found


def _tasks(trials: pd.DataFrame, layout: Layout) -> list[str]:
    """The panel, with the abscissa where that is no load: a length, say."""
    if layout.x is None or layout.x in _SIZES:
        return list(trials["panel"])
    return [
        f"{panel}, {layout.x_label.lower()} {value:g}" if pd.notna(value) else panel
        for panel, value in zip(trials["panel"], trials[layout.x], strict=True)
    ]


def _fit(line: str, task: str, size: str, outcomes: pd.DataFrame) -> Fit:
    """`outcomes`: by size, how many trials ran out of memory (oom), have a result (ok), and were asked for."""
    oom, ok, asked = outcomes["oom", "sum"], outcomes["ok", "sum"], outcomes["oom", "size"]
    fitted = outcomes.index[(ok > 0) & (oom == 0)]
    told = [", ".join(_ran_out(oom, asked))]
    unknown = outcomes.index[(ok == 0) & (oom == 0)]
    if len(unknown):
        told.append(f"no result at {', '.join(f'{value:g}' for value in unknown)}")
    return Fit(line, task, size, float(fitted.max()) if len(fitted) else None, "; ".join(told))


def _ran_out(oom: "pd.Series[int]", asked: "pd.Series[int]") -> Iterator[str]:
    for value, count, all_ in zip(oom.index, oom, asked, strict=True):
        if count:
            yield f"{value:g}" + (f" ({count} of {all_} trials)" if count < all_ else "")
