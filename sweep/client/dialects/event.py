"""What a typed event says, in the terms that all dialects share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class TypedEvent(NamedTuple):
    """One event: a piece of text, counts, the end of the answer or an error; an event without any of them is a ping."""

    text: str = ""
    key: str = ""  # under which the text stands in the event
    reasoning: bool = False  # the text comes before the answer proper
    finish_reason: str | None = None
    usage: Mapping[str, Any] = {}  # under the names of chat completions
    error: Any = None


@dataclass(frozen=True)
class TypedDialect:
    """One protocol: where a request goes, what it holds, and how its answer is read."""

    path: str
    body: Callable[[str, str, int], dict[str, Any]]  # of a model, a prompt and a number of tokens
    read: Callable[[dict[str, Any]], TypedEvent]
    headers: Mapping[str, str] = field(default_factory=dict)


def usage_of(**counts: Any) -> dict[str, Any]:
    """Counts under the names of chat completions; what is no whole number is left out."""
    known = {name: count for name, count in counts.items() if isinstance(count, int)}
    usage: dict[str, Any] = {name: known[name] for name in ("prompt_tokens", "completion_tokens") if name in known}
    for name, group in (("cached_tokens", "prompt_tokens_details"), ("reasoning_tokens", "completion_tokens_details")):
        if name in known:
            usage[group] = {name: known[name]}
    return usage
