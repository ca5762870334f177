"""A stored answer: checked once it is complete, then served again like a new answer."""

import json
import re
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sweep.gateway.call import Headers

LAST_EVENT = b"data: [DONE]"
FINISHED_BY = ("stop", "length", "tool_calls", "function_call")  # finish reasons of answers that are not errors
LARGEST = 4 << 20  # maximum bytes of a stored answer
MOST_COUNTED = 10**9  # of a usage
LAST = 4  # number of events at a stream's end that may contain the finish reason and the usage
_ID = re.compile(rb'"id"\s*:\s*"([^"\\]{1,200})"')
_CREATED = re.compile(rb'("created"\s*:\s*)\d+')


@dataclass(frozen=True)
class KeptAnswer:
    """A complete answer, split into the parts in which it is served."""

    content_type: str
    parts: tuple[bytes, ...]  # events of a stream, or one body
    origin: str  # the x-request-id of the request that it answered first
    input_tokens: int
    output_tokens: int

    @property
    def is_stream(self) -> bool:
        return "event-stream" in self.content_type

    def replay(self) -> Iterator[bytes]:
        """Yield the parts with a new id and creation time."""
        match = _ID.search(self.parts[0])
        old = match[1] if match else b""
        prefix, dash, _ = old.partition(b"-")
        new = (prefix + dash if dash else b"") + uuid.uuid4().hex.encode()
        now = b"%d" % time.time()
        for part in self.parts:
            renamed = part.replace(b'"%b"' % old, b'"%b"' % new, 1) if old else part
            yield _CREATED.sub(rb"\g<1>" + now, renamed, count=1)


def complete_answer(status: int, headers: Headers, chunks: Sequence[bytes], origin: str) -> KeptAnswer | None:
    """Return an engine's complete answer; None if it must not be served again: an error, even within a stream, or an
    answer without a finish reason.
    """
    names = {name.lower(): value for name, value in headers}
    kind = names.get(b"content-type", b"").decode("latin-1")
    if status != 200 or b"content-encoding" in names or sum(map(len, chunks)) > LARGEST:
        return None
    body = b"".join(chunks)
    if "event-stream" not in kind:
        content = _parsed(body)
        return _checked(kind, (body,), [content], origin) if content is not None else None
    end = b"\r\n\r\n" if b"\r\n\r\n" in body else b"\n\n"
    events = tuple(event + end for event in body.split(end) if event.strip())
    if not events or events[-1].strip() != LAST_EVENT:
        return None
    last = [_parsed(event.partition(b"data:")[2]) for event in events[-LAST:-1]]
    return _checked(kind, events, [content for content in last if content is not None], origin)


def _checked(kind: str, parts: tuple[bytes, ...], contents: list[dict[str, Any]], origin: str) -> KeptAnswer | None:
    listed = [content.get("choices") for content in contents]
    choices = [choice for each in listed if isinstance(each, list) for choice in each if isinstance(choice, dict)]
    reasons = [choice["finish_reason"] for choice in choices if choice.get("finish_reason")]
    if any("error" in content for content in contents) or not reasons or any(r not in FINISHED_BY for r in reasons):
        return None
    usages = [content["usage"] for content in reversed(contents) if isinstance(content.get("usage"), dict)]
    usage: dict[str, Any] = {"completion_tokens": max(len(parts) - 1, 1)}  # without usage, an event is one token
    usage |= {key: count for key, count in (usages[0] if usages else {}).items() if count is not None}
    counts = [usage.get(key, 0) for key in ("prompt_tokens", "completion_tokens")]
    if not all(isinstance(count, int) and 0 <= count < MOST_COUNTED for count in counts):
        return None
    return KeptAnswer(kind, parts, origin, *counts)


def _parsed(text: bytes) -> dict[str, Any] | None:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
