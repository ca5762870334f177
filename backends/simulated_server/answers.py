"""Builds the bytes of answers: token events in each API's dialect, plain answers, and HTTP framing."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Protocol

WORD = " word"
DONE = b"data: [DONE]\n\n"


class SequenceCounts(Protocol):
    """A prompt's position in its request and its token counts, as an answer reports them."""

    index: int
    input_tokens: int
    max_tokens: int
    made: int
    cached_tokens: int | None


@dataclass(slots=True)
class Dialect:
    """Builds the bytes of one call's answer, without HTTP framing."""

    api: str
    model: str
    request_id: str
    created: int
    include_usage: bool = False
    running_usage: bool = False

    def opening(self) -> bytes:
        """Return the event before the first token, which is chat's role event."""
        if self.api != "chat":
            return b""
        return self._event([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])

    def token(self, sequence: SequenceCounts, count: int) -> bytes:
        """Return one event with `count` tokens, which `sequence.made` already includes."""
        finish = "length" if sequence.made >= sequence.max_tokens else None
        if self.api == "tgi":
            return self._tgi_token(sequence, finish)
        text = WORD * count
        choice: dict[str, Any] = {"index": sequence.index, "finish_reason": finish, "logprobs": None}
        choice |= {"delta": {"content": text}} if self.api == "chat" else {"text": text}
        return self._event([choice], [sequence] if self.running_usage else [])

    def closing(self, sequences: Sequence[SequenceCounts]) -> bytes:
        if self.api == "tgi":
            return b""
        return (self._event([], sequences) if self.include_usage else b"") + DONE

    def error(self, message: str) -> bytes:
        if self.api == "tgi":
            return _sse({"error": message, "error_type": "generation"})
        return _sse({"error": {"message": message, "type": "InternalServerError", "code": 500}}) + DONE

    def _event(self, choices: list[dict[str, Any]], counted: Sequence[SequenceCounts] = ()) -> bytes:
        """Return one event with these choices and the token usage of the sequences in `counted`, if any."""
        kind, prefix = ("chat.completion.chunk", "chatcmpl") if self.api == "chat" else ("text_completion", "cmpl")
        content: dict[str, Any] = {"id": f"{prefix}-{self.request_id}", "object": kind, "created": self.created}
        content |= {"model": self.model, "choices": choices}
        if counted:
            prompt, completion = (sum(getattr(row, name) for row in counted) for name in ("input_tokens", "made"))
            total = prompt + completion
            content["usage"] = {"prompt_tokens": prompt, "total_tokens": total, "completion_tokens": completion}
            if counted[0].cached_tokens is not None:
                cached = sum(row.cached_tokens or 0 for row in counted)
                content["usage"]["prompt_tokens_details"] = {"cached_tokens": cached}
        return _sse(content)

    def _tgi_token(self, sequence: SequenceCounts, finish: str | None) -> bytes:
        details = None
        if finish:
            details = {"finish_reason": finish, "generated_tokens": sequence.made, "seed": None}
            details["input_length"] = sequence.input_tokens
        token = {"id": 363, "text": WORD, "logprob": -1.5, "special": False}
        text = WORD * sequence.made if finish else None
        return _sse({"index": sequence.made, "token": token, "generated_text": text, "details": details})


def _sse(content: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(content, separators=(",", ":")).encode() + b"\n\n"


def chunk(data: bytes) -> bytes:
    """Frame a piece of a body as an HTTP chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"


def plain_answer(status: int, content: object, extra: str = "") -> bytes:
    body = (content if isinstance(content, str) else json.dumps(content)).encode()
    kind = "text/plain; version=0.0.4" if isinstance(content, str) else "application/json"
    first = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"
    return f"{first}\r\nContent-Type: {kind}\r\n{extra}Content-Length: {len(body)}\r\n\r\n".encode() + body


def busy(status: int) -> bytes:
    message = "The engine is currently busy and cannot accept new requests."
    error = {"error": {"message": message, "type": HTTPStatus(status).phrase, "param": None, "code": status}}
    return plain_answer(status, error, "Retry-After: 1\r\n")
