"""Chooses the trials to draw request by request: one per line and task, at its largest completed load."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from analysis.load import Run, trial_folder
from analysis.point_names import Layout
from sweep.base.records import Records
from sweep.disk import run_files
from sweep.disk.tables import read_if_whole

MOST_DRAWN_TRIALS = 48  # maximum trials whose requests are read
MOST_REQUESTS = 50_000  # maximum requests of a trial, so that a report does not read gigabytes


def largest_load_trials(run: Run, layout: Layout) -> pd.DataFrame:
    """Return the first replicate at the largest completed load of every line and panel, with `line` and `panel`."""
    ok = layout.visible(run.ok)
    ok = ok.sort_values("replicate", kind="stable")
    if layout.x:
        ok = ok.sort_values(layout.x, ascending=False, kind="stable")
    return ok.drop_duplicates(["line", "panel"]).sort_values("line", key=lambda lines: lines.map(layout.lines.index))


def chosen_records(run: Run, layout: Layout) -> Iterator[tuple["pd.Series[Any]", Records]]:
    """Yield the requests of these trials, unless there are too many to read. Missing and damaged files are skipped."""
    trials = largest_load_trials(run, layout)
    trials = trials[trials["attempt"].notna() & (trials["num_requests"] <= MOST_REQUESTS)]
    for _, trial in trials.head(MOST_DRAWN_TRIALS).iterrows():
        records = read_if_whole(run_files.read_requests, trial_folder(run, trial) / "requests.parquet")
        if records is not None:
            yield trial, records
