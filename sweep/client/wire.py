"""The bytes on the wire: builds request bytes from Requests, and reads tokens, counts and errors from the bytes of an
answer.

It uses no sockets and no clock (every timestamp is passed in), so a recorded stream gives the same Records wherever it
is cut. `stamped_connection` handles HTTP framing; this module handles the body. Standard library only.

A Record's error is "kind: detail". The kinds:

    connect              no connection: refused, not resolved, TLS failed, or none within the time-out
    reset                the connection was reset, or another socket error
    closed               the server ended the connection or the stream before its answer was complete
    status               an HTTP status other than 200; the detail has a Retry-After as retry_after=..., and for a
                         redirect the address to set
    engine               an error event inside a stream that began with status 200
    protocol             the answer violates the API: no event stream, no JSON, broken HTTP
    empty                the answer ended properly without a token
    timeout_first_token  no token within `Timeouts.first_token` of the send
    timeout_between      no token within `Timeouts.between_tokens` of the last one
    timeout_total        the answer was not complete within `Timeouts.total` of the send
    cancelled            the trial was stopped; the detail says why
    unsent               it was due but never sent: it waited for a slot until the load's duration was over, or it
                         follows a turn that failed

A request with an error keeps the chunks that arrived before it.
"""

import json
import re
from array import array
from codecs import BOM_UTF8
from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from itertools import accumulate, pairwise
from typing import Any
from urllib.parse import urlsplit

from sweep.base.records import (
    MOST_TOKENS,
    UNKNOWN,
    Api,
    BatchForm,
    Message,
    ProxyUse,
    Request,
    TokenSource,
    key_header,
    prompt_text,
    proxy_of,
    request_path,
)
from sweep.client.dialects import TYPED_DIALECTS
from sweep.client.dialects.event import TypedEvent
from sweep.client.dialects.text import AnswerText

PATHS: dict[str, str] = {
    "completions": "/v1/completions",
    "chat": "/v1/chat/completions",
    **{name: dialect.path for name, dialect in TYPED_DIALECTS.items()},
    "tgi": "/generate_stream",
}
LARGEST_EVENT = 4 << 20  # bytes; enough for an event that repeats a prompt's ids; a longer event is no token stream
LARGEST_REFUSAL = 64 << 10  # bytes of the body of an error, whose beginning is its message
LARGEST_MESSAGE = 300  # characters of a server's message that are kept in an error
MOST_MODELS, LONGEST_MODEL = 8, 200  # maximum model names stored for an answer, and characters of each
ENDLESS = 4, 64  # an answer is endless above this multiple of the requested tokens, and this number of token events
NO_TEMPLATE = "the model has no chat template; set backend.api=completions"
OTHER_LIMIT = "set backend.max_tokens_field=max_completion_tokens"
REDIRECTS = (301, 302, 303, 307, 308)
WHOLE_ANSWER = (b'"choices"', b'"stop_reason"', b'"output"', b'"generated_text"')  # keys of an answer in one piece
ABORTED = ("abort", "error")  # finish reasons of vLLM and SGLang for aborted answers
# The fields of a delta that contain a reasoning model's text before its answer.
REASONING = ("reasoning_content", "reasoning", "reasoning_text", "thinking")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/-]{1,200}")
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_NUMBER = re.compile(rb"\s*(\d{1,9})(?!\d)")
LARGEST_COUNT = 10**9  # maximum plausible tokens in a usage; records have 32 bits
_DIGITS = b"0123456789"
_BACKSLASH = 0x5C
_COMPRESSED = (
    "is not supported, since it hides token times; disable compression of text/event-stream in the server or its proxy"
)


