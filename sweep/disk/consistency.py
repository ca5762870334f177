"""A ledger held against the other files of its run: raw data that was cut short, and results that it has lost."""

import os
import shutil
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import compress
from pathlib import Path

from sweep.config import DamagedFile
from sweep.disk.run_files import Row, RunPaths
from sweep.disk.tables import compact_place, read_table
from sweep.records import Outcome
from sweep.wording import count


def describe_losses(paths: RunPaths, rows: Iterable[Row], keep_table: bool) -> list[str]:
    """Return a line about the results that trials.parquet has and these rows of the ledger lack, if there are any.

    The table is made from the ledger, so it has nothing else; a ledger that was cut or emptied shows no damaged line.
    With `keep_table` it is copied, for it will be made anew. Of a damaged table the line says so.
    """
    try:
        results = read_table(paths.trials, ["trial_id", "attempt", "outcome"]).to_pylist()
    except FileNotFoundError:
        return []
    except DamagedFile as error:
        return [str(error)]
    attempts = {(row["trial_id"], row["attempt"]) for row in rows}
    trials = {trial_id for trial_id, _ in attempts}
    lost = [row for row in results if row["trial_id"] not in trials or _is_lost_result(row, attempts)]
    if not lost:
        return []
    kept = f"; the table is kept as {_keep(paths.trials)}" if keep_table else ""
    lacks = f"{paths.ledger}: lacks {count(len(lost), 'result')} that {paths.trials.name} has"
    return [f"{lacks}; those of the plan are measured again{kept}"]


def _is_lost_result(row: Row, attempts: set[tuple[str, str]]) -> bool:
    """Return whether a row is a result of which the ledger has not this attempt: it keeps them all."""
    return bool(row["outcome"] == Outcome.OK and (row["trial_id"], row["attempt"]) not in attempts)


def _keep(table: Path) -> str:
    """Copy a table beside itself; return the name, which tells when it was written."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(table.stat().st_mtime))
    copy = table.with_name(f"{table.stem}.{stamp}{table.suffix}")
    shutil.copy2(table, copy)
    return copy.name


def trials_with_damaged_data(paths: RunPaths, rows: Iterable[Row]) -> set[str]:
    """Return the trials whose requests.parquet is truncated; checked in parallel, since shared disks are slow."""
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
