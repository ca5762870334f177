"""The measuring process: sends one trial's calls when they are due and writes down when each chunk came back.

`python -m sweep.client.process FOLDER PART` reads the job that the parent wrote (see `job`), sends the warm-up, says
"ready", and begins at the instant it is given (see `modes`). It imports nothing heavy: the standard library, uvloop and
httptools. Lines of JSON on stdout and stdin are the whole conversation:

    -> {"event": "ready"}            <- {"go": start}  (ns of CLOCK_MONOTONIC)
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
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvloop

from sweep.client.clock import Alarm, StampClock
from sweep.client.connection import Counters
from sweep.client.job import Job, Results
from sweep.client.modes import RUNS, Pool, Run
from sweep.client.poller import Watch

PRIORITY = -10  # as `nice` counts
LAG_EVERY = 50_000_000  # ns between two looks at the loop's lag
TICK = 0.1  # s between two looks at time-outs
FIRST_CONNECTIONS = 128  # opened before the clock where the load has no cap on requests in flight


class Client:
    """The process as a whole: the conversation with the parent, the watch on time-outs, its own lag and CPU."""

    def __init__(self, job: Job, loop: asyncio.AbstractEventLoop) -> None:
        self.job, self.loop = job, loop
        self.stamps, self.counters = StampClock(), Counters()
        self.results = Results(job.folder, job.part)
        self.run: Run | None = None
        self.go: asyncio.Future[int] = loop.create_future()
        self.stop: str | None = None
        self.lags = array("f")  # s
        self._line = b""
        self._lag_due = 0
        self._lag_alarm = Alarm(loop, self._lag_tick)
        self._next_check = 0

    async def measure(self) -> None:
        os.set_blocking(0, False)
        self.loop.add_reader(0, self._told)
        pool = Pool(self.job, self.loop, self.stamps, self.counters)
        await pool.open(self._connections())
        self._tick(pool.watch)
        warmup = range(self.job.part, self.job.warmup_calls, self.job.parts)
        measured = range(self.job.warmup_calls + self.job.part, self.job.calls, self.job.parts)
        if warmup and self.stop is None:
            await self._run(pool, warmup, time.monotonic_ns())
        gc.collect()
        gc.freeze()  # what is there now stays: no need to look at it again during the measurement
        _say(event="ready")
        start = await self.go
        warm, steps = replace(self.counters), self.stamps.steps
        del self.lags[:]
        self._lag_due = time.monotonic_ns() + LAG_EVERY
        self._lag_alarm.set(self._lag_due)
        began, cpu = time.monotonic(), time.process_time()
        run = await self._run(pool, measured, start)
        cpu, wall = time.process_time() - cpu, time.monotonic() - max(began, start / 1e9)
        self.results.close()
        (self.job.folder / f"lags.{self.job.part}").write_bytes(self.lags.tobytes())
        _say(
            event="done",
            cpu_seconds=cpu,
            wall_seconds=wall,
            offered=run.offered,
            sent=run.sent,
            multi_event_reads=self.counters.multi_event_reads - warm.multi_event_reads,
            kernel_stamps=self.counters.kernel_stamps - warm.kernel_stamps,
            user_stamps=self.counters.user_stamps - warm.user_stamps,
            clock_steps=self.stamps.steps - steps,
            peak_memory_bytes=_peak_memory(),
        )

    async def _run(self, pool: Pool, calls: range, start: int) -> Run:
        run = RUNS[self.job.schedule.mode](self.job, pool, self.results, self.loop, calls)
        self.run = run
        run.begin(start)
        if self.stop is not None:
            run.stop(self.stop)
        await run.finished
        run.close()
        return run

    def _connections(self) -> int:
        """How many this process needs at once."""
        schedule, mine = self.job.schedule, len(range(self.job.part, self.job.calls, self.job.parts))
        if schedule.mode == "lockstep":
            return min(mine, (schedule.batch_size or 1) if self.job.target.batch_form == "streams" else 1)
        if schedule.concurrency is None:
            return min(mine, FIRST_CONNECTIONS)
        return min(mine, len(range(self.job.part, schedule.concurrency, self.job.parts)))

    def _told(self) -> None:
        """Words from the parent; its end means that nobody is interested any more."""
        data = os.read(0, 65536)
        if not data:
            self.loop.remove_reader(0)
            self._stop("the orchestrator has gone")
            return
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            word = json.loads(line)
            if "go" in word:
                self.go.set_result(word["go"])
            if "stop" in word:
                self._stop(word["stop"])

    def _stop(self, reason: str) -> None:
        self.stop = reason
        if not self.go.done():
            self.go.set_result(time.monotonic_ns())
        if self.run is not None:
            self.run.stop(reason)

    def _tick(self, watch: Watch) -> None:
        """Ten times a second: time-outs, whether to read in rounds; once a second: how long those are, the clocks."""
        now = time.monotonic_ns()
        watch.adjust(now / 1e9, self.counters.kernel_stamps)
        if self.run is not None:
            self.run.check_timeouts(now)
        if now >= self._next_check:
            self._next_check = now + 1_000_000_000
            self.stamps.refresh()
            if self.run is not None:
                watch.pace(self.run.shortest_gap())
        self.loop.call_later(TICK, self._tick, watch)

    def _lag_tick(self) -> None:
        now = time.monotonic_ns()
        self.lags.append((now - self._lag_due) / 1e9)
        self._lag_due = now + LAG_EVERY
        self._lag_alarm.set(self._lag_due)


def _peak_memory() -> int:
    """Largest resident memory of this process, bytes. (Linux' ru_maxrss also remembers the one it was forked from.)"""
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="ascii") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _say(**words: object) -> None:
    data = json.dumps(words).encode() + b"\n"
    try:
        while data:
            data = data[os.write(1, data) :]
    except BrokenPipeError:
        os._exit(1)  # the parent is gone: nobody reads the results either


def main(folder: Path, part: int) -> None:
    job = Job(folder, part)
    if job.cpus:
        os.sched_setaffinity(0, job.cpus)
    # It needs little of a core, but that at once: where it is kept waiting for longer than a gap between tokens,
    # several tokens come in one read. Only root may; others run as they are.
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)
    failures: list[BaseException] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()
        me = asyncio.current_task()
        assert me is not None

        def broken(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            """An error in a callback is ours: the trial must not go on as if nothing had happened."""
            failures.append(context.get("exception") or RuntimeError(context["message"]))
            me.cancel()

        loop.set_exception_handler(broken)
        await Client(job, loop).measure()

    try:
        uvloop.run(run())
    except asyncio.CancelledError:
        raise failures[0] from None


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
