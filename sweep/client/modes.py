"""The mode of a load decides when each request is sent. Each mode is one class.

The planner builds a mode (see `sweep.inputs.load`) and pickles it for the measuring process, whose sender runs it. The
sender calls `begin` once, `due` at each instant that the mode has put on the timeline with `at`, and `ended` after each
answer. In these methods, the mode sends calls with `send` or `send_next`. Each sender has its own copy, so a mode may
keep state in fields that its constructor does not take.

A mode knows sessions: index i is the i-th session of a phase (warm-up or measured), over all client processes. Its
first call is sent when the mode says. The sender sends each further turn when its parent's answer and its gap are over,
and calls `ended` once no turn is left.

The instant passed for a call becomes the Record's `released`: when its slot, user or batch was free. Only a mode with
`has_schedule` also sets `scheduled`, the start of latencies, and may release a call later because of its cap.

Standard library only.
"""

from __future__ import annotations  # array[float] cannot be evaluated before Python 3.12

import heapq
import math
from array import array
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Protocol, Self

from sweep.base.records import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Sequence, Sized

LARGEST_SPREAD = 0.1  # share of a load's duration over which its users start


@dataclass(slots=True)
class Dispatch:
    """One HTTP call in flight. Times are in ns."""

    index: int  # of its session in the phase
    number: int  # in the job
    scheduled: int  # when it should have been sent; UNKNOWN if the mode has no schedule
    released: int  # when it was allowed to be sent
    batch: int = UNKNOWN
    given_up: int = field(init=False)  # when the client gave up; replaces `sent` if nothing was ever sent

    def __post_init__(self) -> None:
        self.given_up = self.released


class CallSender(Protocol):
    """The interface of `sweep.client.sender.Sender` for modes."""

    start: int  # ns
    indices: range  # of the sessions that this process sends

    @property
    def in_flight(self) -> Sized: ...
    def at(self, instant: int, index: int) -> None: ...
    def send(self, index: int, instant: int, batch: int = UNKNOWN) -> int: ...
    def send_next(self, instant: int, batch: int = UNKNOWN) -> int: ...


@dataclass(kw_only=True)
class Mode:
    """The rule for sending requests, and for sharing them among several client processes."""

    one_process: ClassVar[bool] = False  # its calls depend on each other, so one client process sends all of them
    has_schedule: ClassVar[bool] = False  # calls are due at times independent of answers; latencies start there

    duration: float | None = None  # s after which no new request is sent; requests in flight are drained

    def most_in_flight(self) -> int | None:
        """Return how many requests may be in flight at once; further requests wait for a slot. None: no limit."""
        raise NotImplementedError

    def batch(self) -> int | None:
        """Return how many requests are sent together, possibly as one list of prompts; None: one at a time."""
        return None

    def last_arrival(self) -> float | None:
        """Return when the last request is due, in s from the start; None if that depends on the answers."""
        return None

    def least_duration(self, waits: Sequence[float]) -> float:
        """Return how long sessions with these waits between their turns take at least, in s, whatever the engine."""
        return 0.0

    def split(self, part: int, parts: int) -> Self:
        """Return the mode for one of several client processes: every `parts`-th request, starting with `part`."""
        return self

    def branching(self, branches: int) -> Self:
        """Return the mode for sessions with up to this many turns in flight at once."""
        return self

    def after_warm_up(self, request_duration: float) -> Self:
        """Return the mode for the measured phase, given the median duration of warm-up requests, in s (0: unknown)."""
        return self

    def start_spread(self) -> float | None:
        """Return the time between the first and the last user's start, in s; None if there are no users."""
        return None

    def begin(self, sender: CallSender) -> None:
        """Put the first instants on the timeline; the clock starts at `sender.start`."""
        raise NotImplementedError

    def due(self, sender: CallSender, instant: int, index: int) -> None:
        """Begin the session with this index, which was put on the timeline for this instant. Times are in ns."""
        raise NotImplementedError

    def ended(self, sender: CallSender, dispatch: Dispatch, instant: int) -> None:
        """Begin the session that follows a session's end, or put it on the timeline; `dispatch` was its last call."""


