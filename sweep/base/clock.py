"""The clocks of the measuring process: kernel receive timestamps as CLOCK_MONOTONIC, and a precise alarm.

All of the client's stamps are in ns of CLOCK_MONOTONIC, which all processes of a machine share.
"""

import asyncio
import ctypes
import os
import struct
import time
from collections.abc import Callable

STAMP_OPTION = 35  # SO_TIMESTAMPNS_OLD: the socket module has no name for it

_TFD_NONBLOCK, _TFD_CLOEXEC, _TFD_TIMER_ABSTIME = 0o4000, 0o2000000, 1
_ITIMERSPEC = struct.Struct("qqqq")


def realtime_minus_monotonic() -> int:
    """Return the offset between the two clocks in ns, from the tightest of nine bracketed readings."""
    readings = []
    for _ in range(9):
        before, real, after = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
        readings.append((after - before, real - (before + after) // 2))
    return min(readings)[1]


class StampClock:
    """Converts kernel stamps (CLOCK_REALTIME) to CLOCK_MONOTONIC. Call `refresh` often: the clock may be set."""

    __slots__ = ("offset", "steps")

    def __init__(self) -> None:
        self.offset = realtime_minus_monotonic()
        self.steps = 0  # number of wall-clock jumps of more than a millisecond so far

    def refresh(self) -> None:
        offset = realtime_minus_monotonic()
        if abs(offset - self.offset) > 1_000_000:
            self.steps += 1
        self.offset = offset


class Alarm:
    """Calls back at an instant of CLOCK_MONOTONIC, to within about 50 µs; uvloop's timers are rounded to milliseconds.

    It uses a timerfd through ctypes, since os.timerfd_create requires Python 3.13.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
        self._loop, self._callback = loop, callback
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.timerfd_create(time.CLOCK_MONOTONIC, _TFD_NONBLOCK | _TFD_CLOEXEC)
        loop.add_reader(self._fd, self._expired)

    def set(self, instant_ns: int) -> None:
        """Call back at this instant, or at once if it has passed. Replaces any earlier instant."""
        instant = _ITIMERSPEC.pack(0, 0, *divmod(max(1, instant_ns), 1_000_000_000))
        if self._libc.timerfd_settime(self._fd, _TFD_TIMER_ABSTIME, instant, None) != 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def close(self) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    def _expired(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:  # the alarm was set again between its expiry and this call
            return
        self._callback()
