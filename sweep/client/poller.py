"""Watches many sockets for data, and decides when to read them.

Most of a token's cost is waking up for it. The kernel timestamps every arrival. So a read may be late, as long as it
does not contain two token events of one stream, and no request waits for the end of the answer. If tokens arrive faster
than 1,500 a second, sockets in the middle of an answer of known length are therefore read together, in rounds. Rounds
are four milliseconds apart, or eight if no stream had two tokens within 16 ms. Sockets whose answer may end with the
next event are read at once, since the next request depends on it. A read with more than one token event of a stream
stops the rounds for a second, the next such read for two, and so on. So a server that writes in bursts is still
measured correctly. Calls with several prompts are never read in rounds: the tokens of a step share a socket, and would
share a stamp.
"""

import asyncio
import select
from collections.abc import Callable

PERIOD = 0.004  # s between two rounds of reads
LONG_PERIOD = 0.008  # s, if every stream takes at least SLOW from token to token
SLOW = 0.016  # s
WORTH_IT = 1_500  # reads per second above which a round contains several
ALERT = 1.0  # s of immediate reads after a read with several events; doubled each time
LONGEST_ALERT = 3600.0  # s
MOST_URGENT = 16  # urgent sockets that are read before the others get a turn: each may start a request
# Edge-triggered: otherwise each token would cause a second, useless check after it was read.
PATIENT_EVENTS = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
ENDS = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR


class Poller:
    """Calls back when a socket is readable. Call `adjust` about ten times a second."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._period, self._longest = PERIOD, LONG_PERIOD  # s
        self._in_rounds = False  # whether patient sockets are read in rounds, or at once
        self._timer: asyncio.TimerHandle | None = None  # timer of the next round; None: sockets are read at once
        self._looked = (0.0, 0)  # time and reads at the last `adjust`
        self._alert, self._alert_until = ALERT, 0.0  # s
        self._urgent, self._patient = select.epoll(), select.epoll()
        loop.add_reader(self._urgent.fileno(), self._read, self._urgent)
        loop.add_reader(self._patient.fileno(), self._read, self._patient)

    def add(self, fd: int, callback: Callable[[], None]) -> None:
        """Watch a socket; it is urgent until `set_patient`. `callback` must remove it once it has read its end.

        While patient, each arrival is reported once: a read that leaves data unread must make the socket urgent.
        """
        self._callbacks[fd] = callback
        self._urgent.register(fd, select.EPOLLIN)

    def remove(self, fd: int, patient: bool) -> None:
        """Stop watching a socket before it is closed."""
        del self._callbacks[fd]
        (self._patient if patient else self._urgent).unregister(fd)

    def set_patient(self, fd: int, patient: bool) -> None:
        """Set whether a socket waits for the next round or is read at once."""
        if patient:
            self._urgent.unregister(fd)
            self._patient.register(fd, PATIENT_EVENTS)
        else:
            self._patient.unregister(fd)
            self._urgent.register(fd, select.EPOLLIN)

    def adjust(self, now: float, reads: int) -> None:
        """Choose between rounds and reading at once. `now` is in s of CLOCK_MONOTONIC; `reads` are kernel-stamped."""
        before, reads_before = self._looked
        self._looked = (now, reads)
        often = reads - reads_before > WORTH_IT * (now - before)
        self._in_rounds = often and now >= self._alert_until
        if self._in_rounds and self._timer is None:
            self._loop.remove_reader(self._patient.fileno())
            self._timer = self._loop.call_later(self._period, self._round)

    def pace(self, shortest_gap: float) -> None:
        """Set the time between rounds from the shortest recent time (s) between two tokens of a stream."""
        self._period = self._longest if shortest_gap >= SLOW else PERIOD

    def alert(self, now: float) -> None:
        """Stop the rounds for a while after this one, because a read contained several token events of a stream."""
        if now >= self._alert_until:
            self._alert_until = now + self._alert
            self._alert = min(2 * self._alert, LONGEST_ALERT)
        if self._in_rounds:  # tokens are less regular than their latest gaps suggested: no more long rounds
            self._period = self._longest = PERIOD
        self._in_rounds = False

    def _round(self) -> None:
        self._read(self._patient)
        if self._in_rounds:  # `alert` has not been called
            self._timer = self._loop.call_later(self._period, self._round)
        else:
            self._timer = None
            self._loop.add_reader(self._patient.fileno(), self._read, self._patient)

    def _read(self, watched: "select.epoll") -> None:
        for fd, events in watched.poll(0, MOST_URGENT if watched is self._urgent else max(1, len(self._callbacks))):
            while (callback := self._callbacks.get(fd)) is not None:  # an earlier read may have closed it
                callback()
                if not events & ENDS:  # an end is reported once, with the bytes before it: read everything
                    break
