"""The trials that failed, grouped by equal failures."""

from collections.abc import Iterator
from typing import NamedTuple

import pandas as pd

from analysis.load import Run
from analysis.point_names import Layout
from sweep.base.records import Outcome

MOST_LOSSES = 40  # ways to fail
NUMBER = r"\b[0-9a-f]*\d[0-9a-f]*(?:[.,]\d+)*"  # fields in which equal reasons may differ


class Loss(NamedTuple):
    line: str
    outcome: str
    reason: str
    trials: int
    where: str  # workloads and loads in which the failure occurred
    log: str | None
    log_tail: str | None


def dropped_trials(run: Run, layout: Layout) -> pd.DataFrame:
    """Return the trials that the race dropped, with their `reason` and `point`."""
    return layout.placed(run.trials[run.trials["outcome"] == Outcome.DROPPED])


class Losses(NamedTuple):
    """The failed trials, grouped by kind of failure."""

    shown: list[Loss]  # the most frequent kinds
    trials: int
    left_out: str  # a sentence on the kinds not shown; empty if all are shown
    dropped: int = 0  # trials that the race dropped, since the answer does not need them: no failures


def losses(run: Run, layout: Layout) -> Losses:
    """Return the failures of a run, in the order of the plan."""
    kind = ["line", "outcome", "alike"]
    lost = layout.placed(run.not_ok[run.not_ok["outcome"] != Outcome.DROPPED])
    lost["reason"] = lost["reason"].fillna("no reason given")
    lost["alike"] = lost["reason"].str.replace(NUMBER, "#", regex=True)
    sizes = lost.value_counts(kind, sort=False)
    most, failed = sizes.nlargest(MOST_LOSSES), len(lost)
    lost = lost.merge(most.index.to_frame(index=False), on=kind)
    planned = layout.trials["line"].value_counts().to_dict()
    shown = [
        Loss(
            line=str(line),
            outcome=str(outcome),
            reason=str(group["reason"].iloc[0])
            + (" (other trials: other numbers)" if group["reason"].nunique() > 1 else ""),
            trials=len(group),
            where="all its trials" if len(group) == planned[line] else "; ".join(_where(group, layout)),
            log=_log(run, group),
            log_tail=next(iter(group["log_tail"].dropna()), None),
        )
        for (line, outcome, _), group in lost.groupby(kind, sort=False)
    ]
    kinds, others = len(sizes) - len(most), sizes.sum() - most.sum()
    left_out = f"and {others:,} more trials with {kinds:,} other failures: see trials.parquet" if kinds else ""
    return Losses(shown, failed, left_out, len(dropped_trials(run, layout)))


def _log(run: Run, trials: pd.DataFrame) -> str | None:
    tried = trials.dropna(subset="attempt")
    paths = map(run.paths.engine_log, tried["deployment_id"], tried["attempt"])
    return next((path.as_posix() for path in paths if path.is_file()), None)


def _where(group: pd.DataFrame, layout: Layout) -> Iterator[str]:
    for panel, trials in group.groupby("panel"):
        values = [] if layout.x is None else sorted(trials[layout.x].dropna().unique())
        if not values:
            yield str(panel)
        else:
            yield f"{panel} ({layout.x_label.lower()} {', '.join(f'{value:g}' for value in values)})"
