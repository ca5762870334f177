"""The data of a trial: Request, Record, and its outcome; and how an endpoint is reached: path, key, TLS and proxy.

Records hold only raw values: `sweep.numbers.quantities` derives each latency, in one place, with its formula. The
measuring client imports this file, so it needs only the standard library and costs little start-up time and memory.
"""

from __future__ import annotations  # array[int] cannot be evaluated before Python 3.12

import base64
import ipaddress
import math
import re
import socket
import ssl
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Literal, NamedTuple
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    import asyncio

PROTOCOL_VERSION = 6
"""Part of every trial id: increase it when a change to the measuring makes old results incomparable."""

Phase = Literal["warmup", "measured"]
Api = Literal["completions", "chat", "responses", "messages", "tgi"]
TYPED_APIS = ("responses", "messages")  # these APIs accept only text, and have neither ignore_eos nor per-chunk usage
API_VERSION = re.compile(r"/v\d+[a-z]*\d*$")  # at the end of a base URL: /v1, /api/v4, /v1beta1
ProxyUse = Literal["none", "environment"]
BatchForm = Literal["list", "streams"]
TokenSource = Literal["ids", "running usage", "final usage", "text", "events"]
UNKNOWN = -1  # a count that was not reported
PROXY_VARIABLES = tuple(f"{name}_proxy" for name in ("http", "https", "all", "no"))
PROXY_VARIABLES += tuple(map(str.upper, PROXY_VARIABLES))
LOOPBACK_NAMES = ("localhost", "localhost.localdomain", "localhost6", "ip6-localhost", "ip6-loopback")
HTTP2_ONLY = "the server supports only HTTP/2: put a proxy in front of it that speaks HTTP/1.1"
CLIENT_CERTIFICATE = "it requires a client's certificate: put a proxy in front of it that has one"
TLS_REMEDIES = {  # words in an error, and what to do
    "CERTIFICATE_VERIFY_FAILED": "set SSL_CERT_FILE to its CA certificate, or set backend.verify_tls=false",
    "NO_APPLICATION_PROTOCOL": HTTP2_ONLY,
    "CERTIFICATE_REQUIRED": CLIENT_CERTIFICATE,
    "ALERT_BAD_CERTIFICATE": CLIENT_CERTIFICATE,
    "ALERT_HANDSHAKE_FAILURE": f"its TLS version or ciphers are not this machine's, or {CLIENT_CERTIFICATE}",
    "handshake operation timed out": "it answers no TLS: check whether it uses an http:// address",
    "WRONG_VERSION_NUMBER": "it does not expect TLS: use an http:// address",
    "illegal request line": f"{HTTP2_ONLY}; or it expects TLS: use an https:// address",  # httpx's, if not HTTP/1.1
}
LARGEST_HEAD = 64 << 10  # maximum bytes of the headers, and of the trailers, of a request or an answer
LARGEST_PROXY_ANSWER = 16 << 10  # bytes of the head in which a proxy confirms a tunnel
LONGEST_TIMEOUT = 4200  # s: chunk stamps are uint32 µs, which end at 4,294 s
MOST_TOKENS = 0xFFFF  # in one chunk, as counts are stored as uint16
LOAD_COLUMNS = ("batch_size", "concurrency", "rate")
"""The columns of a trials row that hold the size of its load; at most one is not null."""


class TrialProgress(NamedTuple):
    """The progress of a running trial's requests."""

    sent: int
    done: int  # requests that have ended, including failed requests
    failed: int
    in_flight: int
    tokens: int  # tokens received so far, for all requests
    total: int  # requests to be sent
    seconds: float  # s since the first request was due

    @property
    def share(self) -> float:
        """The fraction of the requests that have ended, 0..1."""
        return self.done / self.total if self.total else 0.0


class Outcome(StrEnum):
    """The result of a trial in one word."""

    OK = "ok"
    OOM_LOAD = "oom_load"
    OOM_RUN = "oom_run"
    LAUNCH_FAILED = "launch_failed"
    LAUNCH_TIMEOUT = "launch_timeout"
    ENGINE_CRASHED = "engine_crashed"
    HUNG = "hung"
    CLIENT_LIMITED = "client_limited"
    DISTURBED = "disturbed"
    INVALID = "invalid"
    UNAVAILABLE = "unavailable"
    CENSORED = "censored"
    CANCELLED = "cancelled"
    DROPPED = "dropped"


