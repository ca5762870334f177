"""Weights & Biases: one run per trial and one group per sweep. A separate process sends the data, so no trial waits.

A tracking fault never fails a sweep. Any fault, including a hang or crash of wandb, gives one warning. This module
describes a trial for wandb, and `analysis.tracking.process` sends it.
"""

import contextlib
import json
import logging
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.headline import HEADLINE
from analysis.quantities import labelled_column
from analysis.tracking import process
from sweep.base.config import Tracking, import_path
from sweep.base.records import Sample
from sweep.disk import row as trial_row
from sweep.numbers.quantities.goodput import BOUNDED
from sweep.numbers.quantity import percentile_name

log = logging.getLogger(__name__)

INIT_TIMEOUT = 20.0  # seconds allowed to reach the server
CLOSE_TIMEOUT = 120.0  # seconds allowed for the remaining uploads
MOST_KEYS = 40  # columns of a run's summary
OUTCOME = ("outcome", "reason", "warnings", "attempt", "num_requests", "num_failed", "duration", "client_stamp_source")
OTHER_FIGURES = (
    *("total_throughput", "request_throughput", "goodput_share", "kv_cache_usage_max", "memory_peak_bytes"),
    *("agreement", "quality", "acceptance_rate", "prefix_hit_rate", "preemptions", "launch_seconds"),
)
SESSION_FIGURES = (
    *("session_duration_p50", "sessions_per_hour", "first_turn_ttft_p50", "first_turn_tpot_p50", "later_turn_ttft_p50"),
    *("later_turn_tpot_p50", "cached_share", "later_turn_cached_share", "later_turn_sent_hit_rate"),
    *("replay_hit_error", "cache_hit_difference", "replay_exact_lengths", "replay_exact_turns"),
)
LONGEST_NAME = 128  # maximum characters that W&B accepts