@dataclass
class Lockstep(Mode):
    """`batch_size` requests are sent together; the next batch follows the last token of this one."""

    one_process = True

    batch_size: int
    _latest_end: int = field(default=0, init=False, repr=False, compare=False)  # ns

    def most_in_flight(self) -> int:
        return self.batch_size

    def batch(self) -> int:
        return self.batch_size

    def begin(self, sender: CallSender) -> None:
        sender.at(sender.start, 0)

    def due(self, sender: CallSender, instant: int, index: int) -> None:
        self._send_batch(sender, instant, 0)

    def ended(self, sender: CallSender, dispatch: Dispatch, instant: int) -> None:
        if instant > self._latest_end:
            self._latest_end = instant
        if not sender.in_flight:
            self._send_batch(sender, self._latest_end, dispatch.batch + 1)

    def _send_batch(self, sender: CallSender, instant: int, batch: int) -> None:
        prompts = 0  # a call may have several prompts, up to the whole batch
        while prompts < self.batch_size and (more := sender.send_next(instant, batch)):
            prompts += more


@dataclass
class ClosedLoop(Mode):
    """`concurrency` users: each begins its next session `think[i]` seconds after its last one, session i, ended.

    User u begins at `offsets[u]`, and belongs to client process u modulo the number of processes.
    """

    concurrency: int
    think: array[float] | None = None  # in s, one per session
    offsets: array[float] | None = None  # in s from the start, one per user; or shares of `request_duration`
    request_duration: float | None = None  # s, 0 until the warm-up has measured it; None: offsets are in s
    branches: int = 1  # most turns that one session has in flight

    def most_in_flight(self) -> int:
        return self.concurrency * self.branches

    def split(self, part: int, parts: int) -> Self:
        offsets = None if self.offsets is None else self.offsets[part::parts]
        return replace(self, concurrency=_part_of(self.concurrency, part, parts), offsets=offsets)

    def branching(self, branches: int) -> Self:
        return replace(self, branches=branches)

    def after_warm_up(self, request_duration: float) -> Self:
        if self.request_duration is None:
            return self
        return replace(self, request_duration=min(request_duration, LARGEST_SPREAD * (self.duration or math.inf)))

    def least_duration(self, waits: Sequence[float]) -> float:
        users = [0.0] * self.concurrency
        for wait in waits:
            heapq.heapreplace(users, users[0] + wait)
        return max(users)

    def start_spread(self) -> float:
        return max(map(self._begins, range(self.concurrency)))

    def _begins(self, user: int) -> float:
        """Return when a user begins, in s from the start."""
        scale = 1.0 if self.request_duration is None else self.request_duration
        return 0.0 if self.offsets is None else self.offsets[user] * scale

    def begin(self, sender: CallSender) -> None:
        for user in range(self.concurrency):
            sender.at(sender.start + int(self._begins(user) * 1e9), user)

    def due(self, sender: CallSender, instant: int, index: int) -> None:
        sender.send_next(instant)

    def ended(self, sender: CallSender, dispatch: Dispatch, instant: int) -> None:
        pause = int(self.think[dispatch.index % len(self.think)] * 1e9) if self.think else 0
        if pause > 0:
            sender.at(instant + pause, dispatch.index)
        else:
            sender.send_next(instant)


@dataclass
class OpenLoop(Mode):
    """Session i is due `arrivals[i]` s after the start, regardless of other sessions; only the cap may delay it.

    A warm-up that is longer than the arrivals repeats them. Several client processes divide the cap.
    """

    has_schedule = True

    arrivals: array[float]  # in s from the start, one per session, ascending
    cap: int | None = None  # maximum requests in flight

    def most_in_flight(self) -> int | None:
        return self.cap

    def last_arrival(self) -> float | None:
        return self.arrivals[-1] if self.arrivals else None

    def least_duration(self, waits: Sequence[float]) -> float:
        return max(map(sum, zip(self.arrivals, waits, strict=True)), default=0.0)

    def split(self, part: int, parts: int) -> Self:
        return self if self.cap is None else replace(self, cap=_part_of(self.cap, part, parts))

    def begin(self, sender: CallSender) -> None:
        self._expect(sender, sender.indices.start)

    def due(self, sender: CallSender, instant: int, index: int) -> None:
        sender.send(index, instant)
        self._expect(sender, index + sender.indices.step)

    def _expect(self, sender: CallSender, index: int) -> None:
        if index in sender.indices:
            rounds, position = divmod(index, len(self.arrivals))
            sender.at(sender.start + int((rounds * self.arrivals[-1] + self.arrivals[position]) * 1e9), index)


def _part_of(number: int, part: int, parts: int) -> int:
    return len(range(part, number, parts))
