"""Reads a run's files as pandas frames: trials at once, requests and telemetry on demand.

A run is a folder, or the URL of a folder in an object store; its required files are copied to a temporary folder. Only
attempts in trials.parquet are read, since files of lost or superseded attempts do not belong to the run.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from sweep.base.config import PERCENTILES, first_line
from sweep.base.setting_labels import dotted
from sweep.disk import object_store, run_files
from sweep.disk import row as trial_row
from sweep.disk.columns import written_columns
from sweep.disk.run_files import DamagedFile, RunPaths
from sweep.disk.stored_run import LocalCopy
from sweep.disk.tables import check_footer, read_if_whole, read_table, warn_left_out

_NULLABLE = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}  # distinguishes missing counts from 0
PARTS = ("backend", "model", "workload", "load")
IMPORTED = "imported-"  # prefix for the id of a trial that another tool measured
ASKED_MODELS = "asked_models"  # column of an imported export: its requests by model, as JSON with the columns below
MODELS_SET = '"models": {"'  # in the configuration of a trial with workload.models
MODEL_SERIES = ("ttft", "tpot", "e2el")
REQUESTS_BY_MODEL = ("model", "failed", "output_tokens", *MODEL_SERIES)
# Columns with kilobytes of text.
_BULKY = ("config", "settings", "versions", "hardware", "engine_facts", "telemetry_sources", "log_tail")


class RunNotFound(Exception):
    """The folder does not contain a run."""


@dataclass(frozen=True)
class Run:
    """A run's data without its requests."""

    paths: RunPaths
    trials: pd.DataFrame  # one row per trial of the current plan; bulky texts are categories
    experiment: dict[str, Any] = field(default_factory=dict)  # the experiment's entry in plan.jsonl
    others: int = 0  # number of omitted rows of other plans
    copy: LocalCopy | None = None  # for a run in an object store: its local files exist as long as this object

    @property
    def name(self) -> str:
        return str(self.experiment.get("name") or self.paths.out.name)

    @property
    def place(self) -> str | Path:
        """The run as given by the user: its folder or URL."""
        return self.copy.url if self.copy else self.paths.out

    @property
    def baseline(self) -> dict[str, Any]:
        """The baseline as column -> value; empty if the run has no baseline."""
        return dict(self.experiment.get("baseline") or {})

    @cached_property
    def ok(self) -> pd.DataFrame:
        """The trials with a result.

        If the engine took the timestamps, latencies are blanked: they exclude the path to the client, so such trials
        are compared only by throughput and duration.
        """
        results = self.trials[self.trials["outcome"] == "ok"].copy()
        latencies = trial_row.latency_columns(self.percentiles)
        results.loc[results["client_stamp_source"] == "engine", sorted(latencies)] = None
        return results

    @property
    def not_ok(self) -> pd.DataFrame:
        return self.trials[self.trials["outcome"] != "ok"]

    @cached_property
    def percentiles(self) -> tuple[float, ...]:
        """The percentiles that a series may have: the trials' percentiles and the defaults."""
        return _percentiles(self.trials["percentiles"].unique())

    @property
    def axes(self) -> list[str]:
        """The columns of the experiment's axes, without the columns that every run has."""
        named = self.experiment.get("axes", self.trials.columns)  # without a plan, all columns that not every run has
        schema = run_files.trial_schema(self.percentiles)
        return [name for name in named if name in self.trials.columns and name not in schema]


def run_of_rows(paths: RunPaths, table: pa.Table, experiment: dict[str, Any]) -> Run:
    """Return an unfinished run, from the rows so far and its plan's entry about the experiment."""
    return Run(paths, _frame(table), experiment)