class Tracker:
    """Sends finished trials to the tracking process without waiting for it."""

    def __init__(self, config: Tracking, group: str, folder: Path, init_timeout: float = INIT_TIMEOUT) -> None:
        """`group` is the sweep's name. `folder` gets the runs and the process's log."""
        self._settings = {
            "project": config.project,
            "entity": config.entity,
            "group": group,
            "folder": str(folder),
            "init_timeout": init_timeout,
        }
        self._folder, self._sends_trials = folder, config.trials
        self._messages: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._process: subprocess.Popen[str] | None = None
        self._warned = self._tracked = False

    def log_trial(self, row: Mapping[str, Any], telemetry: Sequence[Sample]) -> None:
        """Track a trial (its row, and its telemetry as history), unless only the sweep is tracked. Returns at once."""
        self._tracked = True
        if not self._sends_trials:
            return
        try:
            if self._process is None:
                self._start()
            self._messages.put(json.dumps({"run": wandb_run(row), "telemetry": list(telemetry)}, default=str))
        except (OSError, TypeError, ValueError) as error:
            self._warn(f"{type(error).__name__}: {error}")

    def close(self, timeout: float = CLOSE_TIMEOUT) -> None:
        """Let the process finish its work, for at most `timeout` seconds."""
        if self._process is None:
            return
        self._messages.put(None)
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._warn(f"not finished {timeout:g} s after the last trial")
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._reader.join(timeout=5)
        self._process = None

    def publish(self, run: Path) -> list[str]:
        """Send the whole run, with its report, after its trials. Return the outcome, line by line."""
        if not self._tracked:
            return []
        if not self._sends_trials:
            self._folder.mkdir(parents=True, exist_ok=True)
            process.keep_destination(self._settings)
        command = [sys.executable, "-P", "-m", "sweep", "wandb", str(run), "--no-trials"]
        try:
            environ = {**os.environ, "PYTHONPATH": import_path()}
            done = subprocess.run(command, capture_output=True, text=True, timeout=CLOSE_TIMEOUT, env=environ)
        except (OSError, subprocess.TimeoutExpired) as error:
            self._warn(f"the whole run was not sent: {type(error).__name__}")
            return []
        if done.returncode:
            self._warn((done.stderr.strip().splitlines() or ["the whole run was not sent"])[-1])
        return done.stdout.splitlines()

    def _start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "tracking.log").open("a", encoding="utf-8") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-P", process.__file__],  # -P, so that this folder's modules shadow no others
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,  # so that it can finish if the sweep is interrupted
            )
        self._messages.put(json.dumps(self._settings))
        threading.Thread(target=self._write, args=(self._process,), name="tracking", daemon=True).start()
        self._reader = threading.Thread(target=self._read, args=(self._process,), name="tracking", daemon=True)
        self._reader.start()

    def _write(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin as pipe:  # `_read` reports why the pipe broke
            while (message := self._messages.get()) is not None:
                pipe.write(message + "\n")
                pipe.flush()

    def _read(self, process: subprocess.Popen[str]) -> None:
        """Warn about every fault that the process reports, and about its failure."""
        assert process.stdout is not None
        with process.stdout as pipe:
            for line in pipe:
                self._warn(line.strip())
        status = process.wait()
        if status != 0:
            self._warn(f"its process ended with status {status}")

    def _warn(self, fault: str) -> None:
        if not self._warned:
            self._warned = True
            log.warning("tracking: %s; the sweep continues (see %s)", fault, self._folder / "tracking.log")


# A trial for wandb ----------------------------------------------------------------------------------------


def wandb_run(row: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a row of the trials as a W&B run: settings as config, outcome as summary."""
    percentiles = trial_row.percentiles_of([row])
    asked = trial_row.asked_columns()
    schema = trial_row.schema(percentiles)
    # If the engine took the timestamps, latencies exclude the path to the client.
    hidden = trial_row.latency_columns(percentiles) if row.get("client_stamp_source") == "engine" else set()
    values = {key: value for key, value in row.items() if value is not None and key not in hidden}
    config = {key: plain(value) for key, value in values.items() if key in asked}
    axes = {re.sub(r"\W", "_", key): value for key, value in values.items() if key not in schema}
    return {
        "trial_id": row["trial_id"],
        "name": run_name(row),
        "job_type": row.get("backend"),
        "tags": [str(values[key]) for key in ("backend", "workload", "outcome") if key in values],
        "config": {**axes, **config},  # W&B groups and filters only by names of letters, digits and underscores
        "summary": dict(_on_wandb(key, values[key]) for key in _summarised(percentiles, values)),
        "ok": row.get("outcome") == "ok",
    }


def _summarised(percentiles: Sequence[float], values: Mapping[str, Any]) -> list[str]:
    """Return the columns for a run's summary: those that usually decide and have a value; trials.parquet has all."""
    latencies = [f"{name}_{percentile_name(each)}" for name in BOUNDED for each in percentiles]
    columns = dict.fromkeys([*OUTCOME, *HEADLINE, *SESSION_FIGURES, *latencies, *OTHER_FIGURES])
    return [column for column in columns if column in values][:MOST_KEYS]


def _on_wandb(column: str, value: Any) -> tuple[str, Any]:
    """Return a column's name and value on W&B: latencies in milliseconds, as in other displays."""
    labelled = labelled_column(column)
    return (f"{column}_ms", value * labelled.scale) if labelled and labelled.unit == "ms" else (column, value)


def run_name(row: Mapping[str, Any]) -> str:
    """Return the trial's label, e.g. `vllm tiny-llama qa batches of 8 replicate 0`, cut to W&B's limit."""
    name = str(row.get("label") or row["trial_id"])  # rows of older versions have no label
    cut = LONGEST_NAME - len(f"... {row['trial_id']}")
    return name if len(name) <= LONGEST_NAME else f"{name[:cut]}... {row['trial_id']}"


def plain(value: Any) -> Any:
    """Parse a JSON column (resolved config, versions, hardware), so that wandb can filter by its keys."""
    if isinstance(value, str) and value.startswith("{"):
        with contextlib.suppress(ValueError):
            return json.loads(value)
    return value
