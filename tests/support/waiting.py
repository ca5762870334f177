"""Tests wait for what they need, not for a time."""

import time
from collections.abc import Callable
from typing import Any


def wait_until(
    condition: Callable[[], Any], seconds: float = 20.0, event: str = "the condition", poll: float = 0.05
) -> float:
    """Wait for a condition and return the seconds that it took; raises AssertionError after `seconds`."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < seconds, f"not within {seconds:g} s: {event}"
        time.sleep(poll)
    return time.monotonic() - begin
