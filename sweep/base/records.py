"""The data of a trial: Request, Record, and its outcome.

Raw values only: a latency is derived from them in `metrics`, once, with its formula. The measuring client imports this
file, so it needs nothing but the standard library and costs neither start-up time nor memory.
"""

from __future__ import annotations  # array[int] cannot be written at run time before Python 3.12

import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Literal, NamedTuple

PROTOCOL_VERSION = 5
"""Part of every trial id: raise it when a change to the measuring makes old results incomparable."""

Phase = Literal["warmup", "measured"]
Api = Literal["completions", "chat", "tgi"]
BatchForm = Literal["list", "streams"]
TokenSource = Literal["ids", "running usage", "final usage", "text", "events"]
UNKNOWN = -1  # a count that was not reported
LONGEST_TIMEOUT = 4200  # s: chunk stamps are uint32 µs, which end at 4,294 s
MOST_TOKENS = 0xFFFF  # in one chunk: they are kept as uint16
LOAD_COLUMNS = ("batch_size", "concurrency", "rate")
"""The columns of a trials row that say how large its load was: at most one has a value."""


class TrialProgress(NamedTuple):
    """The requests of a trial that runs, so far."""

    sent: int
    done: int  # ended, failed ones included
    failed: int
    in_flight: int
    tokens: int  # that have come, of all
    total: int  # requests to be sent
    seconds: float  # since the first was due

    @property
    def share(self) -> float:
        """The part of the requests that have ended, 0..1."""
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


UNMEASURED = (Outcome.UNAVAILABLE, Outcome.CENSORED, Outcome.CANCELLED)
"""Outcomes of trials that did not run."""


class Fault(StrEnum):
    """The origin of a failure."""

    ENGINE = "engine"  # its own answer, which it would give again
    SURROUNDINGS = "surroundings"  # a signal, a network, a hub, a disk, the measuring client or another process


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt and the tokens wanted."""

    request_id: str  # goes out as x-request-id
    prompt: str | tuple[int, ...]  # text, or token ids
    output_tokens: int  # max_tokens
    input_tokens: int = UNKNOWN  # as the model's own tokenizer counts them, special tokens included
    phase: Phase = "measured"


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Limits on one request in s; noticed up to 0.1 s later, and a tenth of the shortest of them or half a second."""

    __pydantic_config__ = {"extra": "forbid"}  # for the settings, of which it is a part  # noqa: RUF012

    connect: float = 10.0
    first_token: float = 3600.0  # from the send
    between_tokens: float = 120.0
    total: float = 3600.0  # from the send

    def __post_init__(self) -> None:
        for field_ in fields(self):
            value = getattr(self, field_.name)
            if not 0 < value <= LONGEST_TIMEOUT:
                raise ValueError(f"{field_.name}={value}: allowed are 0 < s <= {LONGEST_TIMEOUT}")


@dataclass(slots=True)
class Record:
    """The raw timestamps and counts of one request, as the client saw them. Times in s from the trial's start."""

    request_id: str
    phase: Phase
    scheduled: float | None  # when the load said to send it; None where it has no schedule (closed loop, lockstep)
    released: float  # when a slot was free for it; without a schedule, when its user or batch could send it
    sent: float  # when its first byte was written to the socket; NaN, as released, if it was due and never sent
    chunk_us: array[int] = field(default_factory=lambda: array("I"))  # arrival of each chunk, µs since the send
    chunk_tokens: array[int] = field(default_factory=lambda: array("H"))  # tokens in each chunk: a chunk is not a token
    input_tokens: int = UNKNOWN
    output_tokens: int = UNKNOWN  # as `token_source` says; hidden reasoning included
    batch: int = UNKNOWN  # index of the lockstep batch
    finish_reason: str | None = None
    error: str | None = None  # "kind: detail"; kinds are listed in sweep/client/wire.py
    ended: float | None = None  # when its answer was over, or it was given up; None where that is unknown
    token_source: TokenSource | None = None  # who counted output_tokens: the server, or our tokenizer ("text")
    asked_input_tokens: int = UNKNOWN  # of the prompt, as the model's own tokenizer counts them
    asked_output_tokens: int = UNKNOWN  # max_tokens
    streamed_tokens: int = UNKNOWN  # of the output_tokens, those that came in the chunks; by itself all of them
    hidden_tokens: int = 0  # reasoning that the server says it made and did not send
    recounted_tokens: int = UNKNOWN  # of the answer's text, by the model's own tokenizer
    first_answer: float | None = None  # after visible reasoning: arrival of the first token of the answer, s
    cached_tokens: int = UNKNOWN  # of the input, those that the server's usage says it had in its prompt cache
    gateway_answer: bool = False  # the gateway gave the answer, from its cache or from an equal request under way

    def __post_init__(self) -> None:
        if self.streamed_tokens == UNKNOWN:
            self.streamed_tokens = self.output_tokens


