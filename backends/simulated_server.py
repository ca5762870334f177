"""An engine without a model: answers with the timing, the faults and the limits it is told, and logs what it truly did.

It speaks OpenAI completions and chat and TGI's /generate_stream, in one process on uvloop and httptools without a
framework, so that a measuring client can be held against it: with `log` it writes, for every prompt, the kernel's
arrival stamp of the request and the time of each token's write, by x-request-id (`read_log`). Tokens are due at
arrival + ttft + k × itl, so that being late does not add up. It generates no text worth reading.

    python -m backends.simulated_server --port 8000 --config '{"ttft": {"mean": 0.05}, "itl": {"mean": 0.02}}'
"""

import argparse
import asyncio
import contextlib
import errno
import heapq
import json
import math
import os
import random
import signal
import socket
import struct
import sys
import time
import zlib
from array import array
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import httptools
import uvloop

STAMP_OPTION = 35  # SO_TIMESTAMPNS
TRICKLE_EVERY = 0.05  # s between the single bytes of a trickling answer
WORD = " word"


@dataclass(frozen=True)
class Timing:
    """How long a step takes: always `mean` s, or log-normal around it, or `burst` steps at once, then a pause."""

    kind: str = "constant"  # constant | lognormal | bursty
    mean: float = 0.0  # s
    sigma: float = 0.5  # lognormal: standard deviation of the logarithm
    burst: int = 8  # bursty: steps that come together

    def __post_init__(self) -> None:
        if self.kind not in ("constant", "lognormal", "bursty") or self.mean < 0 or self.burst < 1:
            raise ValueError(f"timing {self}: kind is constant, lognormal or bursty, mean >= 0, burst >= 1")

    def steps(self, rng: random.Random) -> Iterator[float]:
        if self.kind == "lognormal" and self.mean > 0:
            mu = math.log(self.mean) - self.sigma**2 / 2  # so that the mean is the mean
            while True:
                yield rng.lognormvariate(mu, self.sigma)
        while self.kind == "bursty":
            yield self.mean * self.burst
            for _ in range(self.burst - 1):
                yield 0.0
        while True:
            yield self.mean


@dataclass(frozen=True)
class Faults:
    """The share of requests (0..1) that meet each kind of trouble."""

    status_503: float = 0.0  # with Retry-After
    status_429: float = 0.0  # with Retry-After
    reset: float = 0.0  # the connection is reset in the middle of the answer
    error_event: float = 0.0  # an error event in the middle of a stream that began with 200
    hang: float = 0.0  # no answer at all
    stall: float = 0.0  # nothing more after half of the answer
    trickle: float = 0.0  # half of the answer, then a byte now and then
    early_close: float = 0.0  # the connection is closed in the middle of the answer

    def draw(self, rng: random.Random) -> str | None:
        value = rng.random()
        for one in fields(self):
            value -= getattr(self, one.name)
            if value < 0:
                return one.name
        return None


@dataclass(frozen=True)
class Config:
    """Everything the engine is told. `backends.simulated` has the same keys."""

    ttft: Timing = field(default_factory=lambda: Timing(mean=0.05))
    itl: Timing = field(default_factory=lambda: Timing(mean=0.02))
    ttft_per_input_token: float = 0.0  # s, prefill
    itl_per_sequence: float = 0.0  # s added to each gap for each sequence that runs beside
    tokens_per_event: int = 1  # as under speculative decoding
    events_per_write: int = 1  # of events that are due at the same time
    faults: Faults = field(default_factory=Faults)
    max_concurrency: int | None = None  # sequences that run at once; others wait
    max_queue: int | None = None  # waiting sequences, beyond which a request gets 503
    memory_limit: int | None = None  # sequences at once, beyond which the engine runs out of memory and dies
    kv_cache_tokens: int = 1_000_000  # what kv_cache_usage is a share of
    startup_seconds: float = 0.0
    die_at_launch: str | None = None  # error | out_of_memory
    always_500: bool = False
    seed: int = 0
    log: str | None = None  # file for the true times

    @classmethod
    def parse(cls, text: str) -> "Config":
        content = json.loads(text)
        for name, kind in (("ttft", Timing), ("itl", Timing), ("faults", Faults)):
            if name in content:
                content[name] = kind(**content[name])
        return cls(**content)


