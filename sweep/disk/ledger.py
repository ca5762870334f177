"""The ledger: attempts and trial results, appended line by line, each line with its checksum.

`ledger.jsonl` is the authoritative record that survives a killed driver; trials.parquet is made from it. Only the
driver writes it, one JSON object per line, flushed to disk before the result is reported. A last line cut short by a
crash is ignored; any other line that does not hold is set aside in `ledger.damaged.jsonl`, and its trial is measured
again.
"""

import errno
import os
import re
import sys
import time
import uuid
from collections.abc import Container, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import compress
from pathlib import Path
from typing import Any

from sweep.config import DamagedFile, Halted
from sweep.disk.lines import entries, sealed
from sweep.disk.run_files import RunPaths
from sweep.disk.tables import compact_place
from sweep.records import Fault, Outcome
from sweep.whole_file import write_whole

LedgerRow = dict[str, Any]
COMPACT_BYTES = 1 << 20  # of a ledger, above which it is written anew if most of its rows are superseded
MOST_DAMAGE_NAMED = 5  # damaged lines; more are only counted
ATTEMPT = {"deployment_id": str, "attempt": str}
TYPES_OF_EVENT: dict[str, Mapping[str, Any]] = {  # what each kind of entry has
    "run": {"run": str},
    "trial": {"row": dict},
    "attempt": ATTEMPT,
    "attempt_placed": {**ATTEMPT, "node": str},
    "attempt_end": {**ATTEMPT, "end": str},
    "answers": {"trial_id": str, "answer": str, "count": int},
}
TYPES_OF_ROW = {**ATTEMPT, "trial_id": str, "outcome": str, "reason": str | None}
OUTCOMES = frozenset(Outcome)


class Misplaced(Halted):
    """The results folder is no longer where it was: nothing may be written there by this run."""


class Ledger:
    """The latest row of every trial ever finished in this folder, and the attempts at each deployment."""

    def __init__(
        self, path: Path, write: bool = True, compact: bool = True, columns: Container[str] | None = None
    ) -> None:
        """Replay the file, if there is one; `write=False` only reads, and needs neither the lock nor the folder.

        `compact` allows the file to be written anew: not where it is mirrored piece by piece. With `columns` only these
        of a row are kept, and raw data is not looked for: to read, not to write.
        """
        self.path, self.columns = path, columns
        self.rows: dict[str, LedgerRow] = {}  # without nulls
        self.superseded: list[LedgerRow] = []  # results of trials that were measured again
        self._shared: dict[str, str] = {}  # strings that many rows have in common, stored once
        self.attempts: dict[str, int] = {}
        self.answers: dict[str, tuple[str, int]] = {}  # trial -> its engine's last failure, and how often in a row
        self.run = ""  # this folder's unique name, used in the markers of its engines
        self.set_aside: list[tuple[int, bytes, str]] = []  # lines that do not hold: number, content, problem
        num_rows = self._read()
        rows = self.rows.values() if columns is None else ()
        self.damaged = _damaged(RunPaths(path.parent), rows)  # trials with truncated raw data
        if write:
            path.parent.mkdir(parents=True, exist_ok=True)
            superseded = num_rows - len(self.rows) - len(self.superseded)
            large = path.exists() and path.stat().st_size > COMPACT_BYTES
            if compact and (self.set_aside or (large and superseded > num_rows / 2)):
                self._compact()
            _drop_cut_line(path)
            self.file = path.open("ab", buffering=0)
            if not self.run:
                self._append({"event": "run", "run": uuid.uuid4().hex})

    def _read(self) -> int:
        """Replay the file; return the number of rows in it, those that later ones replace included."""
        if not self.path.exists():
            return 0
        num_rows = 0
        with self.path.open("rb") as file:
            for entry in entries(_whole_lines(file), is_ledger_entry, lambda *damage: self.set_aside.append(damage)):
                self._replay(entry)
                num_rows += entry["event"] == "trial"
        return num_rows

    def describe_damage(self) -> list[str]:
        """Return a line that names the lines which do not hold, if there are any."""
        if not self.set_aside:
            return []
        numbers = ", ".join(str(number) for number, _, _ in self.set_aside[:MOST_DAMAGE_NAMED])
        more = f" and {len(self.set_aside) - MOST_DAMAGE_NAMED} more" if len(self.set_aside) > MOST_DAMAGE_NAMED else ""
        trials = sorted({trial_id for _, line, _ in self.set_aside if (trial_id := _trial_of(line))})
        named = f" (trials {', '.join(trials[:MOST_DAMAGE_NAMED])})" if trials else ""
        problem = self.set_aside[0][2]
        return [f"{self.path}: damaged in line {numbers}{more}{named}: {problem}; what they held is measured again"]

    def _compact(self) -> None:
        """Write the file anew, without what later lines replace; lines that do not hold go to a file of their own."""
        if self.set_aside:
            with self.path.with_name("ledger.damaged.jsonl").open("ab") as file:
                file.writelines(line.rstrip(b"\n") + b"\n" for _, line, _ in self.set_aside)
        run: list[dict[str, Any]] = [{"event": "run", "run": self.run}] if self.run else []
        attempts = [{"event": "attempt", "deployment_id": key, "attempt": str(n)} for key, n in self.attempts.items()]
        answers = [
            {"event": "answers", "trial_id": trial_id, "answer": answer, "count": count - 1}
            for trial_id, (answer, count) in self.answers.items()
        ]  # the row counts too
        before = [{"event": "trial", "row": row} for row in self.superseded]
        rows = [{"event": "trial", "row": row} for row in self.rows.values()]

        def write(staged: Path) -> None:  # line by line: all of them together are another ledger in memory
            with staged.open("wb") as file:
                file.writelines(sealed(entry) for entry in [*run, *attempts, *before, *answers, *rows])

        write_whole(self.path, write)

    def _replay(self, entry: dict[str, Any]) -> None:
        if entry["event"] == "trial":
            row = entry["row"]
            before = self.rows.get(row["trial_id"])
            if before is not None and before["outcome"] == "ok" and before.get("attempt") != row.get("attempt"):
                self.superseded.append(before)
            self._count_answer(row)
            self.rows[row["trial_id"]] = {
                sys.intern(key): self._shared.setdefault(value, value) if isinstance(value, str) else value
                for key, value in row.items()
                if value is not None and (self.columns is None or key in self.columns)
            }
        elif entry["event"] == "attempt":
            self.attempts[entry["deployment_id"]] = int(entry["attempt"])
        elif entry["event"] == "answers":
            self.answers[entry["trial_id"]] = entry["answer"], int(entry["count"])
        elif entry["event"] == "run":
            self.run = entry["run"]

    def _count_answer(self, row: LedgerRow) -> None:
        answer = engine_answer(row)
        if answer is None:
            self.answers.pop(row["trial_id"], None)
            return
        last, count = self.answers.get(row["trial_id"], ("", 0))
        self.answers[row["trial_id"]] = answer, (count + 1 if answer == last else 1)

    def begin_attempt(self, deployment_id: str) -> str:
        """Record and return the number of a new attempt at a deployment, counted over all runs of the command."""
        number, paths = self.attempts.get(deployment_id, 0) + 1, RunPaths(self.path.parent)
        while self.set_aside and paths.attempt(deployment_id, str(number)).exists():  # its line may be the damaged one
            number += 1
        attempt = str(number)
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
        self._append({"event": "trial", "row": {key: value for key, value in row.items() if value is not None}})
        self.damaged.discard(row["trial_id"])

    def _append(self, entry: dict[str, Any]) -> None:
        """Append one line, which is then on disk. Raises OSError, and removes a partial line, if it could not."""
        line = sealed(entry | {"at": round(time.time(), 3)})
        end = os.fstat(self.file.fileno()).st_size
        try:
            if self.file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.file.name)
            os.fsync(self.file.fileno())
        except OSError:
            os.ftruncate(self.file.fileno(), end)
            raise
        self._replay(entry)

    def check_in_place(self) -> None:
        """Raise Misplaced if the file is no longer the one under its name: what is appended would be lost."""
        try:
            in_place = os.path.samestat(os.stat(self.file.name), os.fstat(self.file.fileno()))
        except FileNotFoundError:
            in_place = False
        if not in_place:
            raise Misplaced(f"{self.file.name} was deleted or replaced: nothing more is written")

    def close(self) -> None:
        self.file.close()

    def final(self, trial_id: str) -> bool:
        """Return whether its engine has failed twice in the same words: it would again."""
        return self.answers.get(trial_id, ("", 0))[1] >= 2

    def done(self, trial_id: str, retry: bool, drivers: Container[str] | None = None) -> bool:
        """Return whether the trial needs no run: it is done, or it failed and `retry` is False or the failure is final.

        `drivers` are those of the nodes that there are now, where known: a final failure under another one is not.
        """
        row = self.rows.get(trial_id)
        if row is None or trial_id in self.damaged:
            return False
        outcome = Outcome(row["outcome"])
        same_driver = drivers is None or row.get("driver") is None or row["driver"] in drivers
        return outcome.done or (outcome.failed and (not retry or (self.final(trial_id) and same_driver)))


