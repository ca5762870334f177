"""Reads and changes a flag, by its normalised spelling. `flag.key` is a key inside a flag's JSON object."""

from collections.abc import Mapping
from typing import Any

from backends.tables.table import spelling


def value_of(flags: Mapping[str, Any], flag: str) -> Any:
    """Return a flag's value, or None if it is not set."""
    head, _, key = flag.partition(".")
    for name, value in flags.items():
        if spelling(name) == flag:
            return value
        if key and spelling(name) == head and isinstance(value, Mapping):
            return value.get(key)
    return None


def with_value(flags: Mapping[str, Any], flag: str, new: Any) -> dict[str, Any]:
    """Return the flags with a new value for `flag`; None removes the flag."""
    head, _, key = flag.partition(".")
    changed = dict(flags)
    for name, value in flags.items():
        if spelling(name) == flag:
            changed[name] = new
        elif key and spelling(name) == head and isinstance(value, Mapping) and key in value:
            changed[name] = {**value, key: new}
            if new is None:
                del changed[name][key]
    return changed
