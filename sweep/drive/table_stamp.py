"""The stamp of trials.parquet: what it was made from, so that a command with nothing to do need not make it again.

To make the table of 20,000 trials takes seconds, only to find that it is there already. The stamp lies beside it
(`.trials.json`); if anything differs from it, the table is made.
"""

import zlib
from contextlib import suppress
from typing import Any

from sweep.base import provenance
from sweep.base.config import content_hash
from sweep.disk import run_files
from sweep.disk.entries.lines import sealed, unsealed
from sweep.disk.run_files import RunPaths
from sweep.plan.plan import Plan, hourly_price

TABLE_STAMP = ".trials.json"


def table_stamp(plan: Plan, paths: RunPaths) -> dict[str, Any] | None:
    """Return the stamp of a table that would be made now, with the checksum of the one that is there.

    None without a table or a ledger, or if it is not known which code makes it: files differ from their commit.
    """
    program = provenance.program_version()
    if program is None:
        return None
    try:
        ledger, table = paths.ledger.stat(), paths.trials.read_bytes()
    except FileNotFoundError:
        return None
    trials = [
        [trial.trial_id, each.describe(), trial.describe(), trial.coordinates]
        for each in plan.deployments
        for trial in each.trials
    ]
    backends = [each.backend for each in plan.deployments]
    prices = [[hourly_price(each, plan.settings.hardware), each.price_per_million_tokens] for each in backends]
    made_from = [ledger.st_size, ledger.st_mtime_ns, plan.settings.model_dump(mode="json"), plan.axes, trials, prices]
    inputs = content_hash([program, *made_from])
    return {"inputs": inputs, "size": len(table), "checksum": zlib.crc32(table)}


def is_stamped(paths: RunPaths, stamp: dict[str, Any] | None) -> bool:
    """Return whether the last table that was made has this stamp."""
    with suppress(FileNotFoundError, ValueError):  # without one, or if it is damaged, the table is made
        return stamp is not None and unsealed((paths.out / TABLE_STAMP).read_bytes()) == (stamp, True)
    return False


def write_stamp(paths: RunPaths, stamp: dict[str, Any] | None) -> None:
    """Write the stamp beside its table."""
    if stamp is not None:
        run_files.write_whole(paths, paths.out / TABLE_STAMP, sealed(stamp))
