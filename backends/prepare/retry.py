"""Patience with outages: what prepares a node is tried again, with back-off, as long as no answer comes."""

import time
from collections.abc import Callable
from typing import TypeVar

from backends.launch import task
from backends.prepare.environments import EnvironmentFailed
from sweep.base.exits import Outage
from sweep.base.wording import duration_text
from sweep.drive import policy

Provided = TypeVar("Provided")
FAULTS = (EnvironmentFailed, OSError, ValueError)


def patiently(prepare: Callable[[], Provided], patience: float, on_outage: Callable[[str], None]) -> Provided:
    """Return what `prepare` does, tried again for `patience` s after its first outage, each of which is reported.

    Raises:
        Outage: when the time is over.
        EnvironmentFailed, OSError, ValueError: at once, for failures that are answers, and for a full disk.
    """
    until, pause = None, None
    while True:
        try:
            return prepare()
        except FAULTS as error:
            if not policy.is_waited_for(error):
                raise
            until = until or time.monotonic() + patience
            if time.monotonic() >= until:
                raise Outage(f"{error} (tried for {duration_text(patience)})") from error
            on_outage(str(error))
        pause = policy.next_pause(pause)
        task.pause(min(pause, until - time.monotonic()))
