"""The measuring process: sends the calls of a trial when they are due, and records when each chunk arrives.

`python -m sweep.client.process FOLDER PART` reads the job that the parent wrote (see `job`), sends the warm-up,
reports "ready", and begins at the instant that it gets in return (see `sender`). It imports nothing heavy: the standard
library, uvloop and httptools. It talks to the parent in lines of JSON on stdout and stdin:

    -> {"event": "ready"}            <- {"go": start, "request_duration": s}  (ns of CLOCK_MONOTONIC)
    -> {"event": "progress", "at": instant of the latest token, "counts": as `Sender.counts`}
                                     <- {"stop": reason}; end of stdin: the parent is gone, stop
    -> {"event": "done", ...}
"""

import asyncio
import contextlib
import gc
import json
import os
import resource
import sys
import time
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvloop

from sweep.base.clock import Alarm, StampClock
from sweep.client.job import Job, ResultFiles
from sweep.client.poller import Poller
from sweep.client.pool import Pool
from sweep.client.sender import Sender
from sweep.client.stamped_connection import Counters

PRIORITY = -10  # a `nice` value
LAG_EVERY = 50_000_000  # ns between two checks of the loop's lag
TICK = 0.1  # s between two checks of time-outs
FIRST_CONNECTIONS = 128  # connections opened in advance if the load has no cap on requests in flight


class MeasuringProcess:
    """The measuring process: talks to the parent, checks time-outs, and measures its lag and CPU use."""

    def __init__(self, job: Job, loop: asyncio.AbstractEventLoop) -> None:
        self.job, self.loop = job, loop
        self.stamps, self.counters = StampClock(), Counters()
        self.results = ResultFiles(job.folder, job.part)
        self.sender: Sender | None = None
        self.go: asyncio.Future[int] = loop.create_future()
        self.request_duration = 0.0  # s, of the warm-up's requests
        self.stop: str | None = None
        self.lags = array("f")  # s
        self._line = b""
        self._lag_due = 0
        self._lag_alarm = Alarm(loop, self._lag_tick)
        self._next_check = self._next_report = 0

    async def measure(self) -> None:
        os.set_blocking(0, False)
        self.loop.add_reader(0, self._read_messages)
        pool = Pool(self.job.target, self.job.timeouts, self.loop, self.stamps, self.counters)
        await pool.open(self._first_connections())
        self._tick(pool.poller)
        measured = bisect_left(self.job.heads, self.job.warmup_calls)  # the first measured session
        if measured and self.stop is None:
            await self._send_phase(pool, self.job.heads[:measured], time.monotonic_ns())
        gc.collect()
        gc.freeze()  # existing objects stay alive: the garbage collector need not check them during the measurement
        _send_message(event="ready", warm_up=self.results.warm_up, durations=self.results.warm_up_durations)
        start = await self.go
        self.job.mode = self.job.mode.after_warm_up(self.request_duration)
        warm, steps = replace(self.counters), self.stamps.steps
        del self.lags[:]
        self._lag_due = time.monotonic_ns() + LAG_EVERY
        self._lag_alarm.set(self._lag_due)
        began, cpu = time.monotonic(), time.process_time()
        sender = await self._send_phase(pool, self.job.heads[measured:], start)
        cpu, wall = time.process_time() - cpu, time.monotonic() - max(began, start / 1e9)
        self.results.close()
        (self.job.folder / f"lags.{self.job.part}").write_bytes(self.lags.tobytes())
        _send_message(
            event="done",
            cpu_seconds=cpu,
            wall_seconds=wall,
            offered=sender.offered,
            sent=sender.sent,
            multi_event_reads=self.counters.multi_event_reads - warm.multi_event_reads,
            kernel_stamps=self.counters.kernel_stamps - warm.kernel_stamps,
            user_stamps=self.counters.user_stamps - warm.user_stamps,
            clock_steps=self.stamps.steps - steps,
            peak_memory_bytes=_peak_memory(),
        )

    async def _send_phase(self, pool: Pool, heads: Sequence[int], start: int) -> Sender:
        """Send the sessions that begin with these calls, or this process's share of them."""
        sender = self.sender = Sender(self.job, pool, self.results, self.loop, heads)
        sender.begin(start)
        if self.stop is not None:
            sender.stop(self.stop)
        await sender.finished
        sender.close()
        return sender

    def _first_connections(self) -> int:
        calls, requests = len(range(self.job.part, self.job.calls, self.job.parts)), self.job.mode.most_in_flight()
        if requests is None:
            return min(calls, FIRST_CONNECTIONS)
        return min(calls, -(-requests // max(self.job.prompts, default=1)))

    def _read_messages(self) -> None:
        """Read the parent's messages; their end means that the parent is gone."""
        data = os.read(0, 65536)
        if not data:
            self.loop.remove_reader(0)
            self._stop("the orchestrator has gone")
            return
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "go" in message:
                self.request_duration = message["request_duration"]
                self.go.set_result(message["go"])
            if "stop" in message:
                self._stop(message["stop"])

    def _stop(self, reason: str) -> None:
        self.stop = reason
        if not self.go.done():
            self.go.set_result(time.monotonic_ns())
        if self.sender is not None:
            self.sender.stop(reason)

    def _tick(self, poller: Poller) -> None:
        """Check time-outs and the poller ten times a second, and the poller's pace and the clocks once a second."""
        now = time.monotonic_ns()
        poller.adjust(now / 1e9, self.counters.kernel_stamps)
        if self.sender is not None:
            self.sender.check_timeouts(now)
        if self.job.progress_every is not None and now >= self._next_report:
            self._next_report = now + int(self.job.progress_every * 1e9)
            sender = self.sender
            counts = None if sender is None or sender.warms_up else sender.counts()
            _send_message(event="progress", at=now if sender is None else sender.progress(now), counts=counts)
        if now >= self._next_check:
            self._next_check = now + 1_000_000_000
            self.stamps.refresh()
            if self.sender is not None:
                poller.pace(self.sender.shortest_gap())
        self.loop.call_later(TICK, self._tick, poller)

    def _lag_tick(self) -> None:
        now = time.monotonic_ns()
        self.lags.append((now - self._lag_due) / 1e9)
        self._lag_due = now + LAG_EVERY
        self._lag_alarm.set(self._lag_due)


def _peak_memory() -> int:
    """Return the largest resident memory of this process, in bytes.

    ru_maxrss also includes the parent before the fork, so it is used only if VmHWM is missing (gVisor).
    """
    peak = Path("/proc/self/status").read_text(encoding="ascii").partition("VmHWM:")[2].split()
    return (int(peak[0]) if peak else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024


def _send_message(**message: object) -> None:
    data = json.dumps(message).encode() + b"\n"
    try:
        while data:
            data = data[os.write(1, data) :]
    except BrokenPipeError:
        os._exit(1)  # the parent is gone, and nobody will read the results


def main(folder: Path, part: int) -> None:
    job = Job.open(folder, part)
    if job.cpus:
        os.sched_setaffinity(0, job.cpus)
    # The process needs little CPU time, but needs it at once: if it waits longer than a gap between tokens, several
    # tokens arrive in one read. Only root may raise the priority.
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)
    failures: list[BaseException] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()
        me = asyncio.current_task()
        assert me is not None

        def broken(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            """Stop after an error in a callback: the trial must not continue as if nothing had happened."""
            failures.append(context.get("exception") or RuntimeError(context["message"]))
            me.cancel()

        loop.set_exception_handler(broken)
        await MeasuringProcess(job, loop).measure()

    try:
        uvloop.run(run())
    except asyncio.CancelledError:
        raise failures[0] from None


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