UNMEASURED = (Outcome.UNAVAILABLE, Outcome.CENSORED, Outcome.CANCELLED, Outcome.DROPPED)
"""Outcomes of trials that did not run."""


class Fault(StrEnum):
    """The origin of a failure."""

    ENGINE = "engine"  # the engine itself failed: a retry would fail again
    SURROUNDINGS = "surroundings"  # a signal, a network, a hub, a disk, the measuring client or another process


class Message(NamedTuple):
    """One message of a conversation."""

    role: str  # system, user, assistant or tool
    content: str
    calls: str = ""  # of an assistant: its calls of tools, as a JSON list of {id, name, arguments}
    answers: str = ""  # of a tool: the id of the call that it answers

    @property
    def text(self) -> str:
        """The message as text, with its calls."""
        return "\n\n".join(part for part in (self.content, self.calls) if part)


LIVE = "\ufdd0"


def live_answer(number: int) -> str:
    """Return what stands in a prompt for the answer to the phase's request with this number, until it has come.

    LIVE is a character that no text contains.
    """
    return f"{LIVE}{number}{LIVE}"


Prompt = str | tuple[int, ...] | tuple[Message, ...]
"""Text, token ids, or the messages of a conversation."""


def prompt_text(prompt: Prompt) -> str | None:
    """Return a prompt as one text, with a conversation's messages joined; None for token ids."""
    if isinstance(prompt, str):
        return prompt
    if not prompt or not isinstance(prompt[0], Message):
        return None
    return "\n\n".join(part.text for part in prompt if isinstance(part, Message))


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt and the requested number of tokens: a turn of a session, or a session of one turn."""

    request_id: str  # sent as x-request-id
    prompt: Prompt
    output_tokens: int  # max_tokens
    input_tokens: int = UNKNOWN  # counted by the model's tokenizer, including special tokens
    phase: Phase = "measured"
    model: str | None = None  # e.g. a LoRA adapter; None: the trial's model
    parent: int = UNKNOWN  # index in the phase of the turn before it; UNKNOWN: it begins a session
    gap: float = 0.0  # s from the last byte of that turn's answer, until it is due
    truncated: bool = False  # whether the oldest part of its history was left out, to fit the model's context
    tools: str = ""  # definitions of the tools it offers, as a JSON list of {name, description, parameters}


class SessionPlaces(NamedTuple):
    """The place of each request of a phase: its session's number, and how many turns precede it in its branch."""

    session: array[int]
    turn: array[int]
    turns: array[int]  # of each session

    @staticmethod
    def of(requests: Sequence[Request]) -> SessionPlaces:
        """Return each request's place in its session. Raises ValueError if a request precedes its parent turn."""
        session, turn, turns = array("i"), array("i"), array("i")
        for index, request in enumerate(requests):
            if request.parent >= index:
                raise ValueError(f"request {request.request_id}: follows request {request.parent}, which comes later")
            if request.parent == UNKNOWN:
                turns.append(0)
            session.append(len(turns) - 1 if request.parent == UNKNOWN else session[request.parent])
            turn.append(0 if request.parent == UNKNOWN else turn[request.parent] + 1)
            turns[session[index]] += 1
        return SessionPlaces(session, turn, turns)


