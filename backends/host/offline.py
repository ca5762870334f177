"""Measures a trial inside the engine's process, without HTTP: all lockstep batches arrive before the clock starts."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from backends.host.batches import HostedCall
from backends.host.continuous import ContinuousQueue
from backends.host.library import PromptRow


def lockstep(rows: Sequence[PromptRow], size: int) -> list[HostedCall]:
    """Split the rows into batches of `size`."""
    return [HostedCall(list(rows[begin : begin + size])) for begin in range(0, len(rows), size)]


@dataclass
class OfflineTrial:
    """The batches of a trial: warm-up batches and measured batches."""

    warmup: Sequence[HostedCall] = ()
    measured: Sequence[HostedCall] = ()
    duration: float | None = None  # seconds after which no measured batch begins

    def run(self, queue: ContinuousQueue, stopped: threading.Event) -> dict[str, Any]:
        """Run all batches in the library's thread. Return the records of the released rows in order."""
        queue.run_batches(self.warmup, None, stopped)
        queue.run_batches(self.measured, self.duration, stopped)
        return {"warmup": _records(self.warmup), "records": _records(self.measured)}

    def counts(self) -> dict[str, Any] | None:
        """Return counts of the measured rows so far, or None before the first row. Another thread runs the rows."""
        rows = [row for call in self.measured if call.released is not None for row in call.rows]
        if not rows:
            return None
        done = sum(row.done for row in rows)
        seconds = (time.monotonic_ns() - (self.measured[0].released or 0)) / 1e9
        tokens = sum(len(row.tokens) for row in rows)
        counts = {"sent": len(rows), "done": done, "failed": 0, "in_flight": len(rows) - done}
        return {**counts, "tokens": tokens, "seconds": seconds}


def _records(calls: Sequence[HostedCall]) -> list[dict[str, Any]]:
    return [
        {
            "released": call.released,  # in ns
            "stamps": row.stamps,
            "input_tokens": len(row.prompt),
            "output_tokens": len(row.tokens),
            "finish_reason": row.finish_reason,
        }
        for call in calls
        if call.released is not None
        for row in call.rows
    ]