@dataclass(frozen=True, slots=True)
class Target:
    """The endpoint under test and the dialect that it speaks."""

    url: str  # http(s)://host[:port][/base], with or without a trailing /v1
    model: str  # the server's name for the model
    api: Api = "completions"
    batch_form: BatchForm = "streams"  # a lockstep batch is one call with a list of prompts, or simultaneous streams
    continuous_usage: bool = False  # request usage in every chunk
    token_ids: bool = True  # whether it accepts prompts as token ids
    temperature: float = 0  # sampling temperature; 0: greedy decoding
    ignore_eos: bool = False  # send ignore_eos, so that every answer has exactly the requested tokens
    extra_body: Mapping[str, Any] = field(default_factory=dict)  # added to each body; null removes a key
    headers: Mapping[str, str] = field(default_factory=dict)  # not for secrets: they are written to the job folder
    path: str | None = None  # request path that replaces the api's default
    api_key_env: str | None = None  # NAME of the environment variable that holds the key
    auth_header: str | None = None  # header that carries the key; None: the api's default
    auth_scheme: str | None = None
    max_tokens_field: str = "max_tokens"
    verify_tls: bool = True
    proxy: ProxyUse = "none"  # environment: through the proxy given by environment variables

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.fragment:
            raise ValueError(f"url={self.url!r}: expected http(s)://host[:port][/path][?query]")
        if parts.username or parts.password:
            raise ValueError("url: contains credentials; set api_key_env to the name of an environment variable")
        if self.api not in PATHS:
            raise ValueError(f"api={self.api!r}: expected {', '.join(PATHS)}")
        if self.batch_form == "list" and self.api != "completions":
            raise ValueError(f"batch_form='list' with api={self.api!r}: only completions takes a list of prompts")
        for name, value in self.headers.items():
            if not _HEADER_NAME.fullmatch(name) or not value.isprintable() or not value.isascii():
                raise ValueError(f"headers: {name!r} is not an HTTP header")

    @property
    def request_path(self) -> str:
        return request_path(self.url, self.path or PATHS[self.api])

    @property
    def tls(self) -> bool:
        return urlsplit(self.url).scheme == "https"

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def header_fields(target: Target, key: str | None) -> dict[str, str]:
    """Return the header fields that all requests share. Raises ValueError for an API key that no header can contain."""
    dialect = TYPED_DIALECTS.get(target.api)
    fields = {"User-Agent": "llm-sweep", "Accept": "text/event-stream", "Accept-Encoding": "identity"}
    fields |= {"Content-Type": "application/json", **(dialect.headers if dialect else {}), **target.headers}
    if key is not None:
        fields |= [key_header(target.api, target.auth_header, target.auth_scheme, key)]
    return fields


def head(target: Target, key: str | None) -> bytes:
    """Return the part of a request's head that all requests share; the result of `call` follows it."""
    host = urlsplit(target.url).netloc
    proxy = None if target.tls else proxy_of(target.url, target.proxy)  # TLS goes through a tunnel
    lines = [f"POST {f'http://{host}' if proxy else ''}{target.request_path} HTTP/1.1", f"Host: {host}"]
    lines += [f"{name}: {value}" for name, value in header_fields(target, key).items()]
    return ("\r\n".join(lines) + "\r\n" + (proxy.authorization if proxy else "")).encode("ascii")


def call(target: Target, requests: Sequence[Request]) -> bytes:
    """Return a call's bytes from the x-request-id header on, for one request or for a lockstep batch."""
    first = requests[0]
    if not _REQUEST_ID.fullmatch(first.request_id):
        raise ValueError(f"request_id={first.request_id!r}: expected letters, digits and ._:/-")
    for request in requests:
        if not target.token_ids and prompt_text(request.prompt) is None:
            raise ValueError(f"request {request.request_id}: this backend accepts text, not token ids")
    content = _body(target, requests)
    for key, value in target.extra_body.items():
        if value is None:
            content.pop(key, None)
        else:
            content[key] = value
    body = json.dumps(content, separators=(",", ":")).encode("ascii")
    return with_length(f"x-request-id: {first.request_id}".encode("ascii"), body)


def with_length(fields: bytes, body: bytes) -> bytes:
    """Return the end of a request's head with its body's length, and the body."""
    return b"%b\r\nContent-Length: %d\r\n\r\n%b" % (fields, len(body), body)


def _body(target: Target, requests: Sequence[Request]) -> dict[str, Any]:
    if target.api in ("completions", "chat"):
        return _openai_body(target, requests)
    request = requests[0]
    if target.api == "tgi":
        return _tgi_body(target, request)
    body = TYPED_DIALECTS[target.api].body(
        request.model or target.model, _messages(target, request), request.output_tokens
    )
    body |= {"tools": [TYPED_DIALECTS[target.api].tool(each) for each in _tools(request)]} if request.tools else {}
    return {**body, "temperature": target.temperature} if target.temperature else body


def _openai_body(target: Target, requests: Sequence[Request]) -> dict[str, Any]:
    limit = max(request.output_tokens for request in requests)
    if any(request.output_tokens != limit for request in requests):
        raise ValueError("a list of prompts shares max_tokens: all requests of a batch need the same output_tokens")
    options = {"include_usage": True}
    if target.continuous_usage:
        options["continuous_usage_stats"] = True
    content: dict[str, Any] = {
        "model": requests[0].model or target.model,
        target.max_tokens_field: limit,
        "temperature": target.temperature or 0,
        "stream": True,
        "stream_options": options,
    }
    if target.ignore_eos:
        content["ignore_eos"] = True
    if target.api == "chat":
        content["messages"] = _messages(target, requests[0])
        if requests[0].tools:
            content["tools"] = [{"type": "function", "function": each} for each in _tools(requests[0])]
    else:
        texts = [prompt_text(request.prompt) for request in requests]
        prompts = [request.prompt if text is None else text for request, text in zip(requests, texts, strict=True)]
        content["prompt"] = prompts if len(prompts) > 1 else prompts[0]
    return content


