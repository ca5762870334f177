"""Numbers, counts, durations and YAML in readable form."""

import math
import re
from typing import Any

import yaml

FORMATS = ("text", "markdown", "csv", "json")  # of a command's output

# For a terminal: all control characters but tab and newline, direction controls, and Unicode's other line ends.
CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]|\r(?!\n)")


def printable(text: str) -> str:
    """Return a text with control characters escaped: an engine's log must not control a terminal."""
    return CONTROLS.sub(lambda control: ascii(control[0])[1:-1], text)


def number(value: float) -> str:
    """Return a number with three significant digits and thousands separators: 0.0123, 4.56, 789, 12,300."""
    if value is None or not math.isfinite(value):
        return "—"
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


def duration_text(seconds: float | None) -> str:
    """Return a duration: `95 s`, `12 min`, `3 h 20 min`; `unknown` for None."""
    if seconds is None:
        return "unknown"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def time_left(seconds: float | None) -> str:
    """Return `12 min left`, or a text for an unknown time."""
    return "time left unknown" if seconds is None else f"{duration_text(seconds)} left"


def flow(value: Any) -> str:
    """Return a value as one line of YAML."""
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=math.inf).splitlines()[0]


def count(number: int, noun: str) -> str:
    """Return a count with its noun: `1 trial`, `2 trials`, `2 launches`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}{'es' if noun.endswith('ch') else 's'}"
