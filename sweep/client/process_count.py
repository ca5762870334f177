"""The number of client processes that send one trial's requests."""

import os
from collections.abc import Sequence
from typing import Literal

from sweep.base.records import Request
from sweep.client.modes import Mode

STREAMS_A_PROCESS = 1024  # with processes="auto": at 50 tokens/s per stream, two thirds of a core
TOKENS_A_PROCESS = 40_000  # per second, also two thirds of a core


def process_count(
    processes: int | Literal["auto"], mode: Mode, requests: Sequence[Request], cpus: set[int] | None
) -> int:
    """Return the number of client processes, which never exceeds the number of streams."""
    streams = min(mode.most_in_flight() or len(requests), len(requests))
    if mode.one_process or streams <= 1:
        return 1
    if processes == "auto":
        return min(_busy_processes(mode, requests), len(cpus or os.sched_getaffinity(0)))
    if processes < 1:
        raise ValueError(f"client.processes={processes}: expected 'auto' or a whole number of at least 1")
    return min(processes, streams)


def _busy_processes(mode: Mode, requests: Sequence[Request]) -> int:
    """Return the processes needed for the load's streams or, if requests are timed, for its tokens."""
    by_streams = -(-(mode.most_in_flight() or len(requests)) // STREAMS_A_PROCESS)
    seconds = mode.last_arrival()
    if seconds is None:
        return by_streams
    tokens = sum(request.output_tokens for request in requests)
    return min(by_streams, 1 + int(tokens / max(seconds, 1.0) / TOKENS_A_PROCESS))