def _tools(request: Request) -> list[dict[str, Any]]:
    return list(json.loads(request.tools))


def _as_chat(message: Message) -> dict[str, Any]:
    """Return a message as chat completions have it."""
    content: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.calls:
        calls = [
            {"id": each["id"], "type": "function", "function": {key: each[key] for key in ("name", "arguments")}}
            for each in json.loads(message.calls)
        ]
        content |= {"content": message.content or None, "tool_calls": calls}
    return content | ({"tool_call_id": message.answers} if message.answers else {})


def _messages(target: Target, request: Request) -> list[dict[str, Any]]:
    """Return a prompt as messages with roles; a text becomes one user message."""
    if isinstance(request.prompt, str):
        return [{"role": "user", "content": request.prompt}]
    messages = [_as_chat(part) for part in request.prompt if isinstance(part, Message)]
    if not messages:
        raise ValueError(f"request {request.request_id}: backend.api={target.api} accepts text, not token ids")
    return messages


def _tgi_body(target: Target, request: Request) -> dict[str, Any]:
    if (text := prompt_text(request.prompt)) is None:
        raise ValueError(f"request {request.request_id}: backend.api={target.api} accepts text, not token ids")
    # do_sample is true by default if parameters omit it; details contain the counts. TGI has no ignore_eos.
    sampled = {"temperature": target.temperature} if target.temperature else {}
    adapter = {"adapter_id": request.model} if request.model not in (None, target.model) else {}
    parameters = {"max_new_tokens": request.output_tokens, "do_sample": bool(sampled), **sampled, "details": True}
    return {"inputs": text, "parameters": parameters | adapter}


@dataclass(slots=True, eq=False)
class Stream:
    """The answer to one prompt, as received so far."""

    chunk_us: "array[int]" = field(default_factory=lambda: array("I"))
    several: dict[int, int] = field(default_factory=dict)  # chunks with more than one token, and their number of tokens
    running_count: int = 0  # completion tokens according to the per-chunk usage
    ahead: int = 0  # text events not yet included in the per-chunk usage
    carried: int = 0  # tokens received before any visible text; added to the first chunk
    carried_at: int = 0  # ns, arrival of the latest of these tokens
    written: AnswerText = field(default_factory=AnswerText)
    input_tokens: int = UNKNOWN
    output_tokens: int = UNKNOWN  # according to the final usage
    reasoning_tokens: int = 0  # part of the output tokens, according to the usage's details
    cached_tokens: int = UNKNOWN  # part of the input, according to the usage's details
    answer_us: int | None = None  # first event of the answer after reasoning; UNKNOWN: only reasoning so far
    by_ids: bool = False  # whether tokens are counted by the ids in chunks
    text: bytearray | None = None  # the answer as escaped in the events' JSON; None: not stored
    finish_reason: str | None = None

    @property
    def chunk_tokens(self) -> "array[int]":
        tokens = array("H", [1]) * len(self.chunk_us)
        for chunk, number in self.several.items():
            tokens[chunk] = number
        return tokens

    @property
    def source(self) -> TokenSource:
        """The source of the token count. A usage of 0 despite text is ignored; an event is not a token."""
        if self.by_ids:
            return "ids"
        if self.running_count > 0:
            return "running usage"
        return "final usage" if self.output_tokens > 0 else "events"

    @property
    def total(self) -> int:
        """The number of output tokens as counted by `source`; UNKNOWN if only events are known."""
        source = self.source
        if source == "ids":
            return sum(self.chunk_tokens)
        if source == "events":
            return UNKNOWN
        return self.output_tokens if self.output_tokens > 0 else self.running_count

    def reconciled(self, tokens: int, text: bool) -> int:
        """Return an event's tokens, given that the per-chunk usage (which may lag behind the text) rose by `tokens`.

        Text without a count is taken as one token, until the usage includes it.
        """
        owed = min(self.ahead, max(tokens, 0))
        self.ahead -= owed
        tokens = max(tokens, 0) - owed
        if tokens == 0 and text and not self.carried:
            self.ahead += 1
            return 1
        return tokens

    def take_text(self, piece: bytes) -> bool:
        """Add JSON-escaped text; return whether it is visible (reasoning must first contain a letter)."""
        if self.text is not None:
            self.text += piece
        return self.written.take(piece, self.answer_us == UNKNOWN and not self.chunk_us)

    def take(self, keys: list[str], piece: bytes, arrived_us: int) -> bool:
        """Add text from these keys, and record where the actual answer begins after reasoning."""
        if any(key in REASONING for key in keys) and not self.chunk_us:
            self.answer_us = UNKNOWN
        answers = any(key not in REASONING for key in keys)
        if answers and self.answer_us == UNKNOWN and not self.chunk_us:
            self.answer_us = None  # earlier text was a placeholder, or white space
        visible = self.take_text(piece)
        if visible and answers and self.answer_us == UNKNOWN:
            self.answer_us = max(0, arrived_us)
        return visible

    def is_past_reasoning(self, visible: bool) -> bool:
        """Return whether reasoning is over and text is visible, so that later events of this shape need no parsing."""
        return visible or self.answer_us != UNKNOWN


