"""Checks a ledger against the other files of its run: truncated raw data, and results missing from the ledger."""

import os
import shutil
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sweep.base.config import DamagedFile
from sweep.base.records import Outcome
from sweep.base.whole_file import open_regular
from sweep.base.wording import count
from sweep.disk.run_files import Row, RunPaths
from sweep.disk.tables import compact_trials, read_table
from sweep.drive.policy import SETTLED

DONE_OUTCOMES = frozenset(outcome.value for outcome in SETTLED)
THREADS, BATCH = 16, 256  # files per thread


class TableResults:
    """The rows of trials.parquet, used to detect a truncated ledger, which has no damaged line, but lacks rows of the
    table that was derived from it. Read the table before the ledger, since a driver may append to both.
    """

    def __init__(self, paths: RunPaths) -> None:
        self.paths, self.damage = paths, list[str]()
        self.rows: list[dict[str, str]] = []
        try:
            self.rows = read_table(paths.trials, ["trial_id", "attempt", "outcome"]).to_pylist()
        except FileNotFoundError:  # no trial has finished yet
            pass
        except DamagedFile as error:
            self.damage.append(str(error))

    def describe_losses(self, rows: Iterable[Row], keep_table: bool) -> list[str]:
        """Return a message about results that are in the table but not in these ledger rows, or about a damaged table.

        With `keep_table`, the table is copied before it is rewritten.
        """
        attempts = {(row["trial_id"], row["attempt"]) for row in rows}
        trials = {trial_id for trial_id, _ in attempts}
        lost = [row for row in self.rows if row["trial_id"] not in trials or _is_lost_result(row, attempts)]
        if not lost:
            return self.damage
        kept = f"; the table is kept as {_keep(self.paths.trials)}" if keep_table else ""
        lacks = f"{self.paths.ledger} lacks {count(len(lost), 'result')} that {self.paths.trials.name} has"
        return [f"{lacks}; if in the plan, they are measured again{kept}"]


def _is_lost_result(row: Row, attempts: set[tuple[str, str]]) -> bool:
    """Return whether a row is a result whose attempt is missing from the ledger, which records every attempt."""
    return bool(row.get("outcome") == Outcome.OK and (row["trial_id"], row.get("attempt")) not in attempts)


def _keep(table: Path) -> str:
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(table.stat().st_mtime))
    copy = table.with_name(f"{table.stem}.{stamp}{table.suffix}")
    shutil.copy2(table, copy)
    return copy.name


def trials_with_damaged_data(paths: RunPaths, rows: Iterable[Row]) -> set[str]:
    """Return the trials whose requests.parquet is truncated, or might be in a damaged compact file.

    Files are checked in parallel, since shared disks are slow. A trial without a file stays valid: users may delete it.
    """
    with_data = [
        (row["trial_id"], f"{row['deployment_id']}/{row['attempt']}/{row['trial_id']}")
        for row in rows
        if row["outcome"] in DONE_OUTCOMES
    ]
    if not with_data:
        return set()
    compacted, compact_damage = compact_trials(paths.compact, "requests")
    batches = [with_data[begin : begin + BATCH] for begin in range(0, len(with_data), BATCH)]

    def damaged(batch: list[tuple[str, str]]) -> list[str]:
        return [
            trial_id
            for trial_id, key in batch
            if (cut := _cut_short(f"{paths.deployments}/{key}/requests.parquet"))
            or (cut is None and compact_damage and key not in compacted)
        ]

    with ThreadPoolExecutor(THREADS) as pool:
        return {trial_id for trials in pool.map(damaged, batches) for trial_id in trials}


def _cut_short(path: str) -> bool | None:
    """Return whether a Parquet file is truncated: its last bytes must be the footer's length and "PAR1".

    Return None if the file is missing.
    """
    try:
        with open_regular(Path(path)) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 8))
            end = file.read(8)
    except FileNotFoundError:
        return None
    return end[4:] != b"PAR1" or int.from_bytes(end[:4], "little") + 12 > size
