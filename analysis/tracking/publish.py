"""Sends a finished run's files to W&B: its trials, the sweep as a whole, a workspace and a report.

Equal ids replace earlier uploads, so it may be repeated. If there is no login, everything stays offline.
"""

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.load import RunNotFound
from analysis.report.html import write_all
from analysis.results import RunResults, open_results
from analysis.tracking import process
from analysis.tracking.tracker import INIT_TIMEOUT, wandb_run
from sweep.base.config import run_folder
from sweep.base.records import UNMEASURED
from sweep.disk import run_files
from sweep.disk.run_files import DamagedFile
from sweep.disk.tables import read_if_whole


def main(run: str, project: str | None, entity: str | None, trials: bool) -> int:
    """Send a run and print its addresses; return the exit status."""
    os.environ.setdefault("WANDB_SILENT", "true")
    folder = run_folder(run)
    try:
        for line in publish(folder, project, entity, trials):
            print(line, flush=True)
    except (RunNotFound, DamagedFile) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Exception as error:  # noqa: BLE001  whatever the library or its server has against it
        print(f"error: W&B: {' '.join(f'{type(error).__name__}: {error}'.split())[:300]}", file=sys.stderr)
        return 1
    return 0


def publish(folder: Path, project: str | None, entity: str | None, trials: bool = True) -> list[str]:
    """Send a run to W&B, or write it to disk for later. Return the outcome, line by line."""
    results = open_results(folder)
    paths = results.run.paths
    if not (paths.report.exists() and paths.summary.exists()):
        write_all(results)
    paths.tracking.mkdir(exist_ok=True)
    settings = _destination(results, project, entity)
    mode = process.chosen_mode()
    if mode == "online":
        settings["entity"] = settings["entity"] or _login_entity()
    process.keep_destination(settings)
    sent = _track_trials(settings, mode, results) if trials else 0
    from analysis.tracking.sweep_run import track_sweep

    track_sweep(settings, mode, results)
    sent_now = [f"W&B: the run and {sent} trials ({mode})"] if trials else []
    return [*sent_now, *_views(settings, mode, results)]


def _views(settings: dict[str, Any], mode: str, results: RunResults) -> list[str]:
    from analysis.tracking import dashboards  # slow to import

    tracking = results.run.paths.tracking
    group = process.group(results.run.name, tracking)
    place = (settings["project"], settings["entity"] or "", group)
    made = dashboards.engines_workspace(results, *place)
    if mode == "online":
        return dashboards.save_online(made, dashboards.engines_report(results, *place), tracking)
    dashboards.write_offline(made, tracking)
    return [f"W&B: wandb sync {shlex.quote(str(tracking))}/offline-run-*"]


def _destination(results: RunResults, project: str | None, entity: str | None) -> dict[str, Any]:
    """Return the project and entity given on the command line, else the project and entity of the tracked run."""
    file = results.run.paths.tracking / "destination.json"
    earlier = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return {
        "project": project or earlier.get("project") or "sweep",
        "entity": entity or earlier.get("entity"),
        "group": results.run.name,
        "folder": str(results.run.paths.tracking),
        "init_timeout": INIT_TIMEOUT,
    }


def _login_entity() -> str:
    import wandb

    return str(wandb.Api().default_entity)


def _track_trials(settings: dict[str, Any], mode: str, results: RunResults) -> int:
    """Track the trials that ran, in the same way as during the run; return their number."""
    run = results.run
    ran = run.trials[~run.trials["outcome"].isin(list(UNMEASURED)) & run.trials["attempt"].notna()]
    for row in ran.to_dict("records"):
        present = {str(key): value for key, value in row.items() if not _is_missing(value)}
        trial = run.paths.trial(row["deployment_id"], row["attempt"], row["trial_id"])
        samples = read_if_whole(run_files.read_telemetry, trial.telemetry) or []  # some engines have no telemetry
        process.track(settings, mode, json.loads(json.dumps(wandb_run(present), default=_warning_list)), samples)
    return len(ran)


def _is_missing(cell: Any) -> bool:
    return pd.api.types.is_scalar(cell) and bool(pd.isna(cell))


def _warning_list(cell: Any) -> Any:
    """Return an array in a list column (a trial's warnings) as a list, the form that the tracker gets during a run."""
    return cell.tolist() if isinstance(cell, np.ndarray) else str(cell)
