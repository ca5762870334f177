"""The rows of a run as capsules: selected by RUN#TRIAL, each with its settings, its lockfile and the run's noise."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.compare.reproduction import point_noise
from analysis.load import RunNotFound
from analysis.results import RunResults, open_results
from analysis.statistics.variance import SPREAD_OF
from backends.prepare import locks
from sweep.base.config import ConfigError, first_line, run_folder, shortened
from sweep.base.setting_labels import TRIAL_MARK
from sweep.base.whole_file import read_bounded
from sweep.disk import object_store, run_files
from sweep.disk.stored_run import LocalCopy
from sweep.rerun.capsule import Capsule, packed_lock, parse_capsules
from sweep.rerun.circumstances import circumstances

STANDARD_INPUT = "-"
LARGEST_CAPSULES = 64 << 20  # maximum bytes of a file with capsules
FEWEST_CHARACTERS = 4  # minimum length of a prefix of a trial's id


def capsules_of(source: str, content: str | None = None) -> list[Capsule]:
    """Return the capsules of RUN#TRIAL, of all results of RUN, or in a file; `content` is the text of standard input.

    Raises:
        ConfigError: for any other source, a missing trial, or a trial without a result.
    """
    if content is not None:
        return parse_capsules(content)
    run, mark, trial_id = source.partition(TRIAL_MARK)
    try:
        if not mark and Path(source).is_file():
            return parse_capsules(read_bounded(Path(source), LARGEST_CAPSULES).decode("utf-8"))
    except (OSError, UnicodeDecodeError) as error:  # also for a text that cannot be a file name
        raise ConfigError(f"{shortened(source)}: {first_line(error)}") from None
    if mark and not trial_id:
        raise ConfigError(f"{source}: expected a trial's id from trials.parquet after {TRIAL_MARK}")
    return _of_run(run, trial_id)


def _of_run(run: str, trial_id: str) -> list[Capsule]:
    copy = LocalCopy(run, ("locks",)) if object_store.is_url(run) else None
    folder = copy.folder if copy else run_folder(run)
    try:
        everything = open_results(folder, all_rows=True)
        chosen = _chosen(run, everything.run.trials, trial_id)
        planned = chosen[chosen["in_plan"].fillna(True).astype(bool)]
        if not trial_id:
            chosen = planned[planned["outcome"] == "ok"]
            if chosen.empty:
                raise ConfigError(f"{run}: no trial with a result")
        results = open_results(folder) if len(planned) else everything
    except RunNotFound:
        raise ConfigError(f"{run}: no run here (trials.parquet is missing)") from None
    if trial_id and (outcome := chosen.iloc[-1]["outcome"]) != "ok":
        raise ConfigError(f"{run}{TRIAL_MARK}{trial_id}: its outcome is {outcome}; expected a trial with a result")
    lock_texts = {
        path.name: read_bounded(path, locks.LARGEST_LOCK).decode()
        for path in run_files.RunPaths(folder).locks.glob("*.txt")
    }
    plan = run_files.RunPaths(folder).plan
    entries = run_files.read_plan(plan) if plan.is_file() else []
    axes = {entry["trial_id"]: entry["coordinates"] for entry in entries if "coordinates" in entry}
    places = _places(everything.run.trials)
    rows = [each for _, each in chosen.sort_values("started_at").iterrows()]
    return [_capsule(run, row, results, lock_texts, axes, places) for row in rows]


def _chosen(run: str, trials: pd.DataFrame, trial_id: str) -> pd.DataFrame:
    """Return the rows of a trial, given its id or a prefix of it; all rows if no id is given."""
    if not trial_id:
        return trials
    exact = trials[trials["trial_id"] == trial_id]
    matches = exact if len(exact) else trials[trials["trial_id"].str.startswith(trial_id)]
    ids = matches["trial_id"].unique()
    problem = "no such trial; expected an id from its trials.parquet" if not len(ids) else ""
    if exact.empty and len(trial_id) < FEWEST_CHARACTERS:
        problem = f"too short; give at least {FEWEST_CHARACTERS} characters of a trial's id"
    elif len(ids) > 1:
        problem = f"{len(ids)} trials have ids that begin with it; give more characters"
    if problem:
        raise ConfigError(f"{run}{TRIAL_MARK}{trial_id}: {problem}")
    planned = matches[matches["in_plan"].fillna(True).astype(bool)]
    return planned.iloc[-1:] if len(planned) else matches.iloc[-1:]


def _places(trials: pd.DataFrame) -> "pd.Series[Any]":
    return trials.groupby("launch")["started_at"].rank(method="first")


def _capsule(
    run: str,
    frame_row: "pd.Series[Any]",
    results: RunResults,
    lock_texts: Mapping[str, str],
    axes: Mapping[str, dict[str, Any]],
    places: "pd.Series[Any]",
) -> Capsule:
    row = plain_row(frame_row, places)
    trial_id = row["trial_id"]
    if not row.get("config"):
        raise ConfigError(
            f"{run}{TRIAL_MARK}{trial_id}: no configuration, since it was measured by {row['client_stamp_source']}"
        )
    config, digests = json.loads(row["config"]), json.loads(row.get("digests") or "{}")
    names = {column: row[column] for column in results.run.axes if row.get(column) is not None}
    keys = ("trial_id", "experiment", "label", "replicate", "seed", "started_at")
    return Capsule(
        f"{run}{TRIAL_MARK}{trial_id}",
        {key: row.get(key) for key in keys},
        config,
        axes.get(trial_id, names),
        _settings_of(row),
        digests,
        {file: packed_lock(lock) for file, lock in _locks(digests.get("lock"), lock_texts).items()},
        circumstances(row),
        {column: row[column] for column in SPREAD_OF if row.get(column) is not None},
        point_noise(results, trial_id),
    )


def _settings_of(row: Mapping[str, Any]) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(row.get("settings") or "{}")
    if row.get("slo"):
        settings["slo"] = json.loads(row["slo"])
    if row.get("percentiles"):
        settings["percentiles"] = [float(percentile) for percentile in row["percentiles"].split(", ")]
    return settings


def plain_row(frame_row: "pd.Series[Any]", places: "pd.Series[Any]") -> dict[str, Any]:
    """Return a row of a frame as plain Python data, without missing cells, and with its `place` in its launch."""
    present = {
        str(name): cell for name, cell in frame_row.items() if not pd.api.types.is_scalar(cell) or pd.notna(cell)
    }
    row = {name: cell.tolist() if isinstance(cell, np.generic | np.ndarray) else cell for name, cell in present.items()}
    place = places.get(frame_row.name)
    return row if place is None or pd.isna(place) else {**row, "place": int(place)}


def _locks(reference: str | None, texts: Mapping[str, str]) -> dict[str, str]:
    """Return the row's lockfile under the name that its environment looks up; for an older row, all lockfiles of its
    run. A lockfile that was replaced later is next to the current one, under a different name.
    """
    if reference is None:
        return dict(texts)
    file, _, digest = reference.partition(" ")
    lock = next((lock for lock in texts.values() if locks.lock_digest(lock) == digest), texts.get(file))
    return {} if lock is None else {file: lock}


def opened_rows(folder: Path) -> Sequence[dict[str, Any]]:
    """Return the rows of a run's current plan, each with its `place`."""
    trials = open_results(folder).run.trials
    places = _places(trials)
    return [plain_row(row, places) for _, row in trials.iterrows()]
