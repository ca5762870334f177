"""The ledger: what was tried and what came of it, appended line by line, and the one lock on a results folder.

`ledger.jsonl` is the truth that a killed driver leaves behind; trials.parquet is made from it. Only the driver writes
it, one JSON object a line, flushed to disk before anyone is told. A last line cut short by a crash is ignored.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sweep.config import ConfigError
from sweep.records import Outcome

Row = dict[str, Any]


class Ledger:
    """The rows of every trial ever finished in this folder, the latest of each, and the attempts at each deployment."""

    def __init__(self, path: Path, write: bool = True) -> None:
        """Replay what is there; `write=False` only reads, and needs neither the lock nor the folder."""
        self.rows: dict[str, Row] = {}
        self.attempts: dict[str, int] = {}
        if path.exists():
            for entry in _entries(path):
                self._replay(entry)
        if write:
            path.parent.mkdir(parents=True, exist_ok=True)
            _end_cut_line(path)
            self.file = path.open("a", encoding="utf-8")

    def _replay(self, entry: dict[str, Any]) -> None:
        if entry["event"] == "trial":
            self.rows[entry["row"]["trial_id"]] = entry["row"]
        elif entry["event"] == "attempt":
            self.attempts[entry["deployment_id"]] = int(entry["attempt"])

    def begin_attempt(self, deployment_id: str) -> str:
        """The number of a new attempt at a deployment, counted over all runs of the command."""
        attempt = str(self.attempts.get(deployment_id, 0) + 1)
        self._append({"event": "attempt", "deployment_id": deployment_id, "attempt": attempt})
        return attempt

    def end_attempt(self, deployment_id: str, attempt: str, end: str) -> None:
        """Note how an attempt ended: `done`, or what was lost."""
        self._append({"event": "attempt_end", "deployment_id": deployment_id, "attempt": attempt, "end": end})

    def commit(self, row: Row) -> None:
        """Make a trial's row durable. From here on the trial is what this row says."""
        self._append({"event": "trial", "row": row})

    def _append(self, entry: dict[str, Any]) -> None:
        self.file.write(json.dumps(entry, default=str) + "\n")
        self.file.flush()
        os.fsync(self.file.fileno())
        self._replay(entry)

    def close(self) -> None:
        self.file.close()

    def done(self, trial_id: str, retry: bool) -> bool:
        """Whether this run leaves the trial alone: its row says done, or it failed and `retry` forbids another try."""
        row = self.rows.get(trial_id)
        if row is None:
            return False
        outcome = Outcome(row["outcome"])
        return outcome.done or (not retry and outcome.failed)


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                try:
                    yield json.loads(line)
                except json.JSONDecodeError:
                    continue  # the line that a crash cut short, ended by the run after it


def _end_cut_line(path: Path) -> None:
    """A crash can leave half a line: end it, so that the next entry does not join it."""
    if path.exists() and path.stat().st_size:
        with path.open("rb+") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")


@contextmanager
def sole_driver(out: Path) -> Iterator[None]:
    """Hold the lock of a results folder; the kernel releases it however this process ends.

    Raises:
        ConfigError: if another driver holds it, or the folder cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / ".lock").open("a+")
    except OSError as error:
        raise ConfigError(f"out={out}: cannot be written ({error.strerror})") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            raise ConfigError(
                f"out={out}: a sweep is running there (process {lock.read().strip() or 'unknown'})"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
