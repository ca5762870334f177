"""The measuring process: sends one trial's calls when they are due and writes down when each chunk came back.

`python -m sweep.client_main FOLDER PART` reads the job that `sweep.client` wrote (see `sweep.client_job` there), sends
the warm-up, says "ready", and begins at the instant it is told. It imports nothing heavy: the standard library, uvloop
and httptools. Lines of JSON on stdout and stdin are the whole conversation:

    -> {"event": "ready"}            <- {"go": start}  (ns of CLOCK_MONOTONIC)
    -> {"event": "progress", ...}    <- {"stop": reason}
    -> {"event": "done", ...}        end of stdin: the parent is gone, stop

Results are written as they come, one fixed row a request and its chunks, so that memory does not grow with the trial.
"""

import asyncio
import contextlib
import gc
import heapq
import json
import os
import resource
import socket
import ssl
import struct
import sys
import time
from array import array
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvloop

from sweep import wire
from sweep.clock import Alarm, StampClock
from sweep.connection import Connection, Counters, Endpoint
from sweep.records import UNKNOWN, Schedule
from sweep.watch import Watch

ROW = struct.Struct("<IiqqqIiiii")
"""record, batch, scheduled, released, sent (ns), chunks, input_tokens, output_tokens, finish_reason, error (indices of
the text table, -1: none). A row's chunks are the next ones of the chunk files."""

PRIORITY = -10  # as `nice` counts
SPILL = 1 << 16  # chunks kept in memory before they go to the files
TICK_NS = 100_000_000  # between two looks at time-outs
LAG_EVERY = 20_000_000  # ns between two looks at the loop's lag
GRACE_AFTER_END = 2_000_000_000  # ns to wait for the end of the body once the stream's end mark has come
SPARE_CONNECTIONS = 16  # kept open ahead of need where the load has no cap on requests in flight
FIRST_CONNECTIONS = 128  # opened before the clock there


class Job:
    """What the parent wrote into the folder. Calls are numbered: the warm-up first, then the measured ones."""

    def __init__(self, folder: Path, part: int) -> None:
        self.folder, self.part = folder, part
        content: dict[str, Any] = json.loads((folder / "job.json").read_text())
        self.target = wire.Target(**content["target"])
        self.timeouts = wire.Timeouts(**content["timeouts"])
        self.parts: int = content["parts"]
        self.cpus: list[int] | None = content["cpus"]
        self.warmup_calls: int = content["warmup_calls"]
        self.offsets = _read_array(folder / "requests.index", "Q")
        self.prompts = _read_array(folder / "prompts", "I")  # of each call
        self.limits = _read_array(folder / "limits", "I")  # output tokens asked for, per prompt of each call
        self.first = array("I", [0])  # record of each call's first prompt
        for count in self.prompts:
            self.first.append(self.first[-1] + count)
        times: dict[str, Any] = {name: _read_array(folder / name, "d") for name in content["times"]}
        self.schedule = Schedule(**content["schedule"], **times)
        self._requests = os.open(folder / "requests", os.O_RDONLY)
        key = os.environ[self.target.api_key_env] if self.target.api_key_env else None
        self._head = wire.head(self.target, key)

    @property
    def calls(self) -> int:
        return len(self.prompts)

    def request(self, call: int) -> bytes:
        """The bytes of one call. Read when they are needed: the page cache holds them, our memory does not."""
        begin, end = self.offsets[call], self.offsets[call + 1]
        return self._head + os.pread(self._requests, end - begin, begin)

    def patient_until(self, call: int) -> int:
        """Tokens before which nobody waits for the end of a call's answer, so that its reads may wait (see `watch`)."""
        if self.schedule.mode == "open" and self.schedule.concurrency is None:
            return sys.maxsize  # what ends frees no slot
        return self.prompts[call] * (self.limits[call] - 1) if self.target.ignore_eos else 0

    def answer(self, call: int) -> wire.Answer:
        """An empty answer for one call."""
        return wire.Answer(self.target.api, self.prompts[call], self.patient_until(call))


def _read_array(path: Path, typecode: str) -> "array[Any]":
    values: array[Any] = array(typecode)
    values.frombytes(path.read_bytes())
    return values


