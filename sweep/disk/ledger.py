"""The ledger: attempts and trial results, appended line by line, each line with its checksum.

`ledger.jsonl` is the authoritative record that survives a killed driver; trials.parquet is derived from it. Only the
driver writes it, one JSON object per line, flushed to disk before the result is reported. A last line cut short by a
crash is ignored. Any other damaged line is moved to `ledger.damaged.jsonl`, and its trial is measured again. Long texts
are stored in separate lines, to which rows refer by digest (`sweep.disk.ledger_lines.shared_texts`).
"""

import errno
import os
import re
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sweep.base.config import DamagedFile, Halted
from sweep.base.records import Outcome
from sweep.base.whole_file import open_regular, write_whole
from sweep.disk.ledger_lines.checksums import entries, sealed
from sweep.disk.ledger_lines.compact_row import CompactRow
from sweep.disk.ledger_lines.consistency import TableResults, trials_with_damaged_data
from sweep.disk.ledger_lines.shared_texts import Texts, digest_of
from sweep.disk.run_files import RunPaths
from sweep.disk.tables import read_table
from sweep.drive.policy import TrialHistory, attempts_before
from sweep.numbers.warnings import warning_codes

LedgerRow = Mapping[str, Any]
COMPACT_BYTES = 1 << 20  # size above which a ledger is rewritten if most of its rows are superseded
MOST_DAMAGE_NAMED = 5  # maximum number of damaged lines that are listed
OUTCOMES = frozenset(Outcome)


class Misplaced(Halted):
    """The results folder was moved, replaced or taken over by another driver: this run must stop writing to it."""