def open_run(folder: str | Path, all_rows: bool = False, kinds: Sequence[str] = ("requests",)) -> Run:
    """Open the run in a folder: the trials of its current plan, or all trials ever measured there.

    `folder` may be the URL of a run in an object store. Then files of these `kinds` (see LocalCopy) are copied as well.

    Raises:
        RunNotFound, DamagedFile: if trials.parquet is missing, or it or the plan's experiment is damaged.
        ConfigError: if the store cannot be read.
    """
    paths, copy = _paths(folder, kinds)
    try:
        check_footer(paths.trials)
        # Trials share the bulky texts (20,000 times 4 KB). Runs of older versions lack some of these columns.
        bulky = [name for name in _BULKY if name in pq.read_schema(paths.trials).names]
        with pq.ParquetFile(paths.trials, read_dictionary=bulky, page_checksum_verification=True) as file:
            table = file.read()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DamagedFile(paths.trials, first_line(error)) from error
    trials, experiment = _frame(table), _experiment(paths.plan)
    if all_rows:  # rows of other plans may have further axes
        trials = _with_settings(trials)
        without_plan = {key: value for key, value in experiment.items() if key not in ("axes", "trials")}
        return Run(paths, trials, without_plan, copy=copy)
    planned = _in_plan(trials)
    return Run(paths, planned, experiment, len(trials) - len(planned), copy)


def in_plan(run: Run) -> Run:
    """Return the trials of the current plan, even if the run was opened with all rows."""
    planned = _in_plan(run.trials)
    return Run(run.paths, planned, _experiment(run.paths.plan), len(run.trials) - len(planned), run.copy)


def load(folder: str | Path, all_rows: bool = False) -> pd.DataFrame:
    """Return a run's trials, one row each, in seconds, bytes, tokens per second and USD. Unknown values are missing.

    `all_rows` adds trials that other commands measured in this folder, with `in_plan` False.

    Raises:
        RunNotFound, DamagedFile: if trials.parquet is missing or damaged.
        ConfigError: if the object store cannot be read.
    """
    paths, _copy = _paths(folder)
    trials = _frame(read_table(paths.trials))
    return trials if all_rows else _in_plan(trials)


def _in_plan(trials: pd.DataFrame) -> pd.DataFrame:
    """Return the current plan's trials, without columns that only other rows use; for an older version, all rows."""
    planned = trials["in_plan"].fillna(True).astype(bool)
    if planned.all():
        return trials
    present = trials[planned].reset_index(drop=True)
    empty_axes = [name for name in present if "." in str(name) and present[name].isna().all()]
    return present.drop(columns=empty_axes)


def _with_settings(trials: pd.DataFrame) -> pd.DataFrame:
    """Add a column for each setting that differs between trials of equal names, since plans have columns only for axes.

    Without these columns, trials of plans that differ in a setting would look like replicates of one point.
    """
    configs = {text: dotted(json.loads(text)) for text in trials["config"].dropna().unique()}
    varying: set[str] = set()
    for _, texts in trials[trials["config"].notna()].groupby(list(PARTS), dropna=False)["config"]:
        first, *others = (configs[text] for text in texts.unique())
        varying |= {key for each in others for key in first.keys() | each.keys() if first.get(key) != each.get(key)}
    settings = {
        key: [_column_value(configs.get(text, {}).get(key)) for text in trials["config"]] for key in sorted(varying)
    }
    columns = {}
    for key in (key for key in settings if "." in key):
        column = pd.Series(settings[key], trials.index, object)
        if key in trials:  # an axis in some of the plans
            column = trials[key].astype(object).where(trials[key].notna(), column)
        columns[key] = column.infer_objects()
    return trials.assign(**columns)


def _column_value(value: Any) -> Any:
    """Return a setting as a column's value; a list becomes text."""
    return json.dumps(value) if isinstance(value, list) else value


def _paths(folder: str | Path, kinds: Sequence[str] = ()) -> tuple[RunPaths, LocalCopy | None]:
    """Return a run's paths, and the local copy behind them if the run is in an object store."""
    copy = LocalCopy(str(folder), kinds) if object_store.is_url(str(folder)) else None
    paths = RunPaths(copy.folder if copy else Path(folder))
    if not paths.trials.is_file():
        raise RunNotFound(f"{folder}: no run here (trials.parquet is missing)")
    return paths, copy


def _frame(table: pa.Table) -> pd.DataFrame:
    """Add the columns that a run of an older version lacks. They are null, as unknown values are."""
    present = set(table.column_names)  # once, since each access builds the list of names
    texts = table["percentiles"].unique().to_pylist() if "percentiles" in present else []
    schema = run_files.trial_schema(_percentiles(texts))
    absent = pa.schema([(name, type_) for name, type_ in schema.items() if name not in present]).empty_table()
    table = pa.concat_tables([table, absent], promote_options="default")
    frame: pd.DataFrame = table.to_pandas(types_mapper=_NULLABLE.get)
    return frame