class Results:
    """Rows and chunks, spilled to files of the job folder as they come."""

    def __init__(self, folder: Path, part: int) -> None:
        self._rows = (folder / f"rows.{part}").open("wb")
        self._us = (folder / f"chunk_us.{part}").open("wb")
        self._tokens = (folder / f"chunk_tokens.{part}").open("wb")
        self._row_bytes = bytearray()
        self._chunk_us, self._chunk_tokens = array("I"), array("H")
        self._texts: dict[str, int] = {}
        self._texts_path = folder / f"texts.{part}.json"

    def add(self, call: "Call", answer: wire.Answer, first_record: int) -> int:
        """Write down a call that has ended; returns how many of its requests failed."""
        failed = 0
        for number, stream in enumerate(answer.streams):
            error = answer.error_of(stream)
            failed += error is not None
            self._row_bytes += ROW.pack(
                first_record + number,
                call.batch,
                call.scheduled,
                call.released,
                answer.sent or call.given_up,
                len(stream.chunk_us),
                stream.input_tokens,
                stream.total,
                self._text(stream.finish_reason),
                self._text(error),
            )
            self._chunk_us.extend(stream.chunk_us)
            self._chunk_tokens.extend(stream.chunk_tokens)
        if len(self._chunk_us) > SPILL or len(self._row_bytes) > SPILL * 8:
            self._spill()
        return failed

    def _text(self, text: str | None) -> int:
        return -1 if text is None else self._texts.setdefault(text, len(self._texts))

    def _spill(self) -> None:
        self._rows.write(self._row_bytes)
        self._chunk_us.tofile(self._us)
        self._chunk_tokens.tofile(self._tokens)
        self._row_bytes.clear()
        del self._chunk_us[:], self._chunk_tokens[:]

    def close(self) -> None:
        self._spill()
        for file in (self._rows, self._us, self._tokens):
            file.close()
        self._texts_path.write_text(json.dumps(list(self._texts)))


class Call:
    """One HTTP call on its way: when it should have left and when it was allowed to. Times in ns."""

    __slots__ = ("batch", "given_up", "number", "released", "scheduled")

    def __init__(self, number: int, scheduled: int, released: int, batch: int = UNKNOWN) -> None:
        self.number, self.scheduled, self.released, self.batch = number, scheduled, released, batch
        self.given_up = released  # stands for `sent` where nothing was ever sent


class Pool:
    """The connections of this process. The one used last is used next: it is the warmest."""

    def __init__(self, job: Job, loop: asyncio.AbstractEventLoop, stamps: StampClock, counters: Counters) -> None:
        self._loop, self._job, self._stamps, self._counters = loop, job, stamps, counters
        self.watch = Watch(loop)
        self._endpoint = _resolve(job.target, job.timeouts)
        self.all: list[Connection] = []
        self.free: list[Connection] = []
        self.on_done: Callable[[Connection, wire.Answer], None] = _not_listening

    async def open(self, count: int) -> None:
        """Have `count` connections open; those that cannot be opened now are tried again when they are used."""
        fresh = [self._new() for _ in range(count - len(self.all))]
        self.free.extend(fresh)
        for begin in range(0, len(fresh), 64):  # a server's backlog may be as short as 128
            await asyncio.gather(*(one.open() for one in fresh[begin : begin + 64]), return_exceptions=True)

    def take(self) -> Connection:
        return self.free.pop() if self.free else self._new()

    def give(self, connection: Connection) -> None:
        connection.reopen()  # does nothing unless it was closed
        self.free.append(connection)

    def keep_spare(self, count: int) -> None:
        for _ in range(count - len(self.free)):
            connection = self._new()
            connection.reopen()
            self.free.insert(0, connection)

    def _new(self) -> Connection:
        connection = Connection(self._loop, self.watch, self._endpoint, self._stamps, self._counters, self._done)
        self.all.append(connection)
        return connection

    def _done(self, connection: Connection, answer: wire.Answer) -> None:
        self.on_done(connection, answer)


def _not_listening(connection: Connection, answer: wire.Answer) -> None:
    raise AssertionError("an answer outside a run")


def _resolve(target: wire.Target, timeouts: wire.Timeouts) -> Endpoint:
    host, port = target.address
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    context = None
    if target.tls:
        context = ssl.create_default_context()
        if not target.verify_tls:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
    return Endpoint(family, tuple(address), host, context, timeouts.connect)


