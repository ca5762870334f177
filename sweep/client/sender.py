"""Sends the calls of one phase as its Mode decides, ends calls that take too long, and records each answer."""

import asyncio
import heapq
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from sweep.base.clock import Alarm
from sweep.base.records import UNKNOWN
from sweep.client.job import Job, ResultFiles
from sweep.client.modes import Dispatch
from sweep.client.pool import Pool
from sweep.client.stamped_connection import StampedConnection
from sweep.client.wire import Answer

GRACE_AFTER_END = 2_000_000_000  # ns to wait for the end of the body after the stream's end mark has arrived
NEVER = 1 << 62  # ns
LARGEST_LIVE_ANSWER = 4 << 20  # bytes as escaped in JSON: 100,000 tokens of any script
SPARE_CONNECTIONS = 16  # spare connections kept open if the load has no cap on requests in flight


class Sender:
    """One phase, from `begin(start)` until `finished` is done. `modes` decides when a session begins.

    A further turn of a session is due when its parent's answer and its gap are over. A call that is due waits in the
    backlog for a slot while the mode's limit of calls is in flight. `heads` are the calls that begin a session.
    """

    def __init__(
        self, job: Job, pool: Pool, results: ResultFiles, loop: asyncio.AbstractEventLoop, heads: Sequence[int]
    ) -> None:
        self.job, self.pool, self.results = job, pool, results
        self.mode = replace(job.mode)  # a copy, since a mode may keep state
        self.indices = range(job.part, len(heads), job.parts)  # of the sessions that this process sends
        self.finished: asyncio.Future[None] = loop.create_future()
        self.in_flight: set[StampedConnection] = set()
        self.start = 0  # ns
        self.offered = self.sent = 0  # requests
        self.done = self.failed = self.tokens = 0  # requests that have ended; those that failed; tokens of all requests
        self.stopped: str | None = None
        self.warms_up = len(heads) > 0 and heads[0] < job.warmup_calls
        self._heads = heads
        self._most_in_flight = self.mode.most_in_flight()
        self._unsent = len(self.indices)  # sessions that have not begun
        self._live_answers: dict[int, dict[int, bytes]] = {}  # of a session under way: call -> its answer
        self._siblings: dict[int, int] = {}  # of a session with several turns under way: how many beside one
        self._backlog: deque[Dispatch] = deque()
        self._deadline = NEVER  # time from which nothing new is sent
        self._timeline: list[tuple[int, int, int]] = []  # heap of (instant in ns, index, call; UNKNOWN: the mode's)
        self._turns_due = 0  # entries of the timeline with a call
        self._alarm = Alarm(loop, self._expired)
        self._alarm_at = 0  # ns; the instant for which the alarm is set
        self._next_look = 0  # ns; when time-outs are checked next
        self._progressed = time.monotonic_ns()  # ns; last token of a finished call, or last time with no call in flight
        pool.on_done = self._ended

    def begin(self, start: int) -> None:
        self.start = start
        if self.mode.duration is not None:
            self._deadline = start + int(self.mode.duration * 1e9)
        self.mode.begin(self)
        self._settle()

    def stop(self, reason: str) -> None:
        """Abandon all calls in flight, and send no more."""
        if self.stopped is not None:
            return
        self.stopped, self._deadline = reason, 0
        self._timeline.clear()
        self._turns_due = 0
        self._give_up_backlog(f"cancelled: {reason}")  # first, so that the backlog gets no freed slot
        for connection in list(self.in_flight):
            connection.abandon(f"cancelled: {reason}")
        self._settle()

    def close(self) -> None:
        self._alarm.close()

    def at(self, instant: int, index: int) -> None:
        """Call the mode's `due` at this instant, unless sending has stopped by then."""
        if instant < self._deadline:
            heapq.heappush(self._timeline, (instant, index, UNKNOWN))

    def send(self, index: int, instant: int, batch: int = UNKNOWN) -> int:
        """Begin a session that is due at this instant; return the prompts of its first call, 0 if too late.

        If the mode has no schedule, the instant is when the call's user or batch could send it.
        """
        if instant >= self._deadline:
            return 0
        self._unsent -= 1
        return self._offer(self._dispatch(index, self._heads[index], instant, batch))

    def send_next(self, instant: int, batch: int = UNKNOWN) -> int:
        """Begin the next session in order, like `send`; return 0 if none is left."""
        return self.send(self.indices[-self._unsent], instant, batch) if self._unsent else 0

    def check_timeouts(self, now: int) -> None:
        if now < self._next_look:
            return
        limits = self.job.timeouts
        shortest = min(limits.connect, limits.first_token, limits.between_tokens, limits.total) * 1e9
        self._next_look = now + int(min(shortest / 10, GRACE_AFTER_END / 4))
        for connection in list(self.in_flight):
            if connection.answer is not None:
                self._check_timeouts_of(connection, connection.answer, now)

    def _check_timeouts_of(self, connection: StampedConnection, answer: Answer, now: int) -> None:
        limits, sent, last_token = self.job.timeouts, answer.sent, answer.last_token
        if not sent:
            if now - connection.begun > (limits.connect + 1) * 1e9:  # connecting has its own time limit
                connection.abandon(f"connect: no connection within {limits.connect:g} s")
        elif answer.ended and now - max(sent, last_token) > GRACE_AFTER_END:
            connection.abandon(None)  # the answer is complete; only the end of the HTTP body is missing
        elif now - sent > limits.total * 1e9:
            connection.abandon(f"timeout_total: {limits.total:g} s")
        elif not last_token:
            if now - sent > limits.first_token * 1e9:
                connection.abandon(f"timeout_first_token: {limits.first_token:g} s")
        elif now - last_token > limits.between_tokens * 1e9:
            connection.abandon(f"timeout_between: {limits.between_tokens:g} s")

    def progress(self, now: int) -> int:
        """Return the instant (ns) of the latest token of any call; `now` if no call is in flight."""
        if not self.in_flight:
            self._progressed = now
        latest = (c.answer.last_token for c in self.in_flight if c.answer is not None)
        return max(self._progressed, *latest, 0)

    def counts(self) -> list[int]:
        """Return requests sent, ended, failed and in flight, and tokens received, in the order of `TrialProgress`."""
        flying = [connection.answer for connection in self.in_flight if connection.answer is not None]
        in_flight = sum(len(answer.streams) for answer in flying if answer.sent)
        tokens = self.tokens + sum(answer.tokens for answer in flying)
        return [self.sent + in_flight, self.done, self.failed, in_flight, tokens]

    def shortest_gap(self) -> float:
        """Return the shortest time between the latest two token events of a stream in flight, in seconds."""
        gaps = [
            stream.chunk_us[-1] - stream.chunk_us[-2]
            for connection in self.in_flight
            if connection.answer is not None
            for stream in connection.answer.streams
            if len(stream.chunk_us) > 1
        ]
        return min(gaps, default=0) / 1e6

    def _expired(self) -> None:
        now = time.monotonic_ns()
        self._alarm_at = 0
        while self._timeline and self._timeline[0][0] <= now:
            instant, index, number = heapq.heappop(self._timeline)
            if number == UNKNOWN:
                self.mode.due(self, instant, index)
            else:
                self._turns_due -= 1
                self._offer(self._dispatch(index, number, instant))
        if self._most_in_flight is None:
            self.pool.keep_spare(SPARE_CONNECTIONS)
        self._settle()

    def _dispatch(self, index: int, number: int, instant: int, batch: int = UNKNOWN) -> Dispatch:
        return Dispatch(index, number, instant if self.mode.has_schedule else UNKNOWN, instant, batch)

    def _offer(self, dispatch: Dispatch) -> int:
        """Send a call that is due, or let it wait for a slot; return its prompts."""
        prompts: int = self.job.prompts[dispatch.number]
        self.offered += prompts
        if self._most_in_flight is None or len(self.in_flight) < self._most_in_flight:
            self._send(dispatch)
        else:
            self._backlog.append(dispatch)
        return prompts

    def _send(self, dispatch: Dispatch) -> None:
        if not self.in_flight:
            self._progressed = time.monotonic_ns()
        connection = self.pool.take()
        self.in_flight.add(connection)
        connection.context = dispatch
        request = self.job.request(dispatch.number, self._live_answers.get(dispatch.index))
        connection.begin(request, self.job.answer(dispatch.number))

    def _ended(self, connection: StampedConnection, answer: Answer) -> None:
        dispatch = connection.context
        assert isinstance(dispatch, Dispatch)
        self.in_flight.discard(connection)
        self.pool.give(connection)
        now = time.monotonic_ns()
        self._progressed = max(self._progressed, answer.last_token)
        dispatch.given_up = now
        self._write(dispatch, answer)
        # Use the kernel's stamp of the end, so that the client's delay until the next request counts as turnaround.
        ended = answer.completed or now
        if self._backlog:
            self._release(ended)
        followers = self.job.followers.get(dispatch.number, ())
        if followers and any(map(answer.error_of, answer.streams)):
            self._skip(dispatch, "the turn before it failed")
            followers = ()
        elif self.job.live and followers and not self._keep_answer(dispatch, answer.streams[0].text):
            followers = ()
        under_way = self._siblings.pop(dispatch.index, 0)
        for number, gap in followers:
            under_way += self._follow(dispatch.index, number, ended + gap, now)
        if under_way:
            self._siblings[dispatch.index] = under_way - 1
        else:
            self._live_answers.pop(dispatch.index, None)
            self.mode.ended(self, dispatch, ended)
        self._settle()

    def _follow(self, index: int, number: int, instant: int, now: int) -> bool:
        """Send a turn at this instant, or put it on the timeline; return False if sending stops before."""
        if instant >= self._deadline:
            return False
        if instant <= now:
            self._offer(self._dispatch(index, number, instant))
        else:
            self._turns_due += 1
            heapq.heappush(self._timeline, (instant, index, number))
        return True

    def _keep_answer(self, dispatch: Dispatch, text: bytearray | None) -> bool:
        """Store an answer for the later turns of its session; return False if it is too long for their prompts."""
        assert text is not None
        if len(text) > LARGEST_LIVE_ANSWER:
            self._skip(dispatch, f"the answer before it is longer than {LARGEST_LIVE_ANSWER} bytes")
            return False
        self._live_answers.setdefault(dispatch.index, {})[dispatch.number] = bytes(text)
        return True

    def _skip(self, dispatch: Dispatch, reason: str) -> None:
        """Record the turns after a turn as never sent: they could not repeat the recording."""
        failed = [dispatch.number] if self.stopped is None else []
        while failed:
            for number, _ in self.job.followers.get(failed.pop(), ()):
                self.offered += self.job.prompts[number]
                self._write_unsent(self._dispatch(dispatch.index, number, UNKNOWN), f"unsent: {reason}")
                failed.append(number)

    def _release(self, instant: int) -> None:
        """Give a free slot to the call that has waited longest."""
        if instant >= self._deadline:
            self._give_up_backlog("unsent: due, but still waiting for a slot when load.duration was over")
        else:
            dispatch = self._backlog.popleft()
            dispatch.released = max(dispatch.released, instant)
            self._send(dispatch)

    def _give_up_backlog(self, error: str) -> None:
        """Record the calls in the backlog as failed with this error."""
        for dispatch in self._backlog:
            self._write_unsent(dispatch, error)
        self._backlog.clear()

    def _write_unsent(self, dispatch: Dispatch, error: str) -> None:
        dispatch.released = dispatch.given_up = UNKNOWN
        answer = self.job.answer(dispatch.number)
        answer.fail(error)
        self._write(dispatch, answer)

    def _write(self, dispatch: Dispatch, answer: Answer) -> None:
        self.results.add(dispatch, answer, self.job.first[dispatch.number])
        if dispatch.number < self.job.warmup_calls:
            self.results.count_warm_up(answer, self.job.limits[dispatch.number])
        if self.job.keeps_texts and answer.error is None:
            self.job.counted = answer.counted
        self.sent += len(answer.streams) if answer.sent else 0
        self.done += len(answer.streams)
        self.failed += sum(answer.error_of(stream) is not None for stream in answer.streams)
        self.tokens += answer.tokens

    def _settle(self) -> None:
        """Set the alarm for the next event, or finish if there will be none."""
        if self._timeline and self._timeline[0][0] != self._alarm_at:
            self._alarm_at = self._timeline[0][0]
            self._alarm.set(self._alarm_at)
        if self.in_flight or self._backlog or self._turns_due or (self._timeline and self._unsent):
            return
        if not self.finished.done():
            self.finished.set_result(None)
