"""Counts and durations as people read them."""


def duration_text(seconds: float | None) -> str:
    """`95 s`, `12 min`, `3 h 20 min`; `unknown` for None."""
    if seconds is None:
        return "unknown"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def time_left(seconds: float | None) -> str:
    """`12 min left`, or that it is not known."""
    return "time left unknown" if seconds is None else f"{duration_text(seconds)} left"


def count(number: int, noun: str) -> str:
    """`1 trial`, `2 trials`, `2 launches`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}{'es' if noun.endswith('ch') else 's'}"