class Run:
    """Sends a range of calls as a Schedule says, from `begin(start)` until `finished` is done. See the subclasses."""

    def __init__(self, job: Job, pool: Pool, results: Results, loop: asyncio.AbstractEventLoop, calls: range) -> None:
        self.job, self.pool, self.results, self.loop = job, pool, results, loop
        self.todo = deque(calls)
        self.first_call = calls.start - job.part
        self.finished: asyncio.Future[None] = loop.create_future()
        self.in_flight: set[Connection] = set()
        self.start = 0  # ns
        self.deadline: int | None = None  # ns, after which nothing new is sent
        self.done = self.failed = self.offered = self.sent = 0  # requests
        self.stopped: str | None = None
        self._alarm = Alarm(loop, self._due)
        pool.on_done = self._ended

    def begin(self, start: int) -> None:
        self.start = start
        if self.job.schedule.duration is not None:
            self.deadline = start + int(self.job.schedule.duration * 1e9)
        self._begin()
        self._settle()

    def stop(self, reason: str) -> None:
        """Give up on everything that is on its way, and send nothing more."""
        if self.stopped is not None:
            return
        self.stopped = reason
        self.todo.clear()
        self._stop()  # first, so that no slot that becomes free is given to what waits
        for connection in list(self.in_flight):
            connection.abandon(f"cancelled: {reason}")
        self._settle()

    def close(self) -> None:
        self._alarm.close()

    def check_timeouts(self, now: int) -> None:
        limits = self.job.timeouts
        for connection in list(self.in_flight):
            answer = connection.answer
            if answer is None:
                continue
            sent = answer.sent
            if not sent:
                if now - connection.begun > (limits.connect + 1) * 1e9:  # the connection has its own limit
                    connection.abandon(f"connect: none within {limits.connect:g} s")
            elif answer.ended and now - max(sent, answer.last_token) > GRACE_AFTER_END:
                connection.abandon(None)  # all of the answer is here; only HTTP's own end is not
            elif now - sent > limits.total * 1e9:
                connection.abandon(f"timeout_total: {limits.total:g} s")
            elif not answer.last_token:
                if now - sent > limits.first_token * 1e9:
                    connection.abandon(f"timeout_first_token: {limits.first_token:g} s")
            elif now - answer.last_token > limits.between_tokens * 1e9:
                connection.abandon(f"timeout_between: {limits.between_tokens:g} s")

    def _send(self, call: Call) -> None:
        connection = self.pool.take()
        self.in_flight.add(connection)
        connection.context = call
        connection.begin(self.job.request(call.number), self.job.answer(call.number))

    def _ended(self, connection: Connection, answer: wire.Answer) -> None:
        call = connection.context
        assert isinstance(call, Call)
        self.in_flight.discard(connection)
        self.pool.give(connection)
        now = time.monotonic_ns()
        call.given_up = now
        self._write(call, answer)
        # The end as the kernel saw it, so that our own delay until the next send is seen as lag.
        self._freed(answer.completed or now)
        self._settle()

    def _write(self, call: Call, answer: wire.Answer) -> None:
        self.failed += self.results.add(call, answer, self.job.first[call.number])
        self.done += len(answer.streams)
        self.sent += len(answer.streams) if answer.sent else 0

    def _over(self, now: int) -> bool:
        """Whether nothing new may be sent at this time."""
        return not self.todo or (self.deadline is not None and now >= self.deadline)

    def _settle(self) -> None:
        if not self.in_flight and self._idle() and not self.finished.done():
            self.finished.set_result(None)

    def _begin(self) -> None:
        raise NotImplementedError

    def _due(self) -> None:
        """The instant for which the alarm was set."""
        raise NotImplementedError

    def _freed(self, ended: int) -> None:
        """A request has ended at this time."""
        raise NotImplementedError

    def _stop(self) -> None:
        """Forget what is waiting, after a record of it was made."""

    def _idle(self) -> bool:
        """Whether nothing more will be sent once nothing is in flight."""
        raise NotImplementedError


class Lockstep(Run):
    """A batch leaves together; the next one when the last token of the batch has arrived."""

    def _begin(self) -> None:
        self._batch = 0
        self._last_end = 0
        self._alarm.set(self.start)

    def _due(self) -> None:
        self._next_batch(self.start)

    def _next_batch(self, scheduled: int) -> None:
        if self._over(scheduled):
            return
        streams = self.job.target.batch_form == "streams"
        size = min(len(self.todo), self.job.schedule.batch_size or 1) if streams else 1
        batch, self._batch = self._batch, self._batch + 1
        calls = [Call(self.todo.popleft(), scheduled, scheduled, batch) for _ in range(size)]
        self.offered += sum(self.job.prompts[call.number] for call in calls)
        for call in calls:
            self._send(call)

    def _freed(self, ended: int) -> None:
        self._last_end = max(self._last_end, ended)
        if not self.in_flight:
            self._next_batch(self._last_end)

    def _idle(self) -> bool:
        return self._batch > 0 or not self.todo