def engine_answer(row: LedgerRow) -> str | None:
    """Return the failure that a row's engine answered with, numbers left out; None if it is no answer of the engine."""
    if row.get("fault") != Fault.ENGINE or not Outcome(row["outcome"]).failed:
        return None
    return f"{row['outcome']} under driver {row.get('driver')}: {re.sub(r'[0-9]+', '', row.get('reason') or '')}"


def _whole_lines(lines: Iterable[bytes]) -> Iterator[bytes]:
    """The lines but for a last one that a crash has cut short."""
    return (line for line in lines if line.endswith(b"\n"))


def is_ledger_entry(entry: dict[str, Any]) -> bool:
    """Return whether an entry has what its kind needs; a row also an outcome that exists."""
    types = TYPES_OF_EVENT.get(str(entry.get("event")))
    if types is None or not _has_types(entry, types):
        return False
    if entry["event"] == "trial":
        return _has_types(entry["row"], TYPES_OF_ROW) and entry["row"]["outcome"] in OUTCOMES
    return bool(entry.get("attempt", "0").isdecimal())


def _has_types(content: Mapping[str, Any], types: Mapping[str, Any]) -> bool:
    return all(isinstance(content.get(key), type_) for key, type_ in types.items())


def _trial_of(line: bytes) -> str | None:
    """Return the trial that a damaged line names, if it still does."""
    match = re.search(rb'"trial_id": "([0-9a-f]{6,32})"', line)
    return match[1].decode() if match else None


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
        return _is_in_damaged_file(path)
    return magic != b"PAR1" or int.from_bytes(length, "little") + 12 > size


def _is_in_damaged_file(path: Path) -> bool:
    """Return whether a compact file is damaged that may have it: what was removed on purpose keeps its row."""
    try:
        compact_place(path)
    except DamagedFile:
        return True
    return False


def _drop_cut_line(path: Path) -> None:
    """Remove a last line that a crash has cut short, so that the next entry does not join it."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        content_end = file.seek(0, os.SEEK_END)
        begin = content_end
        while begin and not _ends_line(file, begin):
            begin -= 1
        file.truncate(begin)


def _ends_line(file: Any, position: int) -> bool:
    file.seek(position - 1)
    return bool(file.read(1) == b"\n")
