"""Waits out outages: retries preparation with backoff until there is a definite answer."""

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


def patiently(
    prepare: Callable[[], Provided],
    patience: float,
    on_outage: Callable[[str], None],
    pause: Callable[[float], None] | None = None,
    faults: tuple[type[Exception], ...] = FAULTS,
) -> Provided:
    """Return the result of `prepare`. Outages are retried for `patience` seconds, then raised; other errors are raised
    at once.

    `pause` sleeps and may return early.
    """
    until, seconds = None, None
    while True:
        try:
            return prepare()
        except faults as error:
            if not policy.is_waited_for(error):
                raise
            until = until or time.monotonic() + patience
            if time.monotonic() >= until:
                raise Outage(f"{error} (tried for {duration_text(patience)})") from error
            on_outage(str(error))
        seconds = policy.next_pause(seconds)
        (pause or task.pause)(min(seconds, until - time.monotonic()))