def most_at_once(requests: Sequence[Request]) -> int:
    """Return the most turns that any session can have in flight: the turns that no other turn follows."""
    parents = {request.parent for request in requests}
    if parents <= {UNKNOWN}:
        return 1
    sessions = SessionPlaces.of(requests).session
    return max(Counter(session for index, session in enumerate(sessions) if index not in parents).values())


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Limits on one request, in seconds. A breach is noticed at most 0.6 s late."""

    __pydantic_config__ = {"extra": "forbid"}  # part of the settings, so strict like them # noqa: RUF012

    connect: float = 10.0
    first_token: float = 3600.0  # since the send
    between_tokens: float = 120.0
    total: float = 3600.0  # since the send

    def __post_init__(self) -> None:
        for field_ in fields(self):
            value = getattr(self, field_.name)
            if not 0 < value <= LONGEST_TIMEOUT:
                raise ValueError(f"{field_.name}={value}: expected 0 < s <= {LONGEST_TIMEOUT}")


@dataclass(slots=True)
class Record:
    """The raw stamps and counts of one request, as the client saw them. Stamps are seconds from the start of the load.

    Each field becomes a column of `Records` and of requests.parquet: its type sets the column's type, and its comment
    is the description in docs/columns.md. UNKNOWN counts, NaN and None are null in the file.
    """

    request_id: str  # id of the request, which the engine's log may show
    phase: Phase  # warmup or measured
    scheduled: float | None  # when it was due; null if the load has no schedule (closed loop, lockstep)
    released: float  # when a slot was free for it; without a schedule, when its user or batch could send it
    sent: float  # when its first byte was written to the socket; null, like `released`, if it was never sent
    chunk_us: array[int] = field(default_factory=lambda: array("I"))  # list: arrival of each chunk, since `sent`
    chunk_tokens: array[int] = field(default_factory=lambda: array("H"))  # list: number of tokens in each chunk
    input_tokens: int = UNKNOWN  # tokens of the prompt, as counted by `token_source`
    output_tokens: int = UNKNOWN  # tokens of the answer, including hidden ones, as counted by `token_source`
    batch: int = UNKNOWN  # index of its lockstep batch; null for other loads
    finish_reason: str | None = None  # reason that the engine gave for the end of the answer
    error: str | None = None  # why the request failed, as `kind: detail`; null if it succeeded
    ended: float | None = None  # when the answer was complete, or the client gave up
    token_source: TokenSource | None = None  # who counted the tokens: the server, or the client's tokenizer (`text`)
    asked_input_tokens: int = UNKNOWN  # tokens of the prompt, as the model's tokenizer counts them
    asked_output_tokens: int = UNKNOWN  # requested tokens of the answer (max_tokens)
    streamed_tokens: int = UNKNOWN  # answer tokens received in chunks; equals `output_tokens` by default
    hidden_tokens: int = 0  # tokens of the answer that were counted but never sent: reasoning
    recounted_tokens: int = UNKNOWN  # tokens of the answer, if recounted by the model's tokenizer
    first_answer: float | None = None  # when the first chunk after visible reasoning arrived, since `sent`
    cached_tokens: int = UNKNOWN  # tokens of the prompt that the engine reports as cached
    model: str | None = None  # the model requested, from workload.models; null if that is not set
    gateway_answer: bool = False  # whether the gateway answered, from its cache or from an identical request in flight
    served_model: str | None = None  # the model named in the answer; several names are joined
    characters: int = UNKNOWN  # number of characters in the answer's text
    text_hash: int = UNKNOWN  # hash of the first 256 bytes of the answer's text; null if it is shorter or repetitive
    prompt_words: int = UNKNOWN  # words of the prompt's text, or a sixth of its bytes if more; token ids if sent as ids
    connecting: float | None = None  # when its connection was started; null for a reused connection
    connected: float | None = None  # when its connection was open, including the TLS handshake
    closed: bool = False  # whether the connection was closed after the answer, by the server or as its headers required
    session: int = UNKNOWN  # number of its session in the phase; a request without history is a session of one turn
    turn: int = UNKNOWN  # number of turns before it in its session's branch
    session_turns: int = UNKNOWN  # turns that its session has, whether or not all of them were due
    parent: str | None = None  # request_id of the turn whose answer it follows; null for the first turn of a session
    gap: float | None = None  # from the last byte of that answer, until it was due
    ideal_cached_tokens: int = UNKNOWN  # tokens of a replay's prompt that an infinite prefix cache would have

    def __post_init__(self) -> None:
        if self.streamed_tokens == UNKNOWN:
            self.streamed_tokens = self.output_tokens


_CODES = {"float": "d", "float | None": "d", "int": "i", "bool": "b"}
REQUEST_COLUMNS: Mapping[str, str] = {
    field.name: _CODES.get(str(field.type), "") for field in fields(Record) if field.type != "array[int]"
}
"""The array type code of each column of Records; empty for text columns, which are lists."""
_OPTIONAL = [field.name for field in fields(Record) if field.type == "float | None"]


class Records:
    """The Records of one trial as columns: about 6 bytes per chunk and 100 per request, so a million fit in memory.

    Chunk i of request r is at index `offsets[r] + i` of `chunk_us` and `chunk_tokens`; `offsets` has one more entry
    than there are requests. An unknown stamp is NaN.
    """

    request_id: list[str]
    phase: list[Phase]
    batch: array[int]
    scheduled: array[float]
    released: array[float]
    sent: array[float]
    ended: array[float]
    input_tokens: array[int]
    output_tokens: array[int]
    finish_reason: list[str | None]
    error: list[str | None]
    token_source: list[TokenSource | None]
    asked_input_tokens: array[int]
    asked_output_tokens: array[int]
    streamed_tokens: array[int]
    hidden_tokens: array[int]
    recounted_tokens: array[int]
    first_answer: array[float]
    cached_tokens: array[int]
    model: list[str | None]
    gateway_answer: array[int]
    served_model: list[str | None]
    characters: array[int]
    text_hash: array[int]
    prompt_words: array[int]
    connecting: array[float]
    connected: array[float]
    closed: array[int]
    session: array[int]
    turn: array[int]
    session_turns: array[int]
    parent: list[str | None]
    gap: array[float]
    ideal_cached_tokens: array[int]

    def __init__(self) -> None:
        for column, code in REQUEST_COLUMNS.items():
            setattr(self, column, array(code) if code else [])
        self.offsets = array("q", [0])
        self.chunk_us = array("I")
        self.chunk_tokens = array("H")

    def __len__(self) -> int:
        return len(self.request_id)

    def append(self, record: Record) -> None:
        for column, code in REQUEST_COLUMNS.items():
            figure = getattr(record, column)
            getattr(self, column).append(math.nan if code == "d" and figure is None else figure)
        self.chunk_us.extend(record.chunk_us)
        self.chunk_tokens.extend(record.chunk_tokens)
        self.offsets.append(len(self.chunk_us))

    def __getitem__(self, index: int) -> Record:
        cells = {column: getattr(self, column)[index] for column in REQUEST_COLUMNS}
        cells |= {column: None for column in _OPTIONAL if math.isnan(cells[column])}
        cells |= {column: bool(cells[column]) for column, code in REQUEST_COLUMNS.items() if code == "b"}
        begin, end = self.offsets[index], self.offsets[index + 1]
        return Record(**cells, chunk_us=self.chunk_us[begin:end], chunk_tokens=self.chunk_tokens[begin:end])

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))


class Sample(NamedTuple):
    """One reading of one telemetry series."""

    time: float  # s from the trial's start
    series: str  # e.g. kv_cache_usage, requests_running, gpu_memory_bytes
    value: float
    device: str = ""  # a GPU, a core or a position in a draft; "" if the series has only one source


def request_path(url: str, path: str) -> str:
    """Return a request's path with the endpoint URL's query string; the URL's version (/v4) replaces `path`'s /v1."""
    parts = urlsplit(url)
    base = parts.path.rstrip("/")
    path = path.removeprefix("/v1") if API_VERSION.search(base) else path
    return base.removesuffix(path) + path + (f"?{parts.query}" if parts.query else "")


def key_header(api: str, header: str | None, scheme: str | None, key: str) -> tuple[str, str]:
    """Return the header for a key, by default the api's; the default scheme is Bearer, but only for Authorization.

    Raises ValueError for a key that no header can contain, e.g. one with a line break.
    """
    if not key.isprintable() or not key.isascii():
        raise ValueError("the endpoint's key cannot be sent in a header: expected printable ASCII")
    header = header or ("x-api-key" if api == "messages" else "Authorization")
    if scheme is None:
        scheme = "Bearer" if header.lower() == "authorization" else ""
    return header, f"{scheme} {key}".strip()


def tls_context(verify: bool) -> ssl.SSLContext:
    """Return a TLS context that trusts the certificates in SSL_CERT_FILE, if set, else the system's."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    if not verify:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def tls_remedy(error: object) -> str:
    """Return "; " and a remedy for an error of TLS or of an HTTP/2 server; "" for any other error."""
    return next((f"; {remedy}" for words, remedy in TLS_REMEDIES.items() if words in str(error)), "")