class Ledger:
    """The latest row of every trial that has finished in this folder, and the attempts at each deployment."""

    def __init__(
        self,
        path: Path,
        write: bool = True,
        compact: bool = True,
        columns: Collection[str] | None = None,
        guard: Callable[[], None] = lambda: None,
    ) -> None:
        """Replay the file, if it exists. With `write=False` it is only read, which needs no lock and no folder.

        `compact` allows rewriting the file, which must not happen to a ledger that is mirrored in pieces. `columns`,
        for read-only use, reads only these columns of a row and does not check raw data. `guard` raises Misplaced when
        the folder belongs to another driver.
        """
        self.path, self.columns, self.guard = path, columns, guard
        self.rows: dict[str, LedgerRow] = {}  # without nulls
        self.superseded: list[LedgerRow] = []  # results of trials that were measured again
        self._texts = Texts(columns)
        self._recovered: dict[str, str] = {}  # lost texts restored from a trial's file, by digest
        self.attempts: dict[str, int] = {}
        self.histories: dict[str, TrialHistory] = {}  # histories of trials whose engine caused the last failure
        self.run = ""  # this folder's unique name, used in the markers of its engines
        self.set_aside: list[tuple[int, bytes, str]] = []  # rejected lines: number, content, problem
        paths = RunPaths(path.parent)
        table = TableResults(paths)
        num_rows = self._read()
        self.damaged = trials_with_damaged_data(paths, self.rows.values() if columns is None else ())
        self._losses = table.describe_losses([*self.rows.values(), *self.superseded], keep_table=write)
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
        if not self.path.exists():
            return 0
        num_rows = 0
        with open_regular(self.path) as file:
            for entry in entries(_whole_lines(file), self._check, lambda *damage: self.set_aside.append(damage)):
                self._replay(entry)
                num_rows += entry["event"] == "trial"
        return num_rows

    def _check(self, entry: dict[str, Any]) -> None:
        """Raise ValueError for a row with a lost text, or with an outcome that only a later version has."""
        if entry["event"] != "trial":
            return
        if entry["row"]["outcome"] not in OUTCOMES:
            raise ValueError(f"unknown outcome {entry['row']['outcome']}")
        for column, digest in self._texts.missing(entry["row"]):
            text = self._recovered.get(digest) or self._text_of_trial(entry["row"], column)
            if text is None or digest_of(text) != digest:
                raise ValueError(f"the line with its {column} is lost")
            entry["row"][column] = self._recovered[digest] = text

    def _text_of_trial(self, row: LedgerRow, column: str) -> str | None:
        path = RunPaths(self.path.parent).trial(row["deployment_id"], row["attempt"], row["trial_id"]).trial
        try:
            values = read_table(path, [column]).to_pydict().get(column)
        except (FileNotFoundError, DamagedFile):
            return None
        return values[0] if values else None

    def describe_damage(self) -> list[str]:
        """Return one message about damaged lines and one about lost results, if any."""
        if not self.set_aside:
            return self._losses
        numbers = ", ".join(str(number) for number, _, _ in self.set_aside[:MOST_DAMAGE_NAMED])
        more = f" and {len(self.set_aside) - MOST_DAMAGE_NAMED} more" if len(self.set_aside) > MOST_DAMAGE_NAMED else ""
        trials = sorted({trial_id for _, line, _ in self.set_aside if (trial_id := _trial_of(line))})
        named = f" (trials {', '.join(trials[:MOST_DAMAGE_NAMED])})" if trials else ""
        damage = f"{self.path}: damaged in line {numbers}{more}{named}: {self.set_aside[0][2]}"
        return [f"{damage}; trials recorded only in these lines are measured again", *self._losses]

    def _compact(self) -> None:
        if self.set_aside:
            with self.path.with_name("ledger.damaged.jsonl").open("ab") as file:
                file.writelines(line.rstrip(b"\n") + b"\n" for _, line, _ in self.set_aside)
        run: list[dict[str, Any]] = [{"event": "run", "run": self.run}] if self.run else []
        attempts = [{"event": "attempt", "deployment_id": key, "attempt": str(n)} for key, n in self.attempts.items()]
        answers = [
            {"event": "answers", "trial_id": trial_id, "answer": answer, "count": count - 1}
            for trial_id, (answer, count) in self.histories.items()
        ]  # the row will be replayed as well
        texts = Texts()

        def write(staged: Path) -> None:  # line by line: all lines at once would hold a second ledger in memory
            with staged.open("wb") as file:
                file.writelines(sealed(entry) for entry in [*run, *attempts])
                file.writelines(sealed(entry) for row in self.superseded for entry in texts.stored(row))
                file.writelines(map(sealed, answers))
                file.writelines(sealed(entry) for row in self.rows.values() for entry in texts.stored(row))

        write_whole(self.path, write)
        self._texts = texts

    def _replay(self, entry: dict[str, Any]) -> None:
        if entry["event"] == "trial":
            restored = self._texts.restored(entry["row"])
            row = CompactRow(restored) if self._texts.columns is None else restored
            before = self.rows.get(row["trial_id"])
            if before is not None and before["outcome"] == "ok" and before.get("attempt") != row.get("attempt"):
                self.superseded.append(before)
            self.histories[row["trial_id"]] = self.history(row["trial_id"]).after(row)
            if not self.histories[row["trial_id"]].times:
                del self.histories[row["trial_id"]]
            self.rows[row["trial_id"]] = row
        elif entry["event"] == "text":
            self._texts.add(entry)
        elif entry["event"] == "attempt":
            self.attempts[entry["deployment_id"]] = int(entry["attempt"])
        elif entry["event"] == "answers":
            self.histories[entry["trial_id"]] = TrialHistory(entry["answer"], int(entry["count"]))
        elif entry["event"] == "run":
            self.run = entry["run"]

    def begin_attempt(self, deployment_id: str) -> str:
        """Record a new attempt at a deployment and return its number, which continues over all runs of the command."""
        number, paths = self.attempts.get(deployment_id, 0) + 1, RunPaths(self.path.parent)
        while paths.attempt(deployment_id, str(number)).exists():  # the line of that attempt was damaged or cut off
            number += 1
        attempt = str(number)
        self._append({"event": "attempt", "deployment_id": deployment_id, "attempt": attempt})
        return attempt

    def place_attempt(self, deployment_id: str, attempt: str, node: str) -> None:
        """Record the node on which an attempt has begun."""
        self._append({"event": "attempt_placed", "deployment_id": deployment_id, "attempt": attempt, "node": node})

    def end_attempt(self, deployment_id: str, attempt: str, end: str) -> None:
        """Record the end of an attempt: `done`, or the reason for its loss."""
        self._append({"event": "attempt_end", "deployment_id": deployment_id, "attempt": attempt, "end": end})

    def commit(self, row: LedgerRow) -> None:
        """Append a trial's row durably; it becomes the trial's current row."""
        if earlier := attempts_before(self.rows.get(row["trial_id"])):
            row = {**row, **earlier}
            row |= {"warnings": warning_codes(row)} if row["outcome"] == Outcome.OK else {}
        self._append(*self._texts.entries(row))
        self.damaged.discard(row["trial_id"])

    def _append(self, *new: dict[str, Any]) -> None:
        """Append entries and flush them to disk. On failure, remove all their lines and raise OSError.

        Raises Misplaced if the folder no longer belongs to this driver.
        """
        self.check_in_place()
        at = {"at": round(time.time(), 3)}
        lines = b"".join(sealed(entry | at) for entry in new)
        end = os.fstat(self.file.fileno()).st_size
        try:
            if self.file.write(lines) != len(lines):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.file.name)
            os.fsync(self.file.fileno())
        except OSError:
            os.ftruncate(self.file.fileno(), end)
            raise
        for entry in new:
            self._replay(entry)

    def check_in_place(self) -> None:
        """Raise Misplaced if the open ledger is no longer the file at its path (appended lines would be lost), or if
        another driver has taken over.
        """
        self.guard()
        try:
            in_place = os.path.samestat(os.stat(self.file.name), os.fstat(self.file.fileno()))
        except FileNotFoundError:
            in_place = False
        if not in_place:
            raise Misplaced(f"{self.file.name} was deleted or replaced; this run stops writing")

    def close(self) -> None:
        self.file.close()

    def history(self, trial_id: str) -> TrialHistory:
        """Return the consecutive equal failures caused by the trial's engine, up to the trial's last row."""
        return self.histories.get(trial_id, TrialHistory())

    def valid_row(self, trial_id: str) -> LedgerRow | None:
        """Return the trial's last row; None if it is missing, or its raw data are damaged."""
        return None if trial_id in self.damaged else self.rows.get(trial_id)


def _whole_lines(lines: Iterable[bytes]) -> Iterator[bytes]:
    return (line for line in lines if line.endswith(b"\n"))


def ledger_entries(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Yield the valid entries in a ledger's lines, rows with their texts; rows with a missing text are skipped."""
    texts = Texts()
    for entry in entries(_whole_lines(lines)):
        if entry["event"] == "text":
            texts.add(entry)
        elif entry["event"] != "trial":
            yield entry
        elif not texts.missing(entry["row"]):
            yield {**entry, "row": texts.restored(entry["row"])}


def _trial_of(line: bytes) -> str | None:
    match = re.search(rb'"trial_id": "([0-9a-f]{6,32})"', line)
    return match[1].decode() if match else None


def _drop_cut_line(path: Path) -> None:
    """Remove a last line that a crash has cut short, so that the next entry is not appended to it."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        content_end = file.seek(0, os.SEEK_END)
        begin = content_end
        while begin and (file.seek(begin - 1), file.read(1))[1] != b"\n":
            begin -= 1
        if begin < content_end:
            file.truncate(begin)