class Closed(Run):
    """`concurrency` users: each sends its next request `think` seconds after its last one ended.

    In a job of several processes user u belongs to process u modulo their number, as do the requests.
    """

    def _begin(self) -> None:
        schedule = self.job.schedule
        users = len(range(self.job.part, schedule.concurrency or 1, self.job.parts))
        self._waiting: list[tuple[int, int]] = []  # (when, user), users between two requests
        for user in range(users):
            number = self.job.part + user * self.job.parts
            offset = schedule.start[number] if schedule.start is not None else 0.0
            self._waiting.append((self.start + int(offset * 1e9), user))
        self._waiting.sort()
        self._alarm.set(self._waiting[0][0] if self._waiting else self.start)

    def _due(self) -> None:
        now = time.monotonic_ns()
        while self._waiting and self._waiting[0][0] <= now:
            when, _ = heapq.heappop(self._waiting)
            self._next(when)
        if self._waiting:
            self._alarm.set(self._waiting[0][0])
        self._settle()

    def _next(self, when: int) -> None:
        if self._over(when):
            return
        call = Call(self.todo.popleft(), when, when)
        self.offered += 1
        self._send(call)

    def _freed(self, ended: int) -> None:
        if self._over(ended):
            return
        think = self.job.schedule.think
        pause = int(think[(self.todo[0] - self.first_call) % len(think)] * 1e9) if think else 0
        if pause <= 0:
            self._next(ended)
            return
        heapq.heappush(self._waiting, (ended + pause, 0))
        self._alarm.set(self._waiting[0][0])

    def _stop(self) -> None:
        self._waiting.clear()

    def _idle(self) -> bool:
        return not self._waiting or not self.todo


class Open(Run):
    """Request i is due `due[i]` s after the start whatever became of the others, but for the cap on requests in flight.

    In a job of several processes the cap is shared out among them.
    """

    def _begin(self) -> None:
        concurrency = self.job.schedule.concurrency
        self._cap = None
        if concurrency is not None:
            self._cap = len(range(self.job.part, concurrency, self.job.parts))
        self._waiting: deque[Call] = deque()
        while self.todo and self.deadline is not None and self._when(self.todo[-1]) >= self.deadline:
            self.todo.pop()
        self._alarm.set(self._when(self.todo[0]) if self.todo else self.start)

    def _when(self, call: int) -> int:
        """When a call is due. A warm-up that is longer than the pattern of arrivals repeats it."""
        due = self.job.schedule.due
        assert due is not None
        rounds, index = divmod(call - self.first_call, len(due))
        return self.start + int((rounds * due[-1] + due[index]) * 1e9)

    def _due(self) -> None:
        now = time.monotonic_ns()
        while self.todo and (when := self._when(self.todo[0])) <= now:
            call = Call(self.todo.popleft(), when, when)
            self.offered += 1
            if self._cap is None or len(self.in_flight) < self._cap:
                self._send(call)
            else:
                self._waiting.append(call)
        if self.todo:
            self._alarm.set(self._when(self.todo[0]))
        if self._cap is None:
            self.pool.keep_spare(SPARE_CONNECTIONS)
        self._settle()

    def _freed(self, ended: int) -> None:
        if self.deadline is not None and ended >= self.deadline:
            self._waiting.clear()  # offered, but not sent within the duration: the report has both numbers
        if self._waiting:
            call = self._waiting.popleft()
            call.released = max(call.scheduled, ended)
            self._send(call)

    def _stop(self) -> None:
        now = time.monotonic_ns()
        for call in self._waiting:
            call.released = call.given_up = now
            answer = self.job.answer(call.number)
            answer.fail(f"cancelled: {self.stopped}")
            self._write(call, answer)
        self._waiting.clear()

    def _idle(self) -> bool:
        return not self._waiting and (not self.todo or self.stopped is not None)


RUNS: dict[str, type[Run]] = {"lockstep": Lockstep, "closed": Closed, "open": Open}


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
        self._next_progress = self._next_check = 0

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
        self.counters.multi_event_reads = 0
        self.counters.kernel_stamps = self.counters.user_stamps = 0
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
            multi_event_reads=self.counters.multi_event_reads,
            kernel_stamps=self.counters.kernel_stamps,
            user_stamps=self.counters.user_stamps,
            connections=self.counters.opened,
            clock_steps=self.stamps.steps,
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
        """Ten times a second: time-outs, progress, how to read; once a second the offset between the clocks."""
        now = time.monotonic_ns()
        watch.adjust(now / 1e9, self.counters.kernel_stamps, self.counters.multi_event_reads)
        if self.run is not None:
            self.run.check_timeouts(now)
            if now >= self._next_progress:
                self._next_progress = now + 500_000_000
                run = self.run
                _say(event="progress", done=run.done, failed=run.failed, in_flight=len(run.in_flight))
        if now >= self._next_check:
            self._next_check = now + 1_000_000_000
            self.stamps.refresh()
        self.loop.call_later(TICK_NS / 1e9, self._tick, watch)

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