class TunnelRefused(ConnectionError):
    """A proxy answered a request for a tunnel with a status 4xx, e.g. because of a wrong password."""


class Proxy(NamedTuple):
    """An HTTP proxy, and the header line with its key; empty if it needs no key."""

    url: str
    address: tuple[str, int]
    authorization: str

    def __str__(self) -> str:
        host, port = self.address
        return f"{host}:{port}"

    def __repr__(self) -> str:
        return str(self)  # without the key

    def connect_request(self, host: str, port: int) -> bytes:
        server = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        return f"CONNECT {server} HTTP/1.1\r\nHost: {server}\r\n{self.authorization}\r\n".encode("ascii")


def proxy_of(url: str, use: ProxyUse) -> Proxy | None:
    """Return the environment's proxy for an endpoint; None for loopback, for hosts in NO_PROXY, or if `use` is none.

    Raises ValueError if the address does not name an HTTP proxy.
    """
    endpoint = urlsplit(url)
    if use == "none" or is_loopback(endpoint.hostname or ""):
        return None
    from urllib.request import getproxies_environment, proxy_bypass  # takes 20 ms to import

    proxies = getproxies_environment()
    address = proxies.get(endpoint.scheme) or proxies.get("all")
    if not address or proxy_bypass(endpoint.netloc) or _is_exception(endpoint.hostname or "", proxies.get("no", "")):
        return None
    problem = ValueError(f"the environment's proxy for {endpoint.scheme}:// addresses: expected http://HOST:PORT")
    try:
        parts = urlsplit(address if "://" in address else f"http://{address}")
        port = parts.port or 80
    except ValueError:  # its message may contain a part of the password
        raise problem from None
    if parts.scheme != "http" or not parts.hostname:
        raise problem
    key = f"{unquote(parts.username)}:{unquote(parts.password or '')}" if parts.username else ""
    basic = f"Proxy-Authorization: Basic {base64.b64encode(key.encode()).decode()}\r\n" if key else ""
    return Proxy(parts.geturl(), (parts.hostname, port), basic)


