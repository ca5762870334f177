"""The bytes of answers: token events in each API's dialect, plain answers, and HTTP framing."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

WORD = " word"


class TokenCounts(Protocol):
    """The counts of a prompt in the engine that its events report."""

    index: int
    input_tokens: int
    made: int
    max_tokens: int


@dataclass(slots=True)
class Dialect:
    """The bytes of one call's answer, without HTTP's framing."""

    api: str
    model: str
    request_id: str
    created: int
    include_usage: bool = False
    running_usage: bool = False

    def opening(self) -> bytes:
        """The event before the first token: chat's role event."""
        if self.api != "chat":
            return b""
        return self._event({"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None})

    def token(self, sequence: TokenCounts, count: int) -> bytes:
        """One event of `count` tokens, which `sequence.made` already includes."""
        finish = "length" if sequence.made >= sequence.max_tokens else None
        if self.api == "tgi":
            return self._tgi_token(sequence, finish)
        text = WORD * count
        choice: dict[str, Any] = {"index": sequence.index, "finish_reason": finish, "logprobs": None}
        choice |= {"delta": {"content": text}} if self.api == "chat" else {"text": text}
        return self._event(choice, sequence if self.running_usage else None)

    def closing(self, sequences: Sequence[TokenCounts]) -> bytes:
        if self.api == "tgi":
            return b""
        end = b"data: [DONE]\n\n"
        if not self.include_usage:
            return end
        usage = _token_usage(
            sum(sequence.input_tokens for sequence in sequences), sum(sequence.made for sequence in sequences)
        )
        return _sse({**self._frame(), "choices": [], "usage": usage}) + end

    def error(self, message: str, code: int) -> bytes:
        if self.api == "tgi":
            return _sse({"error": message, "error_type": "generation"})
        return _sse({"error": {"message": message, "type": "InternalServerError", "code": code}}) + b"data: [DONE]\n\n"

    def _frame(self) -> dict[str, Any]:
        kind, prefix = ("chat.completion.chunk", "chatcmpl") if self.api == "chat" else ("text_completion", "cmpl")
        return {"id": f"{prefix}-{self.request_id}", "object": kind, "created": self.created, "model": self.model}

    def _event(self, choice: dict[str, Any], counted: TokenCounts | None = None) -> bytes:
        content = {**self._frame(), "choices": [choice]}
        if counted is not None:
            content["usage"] = _token_usage(counted.input_tokens, counted.made)
        return _sse(content)

    def _tgi_token(self, sequence: TokenCounts, finish: str | None) -> bytes:
        details = None
        if finish:
            details = {"finish_reason": finish, "generated_tokens": sequence.made, "seed": None}
            details["input_length"] = sequence.input_tokens
        token = {"id": 363, "text": WORD, "logprob": -1.5, "special": False}
        text = WORD * sequence.made if finish else None
        return _sse({"index": sequence.made, "token": token, "generated_text": text, "details": details})


def _token_usage(input_tokens: int, output_tokens: int) -> dict[str, int]:
    total = input_tokens + output_tokens
    return {"prompt_tokens": input_tokens, "total_tokens": total, "completion_tokens": output_tokens}


def _sse(content: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(content, separators=(",", ":")).encode() + b"\n\n"


def chunk(data: bytes) -> bytes:
    """Frame a piece of a body of unknown length for HTTP."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 429: "Too Many Requests", 500: "Internal Server Error"}
REASONS[503] = "Service Unavailable"


def plain_answer(status: int, content: object, extra: str = "") -> bytes:
    """An answer that is not a stream."""
    text = isinstance(content, str)
    body = content.encode() if isinstance(content, str) else json.dumps(content).encode()
    kind = "text/plain; version=0.0.4" if text else "application/json"
    head = f"HTTP/1.1 {status} {REASONS[status]}\r\nContent-Type: {kind}\r\n{extra}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def busy(status: int) -> bytes:
    message = "The engine is currently busy and cannot accept new requests."
    error = {"error": {"message": message, "type": REASONS[status], "param": None, "code": status}}
    return plain_answer(status, error, "Retry-After: 1\r\n")