class _Shape:
    """The shape of a token event: its bytes before and after the text, with digits removed."""

    __slots__ = ("bare_head", "bare_tail", "count_from", "head", "marker", "plain", "rest", "start", "tail")

    def __init__(self, marker: bytes, count_from: bytes, head: bytes, tail: bytes, plain: bool) -> None:
        self.marker = marker  # b'"text":"' or similar, at the end of the head
        self.count_from = count_from  # bytes before the event's token count; b"": one token if there is text
        self.plain = plain  # whether any text is one token, so that nothing else in the event is read
        self.head, self.tail = head, tail  # the tail begins with the quote that ends the text
        self.start, self.rest = len(head), len(tail)
        self.bare_head, self.bare_tail = head.translate(None, _DIGITS), tail.translate(None, _DIGITS)

    def text_in(self, event: bytes) -> tuple[int, int]:
        """Return where the text begins and ends in an event; (0, -1) if the event does not have this shape."""
        start = self.start
        if not event.startswith(self.head):
            start = event.find(self.marker) + len(self.marker)
            if event[:start].translate(None, _DIGITS) != self.bare_head:
                return 0, -1
        end = event.find(b'"', start)
        return (start, end) if event[end:].translate(None, _DIGITS) == self.bare_tail else (0, -1)


@dataclass(slots=True, eq=False)
class Answer:
    """Reads one call's answer: fed the status, headers and body with timestamps, it builds the Streams.

    A token event costs a few byte searches. The first event is parsed as JSON, and its bytes before and after the text
    are stored without digits. An event that differs only in text and digits is the same JSON (see `_learn` for the
    conditions); all other events are parsed as JSON.
    """

    api: Api
    prompts: InitVar[int] = 1
    patient_until: int = 0  # number of tokens before which the answer cannot end
    keeps_text: InitVar[bool] = False  # store the text, to count its tokens afterwards
    limit: int = LARGEST_COUNT  # token events in all streams above which the answer is endless
    streams: list[Stream] = field(init=False)
    sent: int = 0  # ns, when the first byte of the request was written
    completed: int = 0  # ns, arrival of the end of the body; 0: never
    connecting: int = UNKNOWN  # ns, when its connection was started; UNKNOWN for a reused connection
    connected: int = UNKNOWN  # ns, when the connection was open, including the TLS handshake
    closed: bool = False  # whether its connection was closed afterwards
    chunks: int = 0  # token events so far, of all streams
    tokens: int = 0  # tokens so far, of all streams
    shared: int = 0  # events read together with another event of their stream, with which they share a stamp
    status: int = 0
    ended: bool = False  # whether the end mark of the stream has arrived, or every stream has finished
    error: str | None = None
    is_unreadable: bool = False  # whether what follows cannot be read: compressed, or an event or error without end
    _most: int = 1  # largest number of tokens in one event so far
    _sum: int = UNKNOWN  # output tokens of all prompts, according to the final usage
    _is_stream: bool = False
    _retry_after: str | None = None
    _location: str | None = None
    _encoding: str | None = None
    models: list[str] = field(default_factory=list)  # names of models in the answer
    _carry: bytes = b""
    _shape: _Shape | None = None

    def __post_init__(self, prompts: int, keeps_text: bool) -> None:
        self.streams = [Stream(text=bytearray() if keeps_text else None) for _ in range(prompts)]

    @property
    def counted(self) -> bool:
        """Return whether the server counted the tokens of every stream."""
        return all(stream.source != "events" for stream in self.streams)

    @property
    def last_token(self) -> int:
        """Return the arrival of the latest token, in ns, exact to the µs; 0 if no token has arrived."""
        latest = [self.sent + stream.chunk_us[-1] * 1000 for stream in self.streams if stream.chunk_us]
        return max(*latest, *(stream.carried_at for stream in self.streams), 0)

    def header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"content-type":
            self._is_stream = value.lower().startswith(b"text/event-stream")
        elif name == b"retry-after":
            self._retry_after = value.decode("latin-1").strip()
        elif name == b"location":
            self._location = value.decode("latin-1").strip()
        elif name == b"content-encoding" and value.lower() != b"identity":
            self._encoding = value.decode("latin-1").strip()

    def body(self, data: bytes, arrived: int) -> None:
        """Process bytes of the body that arrived at `arrived` ns, cutting them into events."""
        try:
            if not (self._shape and not self._carry and self._short_cut(data, arrived)):
                self._take(data, arrived)
        except Exception as error:  # noqa: BLE001 - this answer's failure, whatever its server sent
            self._shape = None
            self.fail(f"protocol: {type(error).__name__}: {str(error)[:LARGEST_MESSAGE]}")

    def _take(self, data: bytes, arrived: int) -> None:
        if self._carry:
            data = self._carry + data
            self._carry = b""
        data = data.removeprefix(BOM_UTF8)  # which a stream may begin with
        # Some proxies give a stream another content type.
        self._is_stream = self._is_stream or (self.status == 200 and data.startswith((b"data:", b"event:")))
        if not self._is_stream or self.status != 200:
            self._carry = data[:LARGEST_REFUSAL]  # part of an error's message, which is read once complete
            if len(data) > LARGEST_REFUSAL:
                self._complete(arrived)
                self.is_unreadable = True
            return
        if self._encoding:
            self.fail(f"protocol: content-encoding {self._encoding[:40]} {_COMPRESSED}")
            self.is_unreadable = True
            return
        # One whole event, as most servers write them.
        if data.endswith(b"\n\n") and data.find(b"\n\n") == len(data) - 2 and b"\r" not in data:
            self._parse(data, arrived)
            return
        end_of_line = b""
        if b"\r" in data:  # lines may end in CR LF; a CR at the end waits for what follows
            if data.endswith(b"\r"):
                data, end_of_line = data[:-1], b"\r"
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        end = data.rfind(b"\n\n")
        if end < 0:
            self._carry = data + end_of_line
            if len(data) > LARGEST_EVENT:
                self.fail(f"protocol: {len(data)} bytes without the end of an event")
                self._carry, self.is_unreadable = b"", True
            return
        self._carry = data[end + 2 :] + end_of_line
        for event in data[:end].split(b"\n\n"):
            event += b"\n\n"
            if not (self._shape and self._short_cut(event, arrived)):
                self._parse(event, arrived)

    def complete(self, arrived: int) -> None:
        """Handle the end of the HTTP body."""
        self.completed = arrived
        try:
            self._complete(arrived)
        except Exception as error:  # noqa: BLE001 - this answer's failure, whatever its server sent
            self.fail(f"protocol: {type(error).__name__}: {str(error)[:LARGEST_MESSAGE]}")

    def _complete(self, arrived: int) -> None:
        if self.status != 200:
            self.fail(self._status_error())
            return
        if not self._is_stream:
            whole = any(key in self._carry for key in WHOLE_ANSWER) and b'"delta"' not in self._carry
            ignores = "; the server ignored stream=true" if whole else ""
            self.fail(f"protocol: not an event stream{ignores}: {_message(self._carry)}")
            return
        rest = self._carry.replace(b"\r", b"\n").strip(b"\n")
        self._carry = b""
        if rest:  # some servers omit the last blank line
            self._parse(rest, arrived)
        for stream in self.streams:
            if stream.carried:  # only white space or end tokens: count them at the end of the answer
                self._arrive(stream, 0, stream.carried_at)
        if not self.ended and not all(stream.finish_reason for stream in self.streams):
            self.fail("closed: the stream ended without its end mark")
        if len(self.streams) > 1:
            self._share_sum()

    def fail(self, error: str) -> None:
        """Record an error; later errors are ignored."""
        if self.error is None:
            self.error = error

    def error_of(self, stream: Stream) -> str | None:
        """Return a stream's error; None if the stream had finished before the call failed."""
        if self.error is not None and stream.finish_reason is None:
            return self.error
        if not stream.chunk_us:
            return self.error or "empty: the stream ended without a token"
        if stream.finish_reason in ABORTED:
            return f"engine: finish_reason {stream.finish_reason}"
        return None

    def _short_cut(self, event: bytes, arrived: int) -> bool:
        """Process one whole event of the learnt shape without parsing; return False if its shape differs."""
        shape = self._shape
        assert shape is not None
        start, end = shape.start, len(event) - shape.rest
        if not (event.startswith(shape.head) and event.endswith(shape.tail) and event.find(b'"', start) == end):
            start, end = shape.text_in(event)
        if end < start or event[end - 1] == _BACKSLASH or event.find(b"\n", start, end) >= 0:
            return False
        stream = self.streams[0]
        tokens = 1
        if shape.plain:
            visible = stream.take_text(event[start:end])
        else:
            if len(self.streams) > 1:
                index = _number(event, b'"index":')
                if index >= len(self.streams):
                    return False
                stream = self.streams[index]
                self._look_for_shared(stream, arrived)
            visible = stream.take_text(event[start:end])
            if shape.count_from == b'"completion_tokens":':
                count = _number(event, shape.count_from)
                tokens, stream.running_count = count - stream.running_count, max(count, stream.running_count)
                if tokens <= 0 or stream.ahead:
                    tokens = stream.reconciled(tokens, end > start)
        if end > start or shape.count_from:  # without a count, an event with text is one token
            self._token(stream, tokens, arrived, visible)
        return True

    def _token(self, stream: Stream, tokens: int, arrived: int, visible: bool) -> None:
        """Add an event's tokens as a chunk; before any visible text, they are added to the first chunk instead."""
        if tokens + stream.carried <= 0:
            return
        self.chunks += 1
        self.tokens += tokens
        if tokens > self._most:
            self.patient_until -= tokens - self._most  # the last event may hold as many tokens as this one
            self._most = tokens
        if not visible and not stream.chunk_us:
            stream.carried += tokens
            stream.carried_at = arrived
        elif visible or tokens > 0:
            self._arrive(stream, tokens, arrived)

    def _arrive(self, stream: Stream, tokens: int, arrived: int) -> None:
        tokens += stream.carried
        stream.carried = stream.carried_at = 0
        since = (arrived - self.sent) // 1000
        if tokens > 1:
            stream.several[len(stream.chunk_us)] = min(tokens, MOST_TOKENS)
        stream.chunk_us.append(since if since > 0 else 0)  # the stamps' two clocks agree to about a µs

    def _look_for_shared(self, stream: Stream, arrived: int) -> None:
        if stream.chunk_us and stream.chunk_us[-1] == (arrived - self.sent) // 1000:
            self.shared += 1

    def _parse(self, event: bytes, arrived: int) -> None:
        """Parse one event according to https://html.spec.whatwg.org/multipage/server-sent-events.html."""
        if event == b"data: [DONE]\n\n":
            self.ended = True
            return
        name, data = _fields(event)
        data = data.strip()
        if not data:  # a comment, a ping, a lone id or retry
            return
        if data == b"[DONE]":
            self.ended = True
            return
        try:
            content = json.loads(data.decode())  # given bytes, it would check for other encodings first
        except ValueError:
            several = " (its lines have no blank line between them)" if b"\n" in data else ""
            self.fail(f"protocol: an event is not JSON{several}: {_message(data)}")
            return
        if not isinstance(content, dict):
            self.fail(f"protocol: an event is not an object: {_message(data)}")
        elif name == b"error" or content.get("error") or content.get("object") == "error":
            self.fail(f"engine: {_message(data)}")
        else:
            try:
                self._read(content, event, arrived)
            except (AttributeError, TypeError, ValueError) as error:
                self.fail(f"protocol: an event of unexpected shape ({error}): {_message(data)}")

    def _read(self, content: dict[str, Any], event: bytes, arrived: int) -> None:
        for place in (content, content.get("message"), content.get("response")):
            model = place.get("model") if isinstance(place, dict) else None
            if isinstance(model, str) and model and len(self.models) < MOST_MODELS:
                name = model[:LONGEST_MODEL]
                self.models += [name] if name not in self.models else []
        if self.api in TYPED_DIALECTS:
            self._typed_event(TYPED_DIALECTS[self.api].read(content), event, arrived)
        elif self.api == "tgi":
            self._tgi_event(content, event, arrived)
        else:
            self._openai_event(content, event, arrived)

    def _typed_event(self, content: TypedEvent, event: bytes, arrived: int) -> None:
        stream = self.streams[0]
        if content.error:
            self.fail(f"engine: {_message(json.dumps(content.error).encode())}")
        if content.text:
            keys = [REASONING[0] if content.reasoning else "content"]
            visible = stream.take(keys, _escaped(content.text), (arrived - self.sent) // 1000)
            self._token(stream, 1, arrived, visible)
            if stream.is_past_reasoning(visible):
                self._learn(event, content.key, b"")
        if content.finish_reason:
            stream.finish_reason = content.finish_reason
        if content.usage:
            self._usage(dict(content.usage), [])

    def _openai_event(self, content: dict[str, Any], event: bytes, arrived: int) -> None:
        usage = content.get("usage") or {}
        choices = content.get("choices") or []
        for choice in choices:
            index = choice.get("index") or 0
            if len(self.streams) == 1:
                index = 0
            if not 0 <= index < len(self.streams):
                self.fail(f"protocol: choice index {index} of a call with {len(self.streams)} prompts")
                continue
            stream = self.streams[index]
            keys = _text_keys(choice, self.api)
            tokens, count_from = _count(choice, usage, stream, bool(keys))
            visible = stream.take(keys, _text(choice, keys), (arrived - self.sent) // 1000)
            if tokens > 0 and len(self.streams) > 1:
                self._look_for_shared(stream, arrived)
            self._token(stream, tokens, arrived, visible)
            if choice.get("finish_reason"):
                stream.finish_reason = str(choice["finish_reason"])
            elif len(choices) == 1 and len(keys) == 1 and stream.is_past_reasoning(visible):
                self._learn(event, keys[0], count_from)
        if usage:
            self._usage(usage, choices)

    def _usage(self, usage: dict[str, Any], choices: list[dict[str, Any]]) -> None:
        """Read a usage: with one choice it belongs to that prompt; alone, to the call (summed over prompts)."""
        number = usage.get("completion_tokens")
        if len(self.streams) == 1:
            stream = self.streams[0]
        elif len(choices) == 1 and 0 <= (choices[0].get("index") or 0) < len(self.streams):
            stream = self.streams[choices[0].get("index") or 0]
        else:
            self._sum = _token_count(number) if not choices and isinstance(number, int) else self._sum
            return
        if isinstance(usage.get("prompt_tokens"), int):
            stream.input_tokens = _token_count(usage["prompt_tokens"])
        details = usage.get("prompt_tokens_details")
        if isinstance(details, dict) and isinstance(details.get("cached_tokens"), int):
            stream.cached_tokens = _token_count(details["cached_tokens"])
        final = not choices or stream.finish_reason is not None  # before the end it is per-chunk usage
        if final and isinstance(number, int):
            stream.output_tokens = _token_count(number)
        details = usage.get("completion_tokens_details")
        if isinstance(details, dict) and isinstance(details.get("reasoning_tokens"), int):
            stream.reasoning_tokens = _token_count(details["reasoning_tokens"])

    def _share_sum(self) -> None:
        """Divide the call's token count among its prompts by their events, if no prompt has a separate count."""
        events = [len(stream.chunk_us) for stream in self.streams]
        if self._sum > 0 and any(events) and not any(stream.source != "events" for stream in self.streams):
            edges = [total * self._sum // sum(events) for total in accumulate(events, initial=0)]
            for stream, (begin, end) in zip(self.streams, pairwise(edges), strict=True):
                stream.output_tokens = end - begin

    def _tgi_event(self, content: dict[str, Any], event: bytes, arrived: int) -> None:
        stream = self.streams[0]
        if content.get("token"):
            stream.by_ids = True  # each event is one token with its id
            self._token(stream, 1, arrived, stream.take_text(_escaped(content["token"].get("text"))))
        details = content.get("details") or {}
        if details or content.get("generated_text") is not None:
            stream.finish_reason = str(details.get("finish_reason") or "unknown")
            if "generated_tokens" in details:
                stream.output_tokens = _token_count(details["generated_tokens"])
            if "input_length" in details:
                stream.input_tokens = _token_count(details["input_length"])
            self.ended = True
        elif content.get("token"):
            self._learn(event, "text", b"token")

    def _learn(self, event: bytes, key: str, count_from: bytes) -> None:
        """Store this event's shape, if any event of the same shape is certain to have the same meaning.

        It is certain if the key, with its value, occurs once, as does every number that `_short_cut` reads. A key in
        quotes cannot be hidden inside a JSON string, where quotes are escaped. The closing quote of the text is the
        first quote without a backslash before it. Without digits, everything around the text is then the same JSON
        except for numbers. (Empty and one-element lists of numbers look alike, so events with token ids are always
        parsed.)
        """
        self._shape = None
        data = event.partition(b"\n")[2] if event.startswith(b"event:") else event  # without its constant name
        if count_from == b'"token_ids":' or b'"error"' in event or b"\n" in data[:-2] or not event.endswith(b"\n\n"):
            return
        if count_from == b"" and b'"completion_tokens":' in event:  # a count that is 0 so far may become valid
            return
        if count_from.startswith(b'"') and event.count(count_from) != 1:
            return
        if len(self.streams) > 1 and event.count(b'"index":') != 1:
            return
        for marker in (b'"%s":"' % key.encode(), b'"%s": "' % key.encode()):
            if event.count(marker) == 1:
                start = event.find(marker) + len(marker)
                end = event.find(b'"', start)
                if event[end - 1] != _BACKSLASH:
                    plain = len(self.streams) == 1 and count_from == b"" and self.streams[0].text is None
                    self._shape = _Shape(marker, count_from, event[:start], event[end:], plain)

    def _status_error(self) -> str:
        error = f"status: {self.status}"
        if self._retry_after:
            error += f" retry_after={self._retry_after[:40]}"
        if self.status in REDIRECTS and self._location:
            return f"{error} redirects to {self._location[:200]}; {direct_address(self._location, PATHS[self.api])}"
        message = _message(self._carry)
        if self.api == "chat" and "chat template" in message.lower().replace("_", " "):
            error += f" {NO_TEMPLATE}:"
        if self.status == 400 and "max_completion_tokens" in message:
            error += f" {OTHER_LIMIT}:"
        return f"{error} {message}".rstrip()


def _fields(event: bytes) -> tuple[bytes, bytes]:
    """Return the name and the data of a server-sent event."""
    if event.startswith(b"data:") and event.find(b"\n") >= len(event) - 2:
        return b"", event[5:]
    name, lines = b"", []
    for line in event.split(b"\n"):
        key, _, value = line.partition(b":")
        if key == b"data":
            lines.append(value.removeprefix(b" "))
        elif key == b"event":
            name = value.strip()
    return name, b"\n".join(lines)


def direct_address(location: str, path: str) -> str:
    """Return the setting with which requests reach a redirect's target; following it would distort the times."""
    parts = urlsplit(location)
    if not parts.path.endswith(path):
        return "set backend.url to an address that does not redirect"
    base = location[: location.rindex(path)]
    return f"set backend.url={base}" if parts.netloc else f"set the path of backend.url to {base or '/'}"


def _number(event: bytes, key: bytes) -> int:
    match = _NUMBER.match(event, event.rfind(key) + len(key))
    if match is None:
        raise ValueError(f"expected a count after {key.decode()}")
    return int(match[1])


def _token_count(number: Any) -> int:
    """Return a count of tokens. Raises ValueError for anything else."""
    if not isinstance(number, int) or not 0 <= number < LARGEST_COUNT:
        raise ValueError(f"expected a count of tokens, not {str(number)[:40]}")
    return number


def _text_keys(choice: dict[str, Any], api: Api) -> list[str]:
    """Return the keys under which a choice has text (or a tool call, which consists of tokens too)."""
    if api == "completions":
        return ["text"] if choice.get("text") else []
    delta = choice.get("delta") or {}
    return [key for key in ("content", *REASONING, "refusal", "tool_calls") if delta.get(key)]


def _count(choice: dict[str, Any], usage: dict[str, Any], stream: Stream, text: bool) -> tuple[int, bytes]:
    """Return a choice's tokens and the key that counts them: token ids, else per-chunk usage, else one token for text.

    A usage that appears only with the last choice, as in llama.cpp, is the sum of tokens already counted by text.
    """
    ids = choice.get("token_ids")
    if isinstance(ids, list):
        stream.by_ids = True
        return len(ids), b'"token_ids":'
    count = usage.get("completion_tokens")
    if (
        isinstance(count, int)
        and _token_count(count) >= 0
        and (stream.running_count or stream.ahead or not (stream.chunk_us or stream.carried))
    ):
        tokens, stream.running_count = count - stream.running_count, max(count, stream.running_count)
        return stream.reconciled(tokens, text), b'"completion_tokens":'
    return (1 if text else 0), b""


def _text(choice: dict[str, Any], keys: list[str]) -> bytes:
    """Return the text of a choice as JSON escapes it; for tool calls, their names and arguments."""
    if keys == ["text"]:
        return _escaped(choice["text"])
    delta, parts = choice.get("delta") or {}, list[Any]()
    for key in keys:
        calls = delta[key] if key == "tool_calls" else []
        parts += [part for call in calls for part in (call.get("function") or {}).values()] or [delta[key]]
    return b"".join(map(_escaped, parts))


def _escaped(text: Any) -> bytes:
    return json.dumps(text)[1:-1].encode("ascii") if isinstance(text, str) else b""


def _message(data: bytes) -> str:
    text = data.decode("utf-8", "replace")
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    if isinstance(content, dict):
        error = content.get("error") or content
        if isinstance(error, dict):
            code = error.get("code") or error.get("type") or error.get("http_status_code") or ""
            text = f"{code} {error.get('message', json.dumps(error))}"
        else:
            text = f"{content.get('error_type', '')} {error}"
    return " ".join(text.split())[:LARGEST_MESSAGE]
