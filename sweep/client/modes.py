"""The loads of DESIGN §6, sent: when each call leaves, on which connection, and what becomes of it."""

import asyncio
import heapq
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from sweep.client import wire
from sweep.client.clock import Alarm, StampClock
from sweep.client.connection import Connection, Counters, Endpoint
from sweep.client.job import Call, Job, Results
from sweep.client.poller import Watch
from sweep.records import Timeouts

GRACE_AFTER_END = 2_000_000_000  # ns to wait for the end of the body once the stream's end mark has come
ADDRESS_TIMEOUT = 3.0  # s to try one of a name's several addresses
SPARE_CONNECTIONS = 16  # kept open ahead of need where the load has no cap on requests in flight


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
        if connection.is_open:
            self.free.append(connection)
        else:  # it is the last to be used next: opening takes a while
            connection.reopen()
            self.free.insert(0, connection)

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


def _resolve(target: wire.Target, timeouts: Timeouts) -> Endpoint:
    host, port = target.address
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    family, _, _, _, address = next(filter(_answers, found), found[0]) if len(found) > 1 else found[0]
    context = None
    if target.tls:
        context = ssl.create_default_context()
        if not target.verify_tls:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
    return Endpoint(family, tuple(address), host, context, timeouts.connect)


def _answers(found: tuple[Any, ...]) -> bool:
    """Whether somebody listens there: `localhost` may be ::1 first, and the server on 127.0.0.1 only."""
    try:
        with socket.socket(found[0], found[1]) as sock:
            sock.settimeout(ADDRESS_TIMEOUT)
            sock.connect(found[4])
    except OSError:
        return False
    return True


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
        self.offered = self.sent = 0  # requests
        self.stopped: str | None = None
        self._next_look = 0  # ns, at the time-outs
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
        if now < self._next_look:
            return
        limits = self.job.timeouts
        shortest = min(limits.connect, limits.first_token, limits.between_tokens, limits.total) * 1e9
        self._next_look = now + int(min(shortest / 10, GRACE_AFTER_END / 4))
        for connection in list(self.in_flight):
            if connection.answer is not None:
                self._check_timeouts_of(connection, connection.answer, now)

    def _check_timeouts_of(self, connection: Connection, answer: wire.Answer, now: int) -> None:
        limits, sent, last_token = self.job.timeouts, answer.sent, answer.last_token
        if not sent:
            if now - connection.begun > (limits.connect + 1) * 1e9:  # the connection has its own limit
                connection.abandon(f"connect: none within {limits.connect:g} s")
        elif answer.ended and now - max(sent, last_token) > GRACE_AFTER_END:
            connection.abandon(None)  # all of the answer is here; only HTTP's own end is not
        elif now - sent > limits.total * 1e9:
            connection.abandon(f"timeout_total: {limits.total:g} s")
        elif not last_token:
            if now - sent > limits.first_token * 1e9:
                connection.abandon(f"timeout_first_token: {limits.first_token:g} s")
        elif now - last_token > limits.between_tokens * 1e9:
            connection.abandon(f"timeout_between: {limits.between_tokens:g} s")

    def shortest_gap(self) -> float:
        """The shortest time between the latest two token events of a stream, over the requests on their way, s."""
        gaps = [
            stream.chunk_us[-1] - stream.chunk_us[-2]
            for connection in self.in_flight
            if connection.answer is not None
            for stream in connection.answer.streams
            if len(stream.chunk_us) > 1
        ]
        return min(gaps, default=0) / 1e6

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
        self._freed(call, answer.completed or now)
        self._settle()

    def _write(self, call: Call, answer: wire.Answer) -> None:
        self.results.add(call, answer, self.job.first[call.number])
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

    def _freed(self, call: Call, ended: int) -> None:
        """A call has ended at this time."""
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

    def _freed(self, call: Call, ended: int) -> None:
        self._last_end = max(self._last_end, ended)
        if not self.in_flight:
            self._next_batch(self._last_end)

    def _idle(self) -> bool:
        return self._batch > 0 or not self.todo


class Closed(Run):
    """`concurrency` users: each sends its next request `think[i]` seconds after request i, its last one, ended.

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

    def _freed(self, call: Call, ended: int) -> None:
        if self._over(ended):
            return
        think = self.job.schedule.think
        pause = int(think[(call.number - self.first_call) % len(think)] * 1e9) if think else 0
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

    def _freed(self, call: Call, ended: int) -> None:
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
