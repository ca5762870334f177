"""Ends a run before its work is done: at the deadline or its job's end, or when the user interrupts it."""

import os
import signal
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from enum import IntEnum
from types import FrameType
from typing import Any

from sweep.base.config import next_time
from sweep.disk.run_files import RunPaths
from sweep.drive.monitor.status import last_status

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # SIGHUP: the terminal was closed
JOB_END = "SLURM_JOB_END_TIME"  # s since the epoch; scripts/cluster/slurm.sbatch sets it if Slurm does not
JOB_END_MARGIN = 120.0  # s before a job's end at which everything stops, to leave time for tables, report and uploads
SAME_DEADLINE = 12 * 3600.0  # s for which a time of day in the past does not mean the next day


class StopLevel(IntEnum):
    """The urgency of a stop."""

    NONE = 0
    DRAIN = 1  # running trials finish, and no new ones start
    CANCEL = 2  # running trials are cancelled


def user_deadline(text: str | None, paths: RunPaths, notify: Callable[[str], None]) -> float | None:
    """Return the time of a run's setting `deadline`, in seconds since the epoch.

    `notify` gets a message if it is unknown whether the last run had the same deadline, already passed.
    """
    if text is None:
        return None
    consequence = f"deadline={text} means the next {text}, even if the last run ended at that time"
    return deadline_at(text, last_status(paths, consequence, notify))


def deadline_at(text: str | None, last: Mapping[str, Any] | None) -> float | None:
    """Return the time of the setting `deadline`, in seconds since the epoch.

    A time of day that passed during the previous run stays passed for some hours: the same command, repeated, must not
    run for a day.
    """
    if text is None:
        return None
    before = (last or {}).get("deadline") or {}
    if before.get("text") == text and 0 <= time.time() - before["at"] < SAME_DEADLINE:
        return float(before["at"])
    return next_time(text, datetime.now()).timestamp()


def job_end() -> float | None:
    """Return when a run must end because its batch job ends, in seconds since the epoch; None outside a batch job."""
    end = os.environ.get(JOB_END, "")
    return float(end) - JOB_END_MARGIN if end.isdecimal() else None


class StopControl:
    """Tracks the deadline and the interrupts of one run."""

    def __init__(self, user_deadline: float | None, job_end: float | None = None) -> None:
        self.user_deadline = user_deadline  # in seconds since the epoch, like all times here
        self.deadline = min((time for time in (user_deadline, job_end) if time is not None), default=None)
        self.interrupts = 0

    @property
    def overdue(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and time.time() > self.deadline

    @property
    def level(self) -> StopLevel:
        """The current urgency."""
        return StopLevel.CANCEL if self.overdue else StopLevel(min(self.interrupts, 2))

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Count SIGINT, SIGTERM and SIGHUP: the first drains the run, the second cancels it."""

        def interrupt(number: int, frame: FrameType | None) -> None:
            self.interrupts += 1  # the driver's loop acts on it, since hardly anything is safe in a signal handler
            if number == signal.SIGHUP:
                _drop_output()

        previous = {number: signal.signal(number, interrupt) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def _drop_output() -> None:
    """Discard later output unless it goes to a file, since writing to a closed terminal fails."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.dup2(nowhere, descriptor)
    os.close(nowhere)
