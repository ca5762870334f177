"""The ledger: attempts and trial results, appended line by line; and the lock on a results folder.

`ledger.jsonl` is the authoritative record that survives a killed driver; trials.parquet is made from it. Only the
driver writes it, one JSON object per line, flushed to disk before the result is reported. A last line cut short by a
crash is ignored.
"""

import errno
import fcntl
import json
import os
import socket
import sys
import time
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import compress
from pathlib import Path
from typing import Any

from sweep.config import ConfigError
from sweep.disk.run_files import RunPaths
from sweep.records import Outcome

LedgerRow = dict[str, Any]


class Ledger:
    """The latest row of every trial ever finished in this folder, and the attempts at each deployment."""

    def __init__(self, path: Path, write: bool = True) -> None:
        """Replay the file, if there is one; `write=False` only reads, and needs neither the lock nor the folder."""
        self.rows: dict[str, LedgerRow] = {}  # without nulls
        self.superseded: list[LedgerRow] = []  # results of trials that were measured again
        self._shared: dict[str, str] = {}  # strings that many rows have in common, stored once
        self.attempts: dict[str, int] = {}
        self.run = ""  # this folder's unique name, used in the markers of its engines
        if path.exists():
            with path.open("rb") as file:
                for entry in entries(file):
                    self._replay(entry)
        self.damaged = _damaged(RunPaths(path.parent), self.rows.values())  # trials with truncated raw data
        if write:
            path.parent.mkdir(parents=True, exist_ok=True)
            _end_cut_line(path)
            self.file = path.open("ab", buffering=0)
            if not self.run:
                self._append({"event": "run", "run": uuid.uuid4().hex})

    def _replay(self, entry: dict[str, Any]) -> None:
        if entry["event"] == "trial":
            row = entry["row"]
            before = self.rows.get(row["trial_id"])
            if before is not None and before["outcome"] == "ok" and before.get("attempt") != row.get("attempt"):
                self.superseded.append(before)
            self.rows[row["trial_id"]] = {
                sys.intern(key): self._shared.setdefault(value, value) if isinstance(value, str) else value
                for key, value in row.items()
                if value is not None
            }
        elif entry["event"] == "attempt":
            self.attempts[entry["deployment_id"]] = int(entry["attempt"])
        elif entry["event"] == "run":
            self.run = entry["run"]

    def begin_attempt(self, deployment_id: str) -> str:
        """Record and return the number of a new attempt at a deployment, counted over all runs of the command."""
        attempt = str(self.attempts.get(deployment_id, 0) + 1)
        self._append({"event": "attempt", "deployment_id": deployment_id, "attempt": attempt})
        return attempt

    def place_attempt(self, deployment_id: str, attempt: str, node: str) -> None:
        """Record the node on which an attempt has begun."""
        self._append({"event": "attempt_placed", "deployment_id": deployment_id, "attempt": attempt, "node": node})

    def end_attempt(self, deployment_id: str, attempt: str, end: str) -> None:
        """Record the end of an attempt: `done`, or the loss that ended it."""
        self._append({"event": "attempt_end", "deployment_id": deployment_id, "attempt": attempt, "end": end})

    def commit(self, row: LedgerRow) -> None:
        """Make a trial's row durable: it is the trial's result from now on."""
        self._append({"event": "trial", "row": row})
        self.damaged.discard(row["trial_id"])

    def _append(self, entry: dict[str, Any]) -> None:
        """Append one line, which is then on disk. Raises OSError, and removes a partial line, if it could not."""
        line = json.dumps(entry | {"at": round(time.time(), 3)}, default=str).encode() + b"\n"
        end = os.fstat(self.file.fileno()).st_size
        try:
            if self.file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.file.name)
            os.fsync(self.file.fileno())
        except OSError:
            os.ftruncate(self.file.fileno(), end)
            raise
        self._replay(entry)

    def close(self) -> None:
        self.file.close()

    def done(self, trial_id: str, retry: bool) -> bool:
        """Return whether the trial needs no run: it is done, or it failed and `retry` is False."""
        row = self.rows.get(trial_id)
        if row is None or trial_id in self.damaged:
            return False
        outcome = Outcome(row["outcome"])
        return outcome.done or (not retry and outcome.failed)


def entries(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The entries of a ledger; a line that a crash has cut short is none."""
    for line in lines:
        with suppress(ValueError):
            yield json.loads(line)


def _damaged(paths: RunPaths, rows: Iterable[LedgerRow]) -> set[str]:
    """Trials whose requests.parquet exists but is truncated; checked in parallel, since shared disks are slow."""
    with_data = [row for row in rows if Outcome(row["outcome"]).done]
    files = [paths.trial(row["deployment_id"], row["attempt"], row["trial_id"]).requests for row in with_data]
    with ThreadPoolExecutor(16) as pool:
        return {row["trial_id"] for row in compress(with_data, pool.map(_cut_short, files))}


def _cut_short(path: Path) -> bool:
    """Return whether a Parquet file is truncated: its last bytes must be the footer's length and "PAR1"."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 8))
            length, magic = file.read(4), file.read(4)
    except FileNotFoundError:
        return False  # raw data that was removed on purpose does not invalidate the row
    return magic != b"PAR1" or int.from_bytes(length, "little") + 12 > size


def _end_cut_line(path: Path) -> None:
    """End a line that a crash has cut short, so that the next entry does not join it."""
    if path.exists() and path.stat().st_size:
        with path.open("rb+") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")


@contextmanager
def sole_driver(out: Path) -> Iterator[None]:
    """Hold the lock of a results folder; the kernel releases it. Raises ConfigError if another driver holds it."""
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
            holder = lock.read().strip() or "unknown"
            raise ConfigError(f"out={out}: a sweep is running there (process {holder})") from None
        lock.truncate(0)
        lock.write(f"{os.getpid()} on {socket.gethostname()}")
        lock.flush()
        yield
