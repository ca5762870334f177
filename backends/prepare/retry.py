"""Patience with outages: what prepares a node is tried again, with back-off, as long as no answer comes."""

import time
from collections.abc import Callable
from typing import TypeVar

from backends.launch import task
from backends.prepare.environments import EnvironmentFailed
from sweep.base.config import ConfigError
from sweep.base.outage import Outage, is_outage
from sweep.base.time_factor import scaled
from sweep.base.wording import duration_text

Provided = TypeVar("Provided")
FIRST_PAUSE, LONGEST_PAUSE = scaled(1.0), scaled(60.0)  # s before the next try; doubled each time
FAULTS = (EnvironmentFailed, OSError, ValueError)


def patiently(prepare: Callable[[], Provided], patience: float, on_outage: Callable[[str], None]) -> Provided:
    """Return what `prepare` does, tried again for `patience` s after its first outage, each of which is reported.

    Raises:
        Outage: when the time is over.
        EnvironmentFailed, OSError, ValueError: at once, for failures that are answers, and for a full disk.
    """
    until, pause = None, FIRST_PAUSE
    while True:
        try:
            return prepare()
        except FAULTS as error:
            if isinstance(error, ConfigError) or not is_outage(error):  # bad input is an answer, whatever it quotes
                raise
            until = until or time.monotonic() + patience
            if time.monotonic() >= until:
                raise Outage(f"{error} (tried for {duration_text(patience)})") from error
            on_outage(str(error))
        task.pause(min(pause, until - time.monotonic()))
        pause = min(2 * pause, LONGEST_PAUSE)