# -- the log of true times


class Truth(NamedTuple):
    """What the server did for one prompt, in ns of CLOCK_MONOTONIC."""

    arrival: int  # the request's last byte, by the kernel
    writes: "array[int]"  # of each token event
    last_write: int


_LOG_HEAD = struct.Struct("<HHqI")  # bytes of the id, index in a list of prompts, arrival, token events


class TruthLog:
    def __init__(self, path: str) -> None:
        self._file = open(path, "wb", buffering=1 << 20)  # noqa: SIM115 - open as long as the process lives

    def add(self, request_id: bytes, index: int, arrival: int, writes: "array[int]") -> None:
        self._file.write(_LOG_HEAD.pack(len(request_id), index, arrival, len(writes)) + request_id)
        self._file.write(writes)

    def close(self) -> None:
        self._file.close()


def read_log(path: Path) -> dict[tuple[str, int], Truth]:
    """True times by x-request-id and index of the prompt in its list (0 for a single prompt)."""
    data, position, truths = path.read_bytes(), 0, {}
    while position < len(data):
        length, index, arrival, count = _LOG_HEAD.unpack_from(data, position)
        position += _LOG_HEAD.size
        request_id = data[position : position + length].decode()
        position += length
        writes = array("q")
        writes.frombytes(data[position : position + 8 * count])
        position += 8 * count
        truths[request_id, index] = Truth(arrival, writes, writes[-1] if writes else 0)
    return truths


