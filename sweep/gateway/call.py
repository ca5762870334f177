"""A client's call: its body, read within limits and parsed, and its prompt."""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from sweep.base.whole_file import parsed_size

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

# Headers that apply to one connection only (RFC 9110, 7.6.1), or are set again for the engine's connection.
HOP_BY_HOP = {
    *(b"connection", b"expect", b"keep-alive", b"proxy-authenticate", b"proxy-authorization"),
    *(b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade"),
}
NOT_FORWARDED = HOP_BY_HOP | {b"host", b"content-length"}
QUESTION_KEYS = {"/v1/completions": "prompt", "/v1/chat/completions": "messages"}
PROMPT_LISTS: tuple[set[type], ...] = (set(), {str}, {int}, {list})  # types of a list's members: prompts or token ids
LONGEST_REQUEST_ID = 200
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class Refused(Exception):
    """A request is rejected, or no engine answers it; carries the HTTP status to return."""

    def __init__(self, status: int, message: str, headers: Headers | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers or []

    @property
    def body(self) -> bytes:
        """Return the error in the form of OpenAI's API."""
        kind = "invalid_request_error" if self.status < 500 else "gateway_error"
        return json.dumps({"error": {"message": self.message, "type": kind, "code": self.status}}).encode()


class Question(NamedTuple):
    """The prompt, or the last message, that a request's answer responds to; token ids remain numbers."""

    text: str
    is_text: bool = True
    parts: tuple[str, ...] = ()  # the parts of a multi-part message; equal prompts have equal parts


@dataclass(frozen=True)
class Call:
    """A request for tokens: its bytes as they arrived, and its parsed content."""

    path: str
    headers: Headers  # without the hop-by-hop headers of the client's connection
    body: bytes
    content: dict[str, Any] = field(repr=False)

    @property
    def request_id(self) -> str:
        """The client's id for the request, of at most LONGEST_REQUEST_ID characters; empty if it sent none."""
        return self.header(b"x-request-id")[:LONGEST_REQUEST_ID].decode("latin-1")

    def header(self, name: bytes) -> bytes:
        return next((value for key, value in self.headers if key.lower() == name), b"")

    @property
    def question(self) -> Question | None:
        """The prompt, or the last message if it is a user's and consists only of text; otherwise None."""
        if self.path == "/v1/chat/completions":
            return _message_question(self.content["messages"][-1])
        prompt = self.content["prompt"]
        if isinstance(prompt, list) and len(prompt) == 1 and not isinstance(prompt[0], int):
            prompt = prompt[0]
        if isinstance(prompt, str):
            return Question(prompt)
        if prompt and all(isinstance(token, int) for token in prompt):
            return Question(" ".join(map(str, prompt)), is_text=False)
        return None

    @property
    def opening(self) -> str:
        """The text that an engine's prompt cache sees: the prompt, or all messages of a conversation, after NULs."""
        if self.path == "/v1/chat/completions":
            return "".join(f"\0{json.dumps(message)}" for message in self.content["messages"])
        return self.question.text if self.question else ""

    def context(self) -> dict[str, Any]:
        """Return everything except the question: model, sampling parameters, system prompt, earlier messages."""
        key = QUESTION_KEYS[self.path]
        rest = {name: value for name, value in self.content.items() if name != key}
        if key == "messages":
            *earlier, last = self.content["messages"]
            shape = {name: value for name, value in last.items() if name != "content"}
            if isinstance(content := last.get("content"), list):
                shape["content"] = [_without(part, "text") for part in content]
            rest["messages"] = [*earlier, shape]
        return rest

    def with_content(self, content: dict[str, Any]) -> "Call":
        return replace(self, content=content, body=json.dumps(content, separators=(",", ":")).encode())


def _without(part: Any, key: str) -> Any:
    return {name: value for name, value in part.items() if name != key} if isinstance(part, dict) else part


def text_parts(message: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the parts of a message whose `text` is a string."""
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    return [part for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]


def _message_question(message: dict[str, Any]) -> Question | None:
    content = message.get("content") if message.get("role") == "user" else None
    if isinstance(content, str):
        return Question(content)
    texts = tuple(part["text"] for part in text_parts(message) if part.get("type") == "text")
    if not isinstance(content, list) or not texts or len(texts) < len(content):
        return None
    return Question("\n".join(texts), parts=texts)


class RequestMemory:
    """Limits the bytes of all bodies in flight, and of their parsed contents; requests wait for their share.

    A request takes its share of the bodies first, and holds both until its answer has ended.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.taken = limit, {"bodies": 0, "contents": 0}
        self._freed = asyncio.Event()

    @contextlib.asynccontextmanager
    async def _share(self, kind: str, size: int, timeout: float) -> AsyncIterator[Callable[[int], None]]:
        """Hold a share until the block ends; the block may release part of it earlier."""
        try:
            async with asyncio.timeout(timeout):
                while self.taken[kind] and self.taken[kind] + size > self.limit:
                    self._freed.clear()
                    await self._freed.wait()
        except TimeoutError:
            message = "requests in flight use all the memory allowed by gateway.bodies"
            raise Refused(503, message, [(b"retry-after", b"1"), (b"connection", b"close")]) from None
        remaining = size

        def release(part: int) -> None:
            nonlocal remaining
            remaining -= part
            self.taken[kind] -= part
            self._freed.set()

        self.taken[kind] += size
        try:
            yield release
        finally:
            release(remaining)

    @contextlib.asynccontextmanager
    async def read_call(self, scope: Scope, receive: Receive, largest: int, timeout: float) -> AsyncIterator[Call]:
        """Read a request for tokens and hold its share until the block ends.

        Raises Refused for a body that is too large, too slow or invalid, or if there is no memory for it;
        ConnectionError if the client left before it was complete.
        """
        headers: Headers = scope["headers"]
        length = next((value for name, value in headers if name == b"content-length"), b"")
        size = min(int(length), largest) if length.isdigit() else largest
        async with self._share("bodies", size, timeout) as release:
            body = await _timely_body(receive, largest, timeout)
            release(size - len(body))  # without a length it reserved the maximum
            async with self._share("contents", parsed_size(body), timeout):
                passed = [pair for pair in headers if pair[0] not in NOT_FORWARDED]
                yield Call(scope["path"], passed, body, parse_body(scope["path"], body))


async def _timely_body(receive: Receive, largest: int, timeout: float) -> bytes:
    """Return a request's body. Even one that is too large is read to its end: no client reads an answer before."""
    parts, size, more = list[bytes](), 0, True
    try:
        async with asyncio.timeout(timeout):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ConnectionError("the client left before its request was complete")
                size += len(message.get("body", b""))
                if size <= largest:
                    parts.append(message.get("body", b""))
                more = message.get("more_body", False)
    except TimeoutError:
        raise Refused(408, f"the request's body was not complete within {timeout:g} s") from None
    if size > largest:
        raise Refused(413, f"the request's body is larger than {largest} bytes", [(b"connection", b"close")])
    return parts[0] if len(parts) == 1 else b"".join(parts)


def parse_body(path: str, body: bytes) -> dict[str, Any]:
    """Parse a request's body. Raises Refused if it does not belong to this API."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the request's body is not JSON ({type(error).__name__})") from None
    if not isinstance(content, dict):
        raise Refused(400, "the request's body is not a JSON object")
    if b"\\u" in body and _SURROGATE.search(body) and not _is_unicode(content):
        raise Refused(400, "the request's body contains a lone surrogate, which is not valid Unicode")
    key = QUESTION_KEYS[path]
    if key not in content:
        raise Refused(400, f"{key}: required, but not given")
    if key == "messages":
        messages = content["messages"]
        if not isinstance(messages, list) or not messages or not all(isinstance(each, dict) for each in messages):
            raise Refused(400, "messages: expected a list of at least one object with role and content")
    elif not _is_prompt(content["prompt"]):
        raise Refused(400, "prompt: expected a text, a list of token ids, or a list of texts or of such lists")
    return content


def _is_prompt(prompt: object) -> bool:
    return isinstance(prompt, str) or (isinstance(prompt, list) and set(map(type, prompt)) in PROMPT_LISTS)


def _is_unicode(content: dict[str, Any]) -> bool:
    """Return False if a text cannot be encoded: JSON can contain a lone surrogate, which no tokenizer accepts."""
    try:
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True
