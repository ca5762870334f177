"""A run's files as pandas frames: trials at once, requests and telemetry on demand through duckdb.

Only the attempts that trials.parquet names are read: what a lost or superseded attempt left behind is no part of it.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import duckdb
import pandas as pd
import pyarrow as pa

from sweep import store
from sweep.store import DamagedFile, RunPaths

_NULLABLE = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}  # a missing count is not 0.0
Damaged = Literal["raise", "skip"]
LATENCY = re.compile(r"(steady_)?(ttft|tpot|itl|e2el|lag|slot_wait|service_ttft)_")


class RunNotFound(Exception):
    """The folder holds no run."""


@dataclass(frozen=True)
class Run:
    """What is known about a run without opening its request files."""

    paths: RunPaths
    trials: pd.DataFrame  # one row a trial of the present plan
    experiment: dict[str, Any] = field(default_factory=dict)  # plan.jsonl's entry of that kind
    plan: list[dict[str, Any]] = field(default_factory=list)  # its other entries

    @property
    def name(self) -> str:
        named = self.experiment.get("name")
        return str(named) if named else self.paths.out.name

    @property
    def baseline(self) -> dict[str, Any]:
        """Column -> value of the points that others are compared with; empty if there is none."""
        return dict(self.experiment.get("baseline") or {})

    @cached_property
    def ok(self) -> pd.DataFrame:
        """The trials that are results.

        Without latencies where the engine took its own stamps: they leave out the way to the client, so they are
        compared with others on throughput and duration only.
        """
        results = self.trials[self.trials["outcome"] == "ok"].copy()
        latencies = [name for name in results.columns if LATENCY.match(name)]
        results.loc[results["client_stamp_source"] == "engine", latencies] = None
        return results

    @property
    def not_ok(self) -> pd.DataFrame:
        return self.trials[self.trials["outcome"] != "ok"]

    @property
    def axes(self) -> list[str]:
        """The columns of the experiment's axes that are not in every run."""
        named = self.experiment.get("axes", self.trials.columns)  # without a plan, whatever else there is
        return [name for name in named if name in self.trials.columns and name not in store.TRIAL_SCHEMA]


def open_run(folder: str | Path) -> Run:
    """The run in a folder.

    Raises:
        RunNotFound: if there is no trials.parquet.
        DamagedFile: if trials.parquet or plan.jsonl is not whole.
    """
    paths = RunPaths(Path(folder))
    if not paths.trials.is_file():
        raise RunNotFound(f"{folder}: no run here (there is no trials.parquet)")
    entries = store.read_plan(paths.plan) if paths.plan.is_file() else []
    experiment = next((entry for entry in entries if entry.get("kind") == "experiment"), {})
    plan = [entry for entry in entries if entry.get("kind") != "experiment"]
    trials = _with_all_columns(store.read_table(paths.trials)).to_pandas(types_mapper=_NULLABLE.get)
    return Run(paths, trials, experiment, plan)


def _with_all_columns(table: pa.Table) -> pa.Table:
    """A run of an older version lacks columns: they are null, as anything unknown is."""
    for name, type_ in store.TRIAL_SCHEMA.items():
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(len(table), type_))
    return table


def load(folder: str | Path) -> pd.DataFrame:
    """The trials of a run, one row each: seconds, bytes, tokens per second, USD; missing where unknown.

    Raises:
        RunNotFound: if there is no trials.parquet.
        DamagedFile: if it is not whole.
    """
    return open_run(folder).trials


def requests(
    folder: str | Path, trial_id: str | Iterable[str] | None = None, damaged: Damaged = "raise"
) -> pd.DataFrame:
    """The requests of a run, or of the trials named, warm-up included (`phase`), with their `trial_id`.

    Raises:
        RunNotFound, KeyError: if there is no such run or trial.
        DamagedFile: naming the first file that cannot be read, unless `damaged` is "skip".
    """
    return _read(open_run(folder), "requests.parquet", trial_id, damaged)


def telemetry(
    folder: str | Path, trial_id: str | Iterable[str] | None = None, damaged: Damaged = "raise"
) -> pd.DataFrame:
    """The telemetry of a run, or of the trials named: time (s from the trial's start), series, device, value, trial_id.

    Raises:
        RunNotFound, KeyError: if there is no such run or trial.
        DamagedFile: naming the first file that cannot be read, unless `damaged` is "skip".
    """
    return _read(open_run(folder), "telemetry.parquet", trial_id, damaged)


def trial_folder(run: Run, row: "pd.Series[Any]") -> Path:
    """Where the files of a trials row are."""
    return run.paths.trial(row["deployment_id"], row["attempt"], row["trial_id"]).folder


def _read(run: Run, name: str, trial_id: str | Iterable[str] | None, damaged: Damaged) -> pd.DataFrame:
    trials = run.trials[run.trials["attempt"].notna()]
    if trial_id is not None:
        wanted = [trial_id] if isinstance(trial_id, str) else list(trial_id)
        unknown = set(wanted) - set(run.trials["trial_id"])
        if unknown:
            raise KeyError(f"{run.paths.out}: no trial {', '.join(sorted(unknown))}")
        trials = trials[trials["trial_id"].isin(wanted)]
    files = [path for _, row in trials.iterrows() if (path := trial_folder(run, row) / name).is_file()]
    try:
        return _query(files)
    except duckdb.Error:
        whole = [path for path in files if _is_whole(path, damaged)]
        return _query(whole)


def _query(files: list[Path]) -> pd.DataFrame:
    """All files as one frame, by union of their columns: by default duckdb drops columns that the first file lacks."""
    if not files:
        return pd.DataFrame()
    with duckdb.connect() as connection:
        relation = connection.execute(
            "SELECT * EXCLUDE (filename), string_split(filename, '/')[-2] AS trial_id"
            " FROM read_parquet(?, union_by_name = true, filename = true)",
            [[path.absolute().as_posix() for path in files]],
        )
        frame: pd.DataFrame = relation.df()
    return frame


def _is_whole(path: Path, damaged: Damaged) -> bool:
    try:
        store.read_table(path)
    except DamagedFile:
        if damaged == "raise":
            raise
        return False
    return True
