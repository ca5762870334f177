"""The content of a typed event, in a form common to all dialects."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class TypedEvent(NamedTuple):
    """One event: a piece of text, counts, the end of the answer, or an error. An event with none of these is a ping."""

    text: str = ""
    key: str = ""  # name of the text's field in the event
    reasoning: bool = False  # whether the text is reasoning, before the actual answer
    finish_reason: str | None = None
    usage: Mapping[str, Any] = {}  # under the names that chat completions use
    error: Any = None


@dataclass(frozen=True)
class TypedDialect:
    """One protocol: where a request goes, what it contains, and how its answer is read."""

    path: str
    body: Callable[[str, list[dict[str, Any]], int], dict[str, Any]]  # from a model, a chat's messages and the tokens
    read: Callable[[dict[str, Any]], TypedEvent]
    tool: Callable[[dict[str, Any]], dict[str, Any]]  # a tool's definition, from its name, description and parameters
    headers: Mapping[str, str] = field(default_factory=dict)


def usage_of(**counts: Any) -> dict[str, Any]:
    """Return counts under chat completions' names, without values that are not whole numbers."""
    known = {name: count for name, count in counts.items() if isinstance(count, int)}
    usage: dict[str, Any] = {name: known[name] for name in ("prompt_tokens", "completion_tokens") if name in known}
    for name, group in (("cached_tokens", "prompt_tokens_details"), ("reasoning_tokens", "completion_tokens_details")):
        if name in known:
            usage[group] = {name: known[name]}
    return usage