# -- what is said


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
        """What comes before the first token: chat's role event."""
        if self.api != "chat":
            return b""
        return self._event({"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None})

    def token(self, sequence: "Sequence", count: int) -> bytes:
        """One event of `count` tokens; the sequence's own count includes them."""
        finish = "length" if sequence.made >= sequence.wanted else None
        if self.api == "tgi":
            return self._tgi_token(sequence, finish)
        text = WORD * count
        choice: dict[str, Any] = {"index": sequence.index, "finish_reason": finish, "logprobs": None}
        choice |= {"delta": {"content": text}} if self.api == "chat" else {"text": text}
        return self._event(choice, sequence if self.running_usage else None)

    def closing(self, sequences: "list[Sequence]") -> bytes:
        if self.api == "tgi":
            return b""
        end = b"data: [DONE]\n\n"
        if not self.include_usage:
            return end
        usage = _usage(sum(one.input_tokens for one in sequences), sum(one.made for one in sequences))
        return _sse({**self._frame(), "choices": [], "usage": usage}) + end

    def error(self, message: str, code: int) -> bytes:
        if self.api == "tgi":
            return _sse({"error": message, "error_type": "generation"})
        return _sse({"error": {"message": message, "type": "InternalServerError", "code": code}}) + b"data: [DONE]\n\n"

    def _frame(self) -> dict[str, Any]:
        kind, prefix = ("chat.completion.chunk", "chatcmpl") if self.api == "chat" else ("text_completion", "cmpl")
        return {"id": f"{prefix}-{self.request_id}", "object": kind, "created": self.created, "model": self.model}

    def _event(self, choice: dict[str, Any], counted: "Sequence | None" = None) -> bytes:
        content = {**self._frame(), "choices": [choice]}
        if counted is not None:
            content["usage"] = _usage(counted.input_tokens, counted.made)
        return _sse(content)

    def _tgi_token(self, sequence: "Sequence", finish: str | None) -> bytes:
        details = None
        if finish:
            details = {"finish_reason": finish, "generated_tokens": sequence.made, "seed": None}
            details["input_length"] = sequence.input_tokens
        token = {"id": 363, "text": WORD, "logprob": -1.5, "special": False}
        text = WORD * sequence.made if finish else None
        return _sse({"index": sequence.made, "token": token, "generated_text": text, "details": details})


def _usage(input_tokens: int, output_tokens: int) -> dict[str, int]:
    total = input_tokens + output_tokens
    return {"prompt_tokens": input_tokens, "total_tokens": total, "completion_tokens": output_tokens}


def _sse(content: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(content, separators=(",", ":")).encode() + b"\n\n"


def _chunk(data: bytes) -> bytes:
    """HTTP's framing of a piece of a body of unknown length."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 429: "Too Many Requests", 500: "Internal Server Error"}
REASONS[503] = "Service Unavailable"


def _plain(status: int, content: object, extra: str = "") -> bytes:
    """A whole answer that is not a stream."""
    text = isinstance(content, str)
    body = content.encode() if isinstance(content, str) else json.dumps(content).encode()
    kind = "text/plain; version=0.0.4" if text else "application/json"
    head = f"HTTP/1.1 {status} {REASONS[status]}\r\nContent-Type: {kind}\r\n{extra}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _busy(status: int) -> bytes:
    message = "The engine is currently busy and cannot accept new requests."
    error = {"error": {"message": message, "type": REASONS[status], "param": None, "code": status}}
    return _plain(status, error, "Retry-After: 1\r\n")


# -- what is running


class Sequence:
    """One prompt on its way through the engine."""

    __slots__ = ("call", "due", "gaps", "index", "input_tokens", "made", "running", "template", "wanted", "writes")

    def __init__(self, call: "Call", index: int, input_tokens: int, wanted: int) -> None:
        self.call, self.index, self.input_tokens, self.wanted = call, index, input_tokens, wanted
        self.made = 0
        self.due = 0.0  # s, of the next token event
        self.gaps: Iterator[float] | None = None  # None: constant
        self.template: bytes | None = None  # a framed token event, where all are alike
        self.writes = array("q")
        self.running = False


class Call:
    """One HTTP call: a connection, its sequences and the fault it is to meet."""

    __slots__ = ("arrival", "connection", "dialect", "fault", "left", "request_id", "sequences", "started")

    def __init__(self, connection: "Connection", dialect: Dialect, request_id: bytes, arrival: int) -> None:
        self.connection, self.dialect, self.request_id, self.arrival = connection, dialect, request_id, arrival
        self.sequences: list[Sequence] = []
        self.left = 0  # sequences that have not finished
        self.started = False
        self.fault: str | None = None

    def opening(self) -> bytes:
        """HTTP's head, once, with whatever comes before the first token."""
        if self.started:
            return b""
        self.started = True
        return STREAM_HEAD + _chunk(self.dialect.opening())


class Engine:
    """Decides when each token is due and writes it then."""

    def __init__(self, config: Config, model: str, loop: asyncio.AbstractEventLoop) -> None:
        self.config, self.model, self.loop = config, model, loop
        self.rng = random.Random(config.seed)
        self.log = TruthLog(config.log) if config.log else None
        self.waiting: deque[Sequence] = deque()
        self.running = 0
        self.context_tokens = 0  # of running sequences
        self.requests = self.generated = self.prompted = 0
        self._due: list[tuple[float, int, Sequence]] = []
        self._pushed = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._plain_gaps = config.itl.kind == "constant" and not config.itl_per_sequence
        self._draws = any(getattr(config.faults, one.name) for one in fields(Faults))

    # -- admission

    def submit(self, connection: "Connection", api: str, body: dict[str, Any], request_id: bytes, arrival: int) -> None:
        """Answer a request for tokens; everything that happens from here on is by the clock."""
        self.requests += 1
        if self.config.always_500:
            connection.write(_plain(500, {"error": {"message": "simulated failure", "code": 500}}))
            return
        rng = self.rng  # where nothing is drawn; making a generator takes as long as all else that a request needs
        if self._draws or "lognormal" in (self.config.ttft.kind, self.config.itl.kind):
            rng = random.Random(zlib.crc32(request_id) ^ self.config.seed)
        fault = self.config.faults.draw(rng) if self._draws else None
        if fault in ("status_503", "status_429"):
            connection.write(_busy(int(fault[-3:])))
            return
        prompts, wanted = _asked(api, body)
        places = math.inf if self.config.max_queue is None else self.config.max_queue + self._room()
        if len(self.waiting) + len(prompts) > places:
            connection.write(_busy(503))
            return
        options = body.get("stream_options") or {}
        running_usage = bool(options.get("continuous_usage_stats"))
        name = request_id.decode("latin-1")
        dialect = Dialect(api, self.model, name, int(time.time()), bool(options.get("include_usage")), running_usage)
        call = Call(connection, dialect, request_id, arrival)
        call.fault, call.left, connection.call = fault, len(prompts), call
        if fault == "hang":
            return
        for index, tokens in enumerate(prompts):
            sequence = Sequence(call, index, tokens, wanted)
            call.sequences.append(sequence)
            self.waiting.append(sequence)
            if not self._plain_gaps:
                sequence.gaps = self.config.itl.steps(rng)
        first = next(self.config.ttft.steps(rng))
        if dialect.api == "chat":
            connection.write(call.opening())
        self._admit(arrival / 1e9 + first)

    def _room(self) -> int:
        limit = self.config.max_concurrency
        return 1 << 60 if limit is None else limit - self.running

    def _admit(self, first_due: float | None = None) -> None:
        """Let waiting sequences run while there is room; first_due is of those that just came."""
        while self.waiting and self._room() > 0:
            sequence = self.waiting.popleft()
            if sequence.call.connection.call is not sequence.call:
                continue  # its client has gone
            if first_due is None:
                first_due = time.monotonic() + self.config.ttft.mean
            self.running += 1
            sequence.running = True
            self.prompted += sequence.input_tokens
            self.context_tokens += sequence.input_tokens
            sequence.due = first_due + self.config.ttft_per_input_token * sequence.input_tokens
            self._push(sequence)
        if self.config.memory_limit is not None and self.running > self.config.memory_limit:
            self._run_out_of_memory()

    def _run_out_of_memory(self) -> None:
        message = f"CUDA out of memory (simulated): {self.running} sequences, the limit is {self.config.memory_limit}"
        print(f"torch.OutOfMemoryError: {message}", file=sys.stderr, flush=True)
        for _, _, sequence in self._due:
            call = sequence.call
            call.connection.write(call.opening() + _chunk(call.dialect.error(message, 500)) + b"0\r\n\r\n")
        self.close()
        os._exit(1)

    def drop(self, call: Call) -> None:
        """The client has gone: its sequences make room."""
        for sequence in call.sequences:
            if sequence.running:
                self._leave(sequence)
        self._admit()

    def _leave(self, sequence: Sequence) -> None:
        sequence.running = False
        self.running -= 1
        self.context_tokens -= sequence.input_tokens + sequence.made

    # -- generation

    def _push(self, sequence: Sequence) -> None:
        self._pushed += 1
        heapq.heappush(self._due, (sequence.due, self._pushed, sequence))
        if sequence.due < self._timer_at:
            self._arm(sequence.due)

    def _arm(self, due: float) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer_at = due
        delay = due - time.monotonic()
        self._timer = self.loop.call_later(delay, self._step) if delay > 0 else self.loop.call_soon(self._step)  # type: ignore[assignment]

    def _step(self) -> None:
        """Write every token that is due, then sleep until the next one is."""
        due, now = self._due, time.monotonic() + 0.0002  # the loop's timer is as coarse as a millisecond anyway
        self._timer, self._timer_at = None, -math.inf  # no timer is set while we are at it
        budget = 2000  # then look at the sockets
        while due and due[0][0] <= now and budget:
            budget -= 1
            sequence = heapq.heappop(due)[2]
            if sequence.running:
                self._emit(sequence)
        self._timer_at = math.inf
        if due:
            self._arm(due[0][0])

    def _emit(self, sequence: Sequence) -> None:
        call = sequence.call
        if call.fault and sequence.made >= sequence.wanted // 2:
            self._fail(sequence)
            return
        data = b""
        for _ in range(self.config.events_per_write):
            count = min(self.config.tokens_per_event, sequence.wanted - sequence.made)
            sequence.made += count
            self.context_tokens += count
            self.generated += count
            data += self._event(sequence, count)
            sequence.due += self._gap(sequence)
            if sequence.made >= sequence.wanted:
                break
        if not call.started:
            data = call.opening() + data
        finished = sequence.made >= sequence.wanted
        if finished:
            self._leave(sequence)
            call.left -= 1
            if not call.left:
                data += _chunk(call.dialect.closing(call.sequences)) + b"0\r\n\r\n"
                call.connection.call = None
        if self.log:
            sequence.writes.append(time.monotonic_ns())
        call.connection.write(data)
        if finished:
            if self.log:
                self.log.add(call.request_id, sequence.index, call.arrival, sequence.writes)
            self._admit()
        else:
            self._push(sequence)

    def _event(self, sequence: Sequence, count: int) -> bytes:
        """A framed token event. Most are alike, so they are made once."""
        dialect = sequence.call.dialect
        alike = count == self.config.tokens_per_event and sequence.made < sequence.wanted
        if not alike or dialect.running_usage or dialect.api == "tgi":
            return _chunk(dialect.token(sequence, count))
        if sequence.template is None:
            sequence.template = _chunk(dialect.token(sequence, count))
        return sequence.template

    def _gap(self, sequence: Sequence) -> float:
        if sequence.gaps is None:
            return self.config.itl.mean
        return next(sequence.gaps) + self.config.itl_per_sequence * self.running

    def _fail(self, sequence: Sequence) -> None:
        """The fault that this call was to meet, now that half of its answer is out."""
        call, connection = sequence.call, sequence.call.connection
        fault, call.fault = call.fault, None
        for one in call.sequences:
            if one.running:
                self._leave(one)
        if fault == "error_event":
            data = call.opening() + _chunk(call.dialect.error("simulated failure", 500)) + b"0\r\n\r\n"
            connection.call = None
            connection.write(data)
        elif fault == "reset":
            connection.reset()
        elif fault == "early_close":
            connection.close()
        elif fault == "trickle":
            connection.trickle(call.opening() + b"1000\r\ndata: {")
        self._admit()

    # -- what it says about itself

    def metrics(self) -> str:
        usage = min(1.0, self.context_tokens / self.config.kv_cache_tokens)
        values = {
            "vllm:kv_cache_usage_perc": ("gauge", usage),
            "vllm:num_requests_running": ("gauge", self.running),
            "vllm:num_requests_waiting": ("gauge", len(self.waiting)),
            "vllm:num_preemptions_total": ("counter", 0),  # it never preempts
            "vllm:prompt_tokens_total": ("counter", self.prompted),
            "vllm:generation_tokens_total": ("counter", self.generated),
        }
        lines = []
        for name, (kind, value) in values.items():
            lines += [f"# TYPE {name} {kind}", f'{name}{{model_name="{self.model}"}} {value}']
        return "\n".join(lines) + "\n"

    def close(self) -> None:
        if self.log:
            self.log.close()


def _asked(api: str, body: dict[str, Any]) -> tuple[list[int], int]:
    """Input tokens of each prompt (words, where it is text) and the tokens wanted."""
    if api == "tgi":
        return [len(body["inputs"].split())], int((body.get("parameters") or {}).get("max_new_tokens") or 16)
    wanted = int(body.get("max_tokens") or body.get("max_completion_tokens") or 16)
    if api == "chat":
        return [sum(len(str(message.get("content")).split()) for message in body["messages"])], wanted
    prompt = body["prompt"]
    several = isinstance(prompt, list) and prompt and not isinstance(prompt[0], int)
    prompts = prompt if several else [prompt]
    return [len(one.split()) if isinstance(one, str) else len(one) for one in prompts], wanted


# -- sockets and HTTP


class Connection:
    """One client's socket: stamps what it reads, never blocks on what it writes."""

    def __init__(self, sock: socket.socket, server: "Server") -> None:
        self.sock, self.server = sock, server
        self.call: Call | None = None
        self._unsent = bytearray()
        self._parser = httptools.HttpRequestParser(self)
        self._arrival = 0
        self._url, self._request_id, self._body = b"", b"", b""
        self._trickle: asyncio.TimerHandle | None = None
        server.loop.add_reader(sock.fileno(), self._readable)

    def _readable(self) -> None:
        try:
            data, ancillary, _, _ = self.sock.recvmsg(1 << 18, 64)
        except BlockingIOError:
            return
        except OSError:
            data, ancillary = b"", []
        if not data:
            self.close()
            return
        self._arrival = time.monotonic_ns()
        if ancillary:
            seconds, nanoseconds = struct.unpack("qq", ancillary[0][2])
            self._arrival = seconds * 1_000_000_000 + nanoseconds - self.server.offset
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            self.write(_plain(400, {"error": {"message": f"{type(cause).__name__}: {cause}", "code": 400}}))
        except httptools.HttpParserError:
            self.close()

    def write(self, data: bytes) -> None:
        if self._unsent or self.sock.fileno() < 0:
            self._unsent += data
            return
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return
        if sent < len(data):
            self._unsent += data[sent:]
            self.server.loop.add_writer(self.sock.fileno(), self._writable)

    def _writable(self) -> None:
        try:
            del self._unsent[: self.sock.send(self._unsent)]
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if not self._unsent:
            self.server.loop.remove_writer(self.sock.fileno())

    def trickle(self, data: bytes) -> None:
        """Send these bytes, then blanks one by one, for as long as the client will have it."""
        if self.sock.fileno() < 0:
            return
        self.write(data)
        self._trickle = self.server.loop.call_later(TRICKLE_EVERY, self.trickle, b" ")

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        if self.sock.fileno() < 0:
            return
        if self._trickle:
            self._trickle.cancel()
        self.server.loop.remove_reader(self.sock.fileno())
        self.server.loop.remove_writer(self.sock.fileno())
        self.sock.close()
        call, self.call = self.call, None
        if call is not None:
            self.server.engine.drop(call)

    # -- callbacks of the parser

    def on_message_begin(self) -> None:
        self._url, self._request_id, self._body = b"", b"", b""

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"x-request-id":
            self._request_id = value

    def on_body(self, data: bytes) -> None:
        self._body += data

    def on_message_complete(self) -> None:
        self.server.answer(self, self._url, self._body, self._request_id, self._arrival)


APIS = {b"/v1/completions": "completions", b"/v1/chat/completions": "chat", b"/generate_stream": "tgi"}


class Server:
    """Listens, and hands each request to the engine or answers it at once."""

    def __init__(self, engine: Engine, loop: asyncio.AbstractEventLoop) -> None:
        self.engine, self.loop = engine, loop
        self.offset = 0
        self._refresh()

    def _refresh(self) -> None:
        """CLOCK_REALTIME (the kernel's stamps) minus CLOCK_MONOTONIC, from the tightest of nine readings."""
        readings = []
        for _ in range(9):
            before, real, after = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
            readings.append((after - before, real - (before + after) // 2))
        self.offset = min(readings)[1]
        self.loop.call_later(1.0, self._refresh)

    def listen(self, host: str, port: int) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(4096)
        listener.setblocking(False)
        self.loop.add_reader(listener.fileno(), self._accept, listener)
        print(f"listening on {host}:{listener.getsockname()[1]}", flush=True)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(64):
            try:
                sock, _address = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.ECONNABORTED, errno.EMFILE):
                    print(f"accept: {error}", file=sys.stderr, flush=True)
                    return
                raise
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if sys.platform == "linux":
                sock.setsockopt(socket.SOL_SOCKET, STAMP_OPTION, 1)
            Connection(sock, self)

    def answer(self, connection: Connection, url: bytes, body: bytes, request_id: bytes, arrival: int) -> None:
        path = url.partition(b"?")[0]
        api = APIS.get(path)
        if api is not None:
            self.engine.submit(connection, api, json.loads(body), request_id, arrival)
        elif path in (b"/health", b"/ping"):
            connection.write(_plain(200, ""))
        elif path == b"/metrics":
            connection.write(_plain(200, self.engine.metrics()))
        elif path == b"/v1/models":
            models = [{"id": self.engine.model, "object": "model", "owned_by": "simulated"}]
            connection.write(_plain(200, {"object": "list", "data": models}))
        elif path == b"/version":
            connection.write(_plain(200, {"version": "simulated"}))
        else:
            connection.write(
                _plain(404, {"error": {"message": f"no such path: {path.decode('latin-1')}", "code": 404}})
            )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: a free one, printed")
    parser.add_argument("--model", default="simulated")
    parser.add_argument("--config", default="{}", help="JSON, see Config")
    options = parser.parse_args(arguments)
    config = Config.parse(options.config)
    time.sleep(config.startup_seconds)
    if config.die_at_launch == "out_of_memory":
        sys.exit("torch.OutOfMemoryError: CUDA out of memory (simulated): the weights do not fit")
    if config.die_at_launch:
        sys.exit("RuntimeError: simulated failure at launch")
    loop = uvloop.new_event_loop()
    engine = Engine(config, options.model, loop)
    Server(engine, loop).listen(options.host, options.port)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, loop.stop)
    with contextlib.closing(engine):
        loop.run_forever()


if __name__ == "__main__":
    main()