def _percentiles(texts: Iterable[Any]) -> tuple[float, ...]:
    of_rows = (text if isinstance(text, str) else None for text in texts)
    return trial_row.merged_percentiles([*of_rows, trial_row.percentiles_text(PERCENTILES)])


def _experiment(plan: Path) -> dict[str, Any]:
    """Return the plan's entry about the whole experiment, without parsing the entries about trials."""
    entry = run_files.read_experiment(plan) if plan.is_file() else {}
    return entry if entry.get("kind") == "experiment" else {}


def requests(
    folder: str | Path, trial_id: str | Iterable[str] | None = None, damaged: Literal["raise", "skip"] = "raise"
) -> pd.DataFrame:
    """Return the requests, including the warm-up (`phase`), of the current plan or of these trials, with `trial_id`.

    A given trial may belong to another plan. If it was measured twice, its last measurement is returned. A column that
    an older file lacks is null. `damaged="skip"` skips unreadable files, with a Python warning for each.

    Raises:
        RunNotFound, KeyError: if the run or trial does not exist.
        DamagedFile: for the first file that cannot be read.
    """
    return _read(open_run(folder), "requests.parquet", trial_id, damaged == "skip")


def telemetry(
    folder: str | Path, trial_id: str | Iterable[str] | None = None, damaged: Literal["raise", "skip"] = "raise"
) -> pd.DataFrame:
    """Return telemetry as `requests` does: time (seconds from the trial's start), series, device, value, trial_id."""
    return _read(open_run(folder, kinds=("telemetry",)), "telemetry.parquet", trial_id, damaged == "skip")


def trial_folder(run: Run, row: "pd.Series[Any]") -> Path:
    """Return the folder with the files of a trial, given its row."""
    return run.paths.trial(row["deployment_id"], row["attempt"], row["trial_id"]).folder


def requests_by_model(run: Run, row: "pd.Series[Any]") -> pd.DataFrame | None:
    """Return a trial's measured requests with the model that each named; None if none did, or the file is missing.

    An export's trial has them in its row, since it has no files.
    """
    if isinstance(exported := row.get(ASKED_MODELS), str):
        return pd.DataFrame(json.loads(exported))
    if MODELS_SET not in str(row["config"]):
        return None
    names = written_columns(["phase", "error", *(name for name in REQUESTS_BY_MODEL if name != "failed")])
    table = read_if_whole(read_table, trial_folder(run, row) / "requests.parquet", names)
    if table is None:
        return None
    requests = table.to_pandas()
    measured = requests[requests["phase"] == "measured"]
    named: pd.DataFrame = measured.assign(failed=measured["error"].notna())[list(REQUESTS_BY_MODEL)]
    return named


def _read(run: Run, name: str, trial_id: str | Iterable[str] | None, skip_damaged: bool = False) -> pd.DataFrame:
    trials = run.trials
    if trial_id is not None:
        trial_ids = [trial_id] if isinstance(trial_id, str) else list(trial_id)
        if unknown := set(trial_ids) - set(trials["trial_id"]):
            rows = load(run.paths.out, all_rows=True)
            trials = pd.concat([trials, rows[rows["trial_id"].isin(unknown)].drop_duplicates("trial_id", keep="last")])
        if unknown := set(trial_ids) - set(trials["trial_id"]):
            raise KeyError(f"{run.paths.out}: no trial {', '.join(sorted(unknown))}")
        trials = trials[trials["trial_id"].isin(trial_ids)]
    trials = trials[trials["attempt"].notna()]
    tables = []
    for _, row in trials.iterrows():
        try:
            table = read_table(trial_folder(run, row) / name)
        except FileNotFoundError:
            continue
        except DamagedFile as error:
            if not skip_damaged:
                raise
            warn_left_out(error)
            continue
        tables.append(table.append_column("trial_id", pa.repeat(row["trial_id"], len(table))))
    frame: pd.DataFrame = pa.concat_tables(tables, promote_options="default").to_pandas() if tables else pd.DataFrame()
    return frame