class Records:
    """The Records of one trial as columns: about 6 bytes a chunk and 100 a request, so that a million fit in memory.

    Chunk i of request r is at index `offsets[r] + i` of `chunk_us` and `chunk_tokens`; `offsets` has one entry more
    than there are requests.
    """

    def __init__(self) -> None:
        self.request_id: list[str] = []
        self.phase: list[Phase] = []
        self.batch = array("i")
        self.scheduled = array("d")  # NaN where there is no schedule
        self.released = array("d")
        self.sent = array("d")
        self.ended = array("d")  # NaN where it is not known
        self.input_tokens = array("i")
        self.output_tokens = array("i")
        self.finish_reason: list[str | None] = []
        self.error: list[str | None] = []
        self.token_source: list[TokenSource | None] = []
        self.asked_input_tokens = array("i")
        self.asked_output_tokens = array("i")
        self.streamed_tokens = array("i")
        self.hidden_tokens = array("i")
        self.recounted_tokens = array("i")
        self.first_answer = array("d")  # NaN where there was no reasoning, or no answer after it
        self.cached_tokens = array("i")
        self.gateway_answer = array("b")  # 1 or 0
        self.offsets = array("q", [0])
        self.chunk_us = array("I")
        self.chunk_tokens = array("H")

    def __len__(self) -> int:
        return len(self.request_id)

    def append(self, record: Record) -> None:
        self.request_id.append(record.request_id)
        self.phase.append(record.phase)
        self.batch.append(record.batch)
        self.scheduled.append(math.nan if record.scheduled is None else record.scheduled)
        self.released.append(record.released)
        self.sent.append(record.sent)
        self.ended.append(math.nan if record.ended is None else record.ended)
        self.input_tokens.append(record.input_tokens)
        self.output_tokens.append(record.output_tokens)
        self.finish_reason.append(record.finish_reason)
        self.error.append(record.error)
        self.token_source.append(record.token_source)
        self.asked_input_tokens.append(record.asked_input_tokens)
        self.asked_output_tokens.append(record.asked_output_tokens)
        self.streamed_tokens.append(record.streamed_tokens)
        self.hidden_tokens.append(record.hidden_tokens)
        self.recounted_tokens.append(record.recounted_tokens)
        self.first_answer.append(math.nan if record.first_answer is None else record.first_answer)
        self.cached_tokens.append(record.cached_tokens)
        self.gateway_answer.append(record.gateway_answer)
        self.chunk_us.extend(record.chunk_us)
        self.chunk_tokens.extend(record.chunk_tokens)
        self.offsets.append(len(self.chunk_us))

    def __getitem__(self, index: int) -> Record:
        begin, end = self.offsets[index], self.offsets[index + 1]
        return Record(
            self.request_id[index],
            self.phase[index],
            _or_none(self.scheduled[index]),
            self.released[index],
            self.sent[index],
            self.chunk_us[begin:end],
            self.chunk_tokens[begin:end],
            self.input_tokens[index],
            self.output_tokens[index],
            self.batch[index],
            self.finish_reason[index],
            self.error[index],
            _or_none(self.ended[index]),
            self.token_source[index],
            self.asked_input_tokens[index],
            self.asked_output_tokens[index],
            self.streamed_tokens[index],
            self.hidden_tokens[index],
            self.recounted_tokens[index],
            _or_none(self.first_answer[index]),
            self.cached_tokens[index],
            bool(self.gateway_answer[index]),
        )

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))


def _or_none(seconds: float) -> float | None:
    return None if math.isnan(seconds) else seconds


class Sample(NamedTuple):
    """One reading of one telemetry series."""

    time: float  # s from the trial's start
    series: str  # e.g. kv_cache_usage, requests_running, gpu_memory_bytes
    value: float
    device: str = ""  # a GPU, a core or a position in a draft; "" for the whole
