"""The `quiet` setting: waits until other processes no longer use a node, and rejects a trial that they disturbed."""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from sweep.base.config import Quiet
from sweep.base.records import Outcome
from sweep.disk.row import Verdict
from sweep.node.machine.foreign_processes import Foreign

LOOK = 1.0  # s over which the CPU share is measured


def not_quiet(quiet: Quiet, foreign: Foreign, stop: threading.Event, report: Callable[[str], None]) -> str | None:
    """Wait until the node is quiet. Return why it is not quiet after `quiet.within` s; None if it is, or on `stop`."""
    deadline = time.monotonic() + quiet.within
    reported = False
    if foreign.cpu is not None:
        foreign.cpu.share()
    while not stop.wait(LOOK):
        disturbance = _disturbance(quiet, _now(foreign))
        if disturbance is None:
            return None
        reason = f"{disturbance}: {foreign.describe() or 'unknown processes'}"
        if time.monotonic() > deadline:
            return f"not quiet within quiet.within={quiet.within:g} s; {reason}"
        if not reported:
            report(f"waiting until the node is quiet; {reason}")
            reported = True
    return None


def or_disturbed(verdict: Verdict, quiet: Quiet | None, columns: Mapping[str, Any], others: str) -> Verdict:
    """Return the verdict, or `disturbed` instead if `quiet` is set and these columns exceed its limits."""
    if quiet is None or verdict.outcome not in (Outcome.OK, Outcome.CLIENT_LIMITED):
        return verdict
    disturbance = _disturbance(quiet, columns)
    if disturbance is None:
        return verdict
    reason = f"{disturbance}: {others or 'unknown processes'}"
    return Verdict(outcome=Outcome.DISTURBED, reason=reason)


def _now(foreign: Foreign) -> dict[str, Any]:
    """Return a row's columns about other processes, with their current values."""
    counts = [foreign.gpu.count(device) for device in foreign.gpu.handles] if foreign.gpu else []
    return {
        "foreign_cpu_share": foreign.cpu.share() if foreign.cpu else None,
        "foreign_gpu_processes": max((count for count in counts if count is not None), default=None),
    }


def _disturbance(quiet: Quiet, columns: Mapping[str, Any]) -> str | None:
    """Return how other processes exceed the limits of `quiet`; None if they do not, or if that is unknown."""
    share, processes = columns.get("foreign_cpu_share"), columns.get("foreign_gpu_processes")
    if share is not None and share > quiet.foreign_cpu:
        return f"other processes used {share:.0%} of the cores (quiet.foreign_cpu={quiet.foreign_cpu:g})"
    return f"{processes} other processes used a GPU" if processes else None