def _is_exception(host: str, exceptions: str) -> bool:
    """Return whether NO_PROXY lists a host in a form that urllib does not read: 10.0.0.0/8, an IPv6 address, *.test."""
    for exception in exceptions.split(","):
        suffix = exception.strip().lower().removeprefix("*")
        with suppress(ValueError):
            if ipaddress.ip_address(host) in ipaddress.ip_network(suffix, strict=False):
                return True
        if suffix.startswith(".") and host.endswith(suffix):
            return True
    return False


def is_loopback(host: str) -> bool:
    """Return whether a host name refers to this machine itself."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        name = host.lower().rstrip(".")
        if name in LOOPBACK_NAMES or name.endswith(".localhost"):
            return True
        try:
            address = ipaddress.ip_address(socket.inet_aton(name))  # 127.1, or one number
        except OSError:
            return False
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified


async def open_tunnel(loop: asyncio.AbstractEventLoop, sock: socket.socket, request: bytes) -> None:
    """Ask the proxy at the other end of a socket for a tunnel.

    Raises TunnelRefused for a status 4xx, and ConnectionError for any other failure.
    """
    answer = b""
    await loop.sock_sendall(sock, request)
    while b"\r\n\r\n" not in answer:
        data = await loop.sock_recv(sock, LARGEST_PROXY_ANSWER)
        if not data or len(answer) > LARGEST_PROXY_ANSWER:
            raise ConnectionError("the proxy opened no tunnel")
        answer += data
    status = answer.partition(b"\r\n")[0].decode("latin-1")
    if refused := re.match(r"HTTP/1\.\d (4\d\d)\b", status):
        raise TunnelRefused(f"status: {refused[1]} from the proxy, which opened no tunnel")
    if not re.match(r"HTTP/1\.\d 2\d\d\b", status):
        raise ConnectionError(f"the proxy opened no tunnel: {status[:100]!r}")


def is_http2(data: bytes) -> bool:
    """Return whether a response begins with an HTTP/2 SETTINGS or GOAWAY frame."""
    return data[3:4] in (b"\x04", b"\x07") and data[5:9] == bytes(4)
