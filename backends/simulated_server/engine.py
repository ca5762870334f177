"""The simulated engine: it admits sequences, decides when each token is due, and applies faults."""

import asyncio
import heapq
import math
import os
import random
import sys
import time
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from backends.simulated_server.answers import STREAM_HEAD, Dialect, busy, chunk, plain_answer
from backends.simulated_server.config import Config
from backends.simulated_server.connection import ClientConnection
from backends.simulated_server.prefix_cache import PrefixCache
from backends.simulated_server.truth import Truth, log_line
from backends.simulated_server.typed_answers import TYPED_ANSWERS


@dataclass(slots=True, eq=False)
class SimulatedCall:
    """One HTTP call with its connection, sequences and fault, if any."""

    connection: ClientConnection
    dialect: Dialect
    request_id: bytes
    arrival: int  # in ns
    fault: str | None
    unfinished: int  # number of sequences
    sequences: "list[EngineSequence]" = field(default_factory=list)
    started: bool = False
    open: bool = True  # False: it was answered, it failed, or its client has disconnected

    def opening(self) -> bytes:
        """Return the HTTP head and the events before the first token; empty after the first call."""
        if self.started:
            return b""
        self.started = True
        return STREAM_HEAD + chunk(self.dialect.opening())


@dataclass(slots=True, eq=False)
class EngineSequence:
    call: SimulatedCall
    index: int
    input_tokens: int
    max_tokens: int
    cached_tokens: int | None = None  # of the input; None: there is no prefix cache
    made: int = 0
    due: float = 0.0  # when the next token event is due, in seconds
    gaps: Iterator[float] | None = None  # None: constant
    template: bytes | None = None  # a framed token event, if all are equal
    writes: list[int] = field(default_factory=list)  # ns
    running: bool = False


class SimulatedEngine:
    """Writes every token when it is due."""

    def __init__(self, config: Config, model: str, loop: asyncio.AbstractEventLoop) -> None:
        self.config, self.model, self.loop = config, model, loop
        self.rng = random.Random(config.seed)
        self.log = open(config.log, "w", buffering=1 << 20) if config.log else None  # noqa: SIM115 - while it lives
        self.waiting: deque[EngineSequence] = deque()
        self.running = 0
        self.context_tokens = 0  # total context of the running sequences
        self.generated = self.prompted = 0
        block = config.prefix_block
        self.prefixes = PrefixCache(block, config.kv_cache_tokens) if block else None
        self._due: list[tuple[float, int, EngineSequence]] = []
        self._pushed = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._plain_gaps = config.itl.kind == "constant" and not config.itl_per_sequence
        self._draws = config.faults.total > 0

    # -- admission

    def submit(
        self, connection: ClientConnection, api: str, body: dict[str, Any], request_id: bytes, arrival: int
    ) -> None:
        """Accept a request for tokens and answer it at the configured times."""
        if self.config.always_500:
            connection.write(plain_answer(500, {"error": {"message": "simulated failure", "code": 500}}))
            return
        rng = self.rng  # shared if no random number is drawn, since a generator per request would double its cost
        if self._draws or "lognormal" in (self.config.ttft.kind, self.config.itl.kind):
            rng = random.Random(zlib.crc32(request_id) ^ self.config.seed)
        fault = self.config.faults.draw(rng) if self._draws else None
        if fault in ("status_503", "status_429"):
            connection.write(busy(int(fault[-3:])))
            return
        prompts, max_tokens = _prompts(api, body)
        max_queue = math.inf if self.config.max_queue is None else self.config.max_queue
        if len(self.waiting) + len(prompts) > max_queue + self._room():
            connection.write(busy(503))
            return
        options = body.get("stream_options") or {}
        running_usage = bool(options.get("continuous_usage_stats"))
        name = request_id.decode("latin-1")
        speak = TYPED_ANSWERS.get(api, Dialect)
        dialect = speak(api, self.model, name, int(time.time()), bool(options.get("include_usage")), running_usage)
        call = SimulatedCall(connection, dialect, request_id, arrival, fault, len(prompts))
        connection.on_close = partial(self.drop, call)
        if fault == "hang":
            return
        for index, prompt in enumerate(prompts):
            cached = self.prefixes.look_up(prompt) if self.prefixes else None
            sequence = EngineSequence(call, index, len(prompt), max_tokens, cached)
            call.sequences.append(sequence)
            self.waiting.append(sequence)
            if not self._plain_gaps:
                sequence.gaps = self.config.itl.steps(rng)
        first = next(self.config.ttft.steps(rng))
        if dialect.api in ("chat", *TYPED_ANSWERS):
            connection.write(call.opening())
        self._admit(arrival / 1e9 + first)

    def _room(self) -> float:
        return (self.config.max_concurrency or math.inf) - self.running

    def _admit(self, first_due: float | None = None) -> None:
        """Start waiting sequences while there is room. `first_due` is for a request that has just arrived."""
        while self.waiting and self._room() > 0:
            sequence = self.waiting.popleft()
            if not sequence.call.open:
                continue
            if first_due is None:
                first_due = time.monotonic() + self.config.ttft.mean
            self.running += 1
            sequence.running = True
            self.prompted += sequence.input_tokens
            self.context_tokens += sequence.input_tokens
            uncached = sequence.input_tokens - (sequence.cached_tokens or 0)
            sequence.due = first_due + self.config.ttft_per_input_token * uncached
            self._push(sequence)
        if self.config.memory_limit is not None and self.running > self.config.memory_limit:
            self._run_out_of_memory()

    def _run_out_of_memory(self) -> None:
        message = f"CUDA out of memory (simulated): {self.running} sequences, the limit is {self.config.memory_limit}"
        print(f"torch.OutOfMemoryError: {message}", file=sys.stderr, flush=True)
        for _, _, sequence in self._due:
            call = sequence.call
            call.connection.write(call.opening() + chunk(call.dialect.error(message)) + b"0\r\n\r\n")
        self.close()
        os._exit(1)

    def drop(self, call: SimulatedCall) -> None:
        """Remove the sequences of a disconnected client."""
        call.open = False
        for sequence in call.sequences:
            if sequence.running:
                self._leave(sequence)
        self._admit()

    def _leave(self, sequence: EngineSequence) -> None:
        sequence.running = False
        self.running -= 1
        self.context_tokens -= sequence.input_tokens + sequence.made

    # -- generation

    def _push(self, sequence: EngineSequence) -> None:
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
        """Write every token that is due, then sleep until the next token is due."""
        due, now = self._due, time.monotonic() + 0.0002  # since the loop's timer only resolves milliseconds
        self._timer, self._timer_at = None, -math.inf  # no timer is set during this step
        budget = 2000  # maximum tokens before the sockets are served again
        while due and due[0][0] <= now and budget:
            budget -= 1
            sequence = heapq.heappop(due)[2]
            if sequence.running:
                self._emit(sequence)
        self._timer_at = math.inf
        if due:
            self._arm(due[0][0])

    def _emit(self, sequence: EngineSequence) -> None:
        call = sequence.call
        if call.fault and sequence.made >= sequence.max_tokens // 2:
            self._fail(sequence)
            return
        data = b""
        for _ in range(self.config.events_per_write):
            count = min(self.config.tokens_per_event, sequence.max_tokens - sequence.made)
            sequence.made += count
            self.context_tokens += count
            self.generated += count
            data += self._event(sequence, count)
            gap = None if sequence.gaps is None else next(sequence.gaps) + self.config.itl_per_sequence * self.running
            sequence.due += self.config.itl.mean if gap is None else gap
            if sequence.made >= sequence.max_tokens:
                break
        if not call.started:
            data = call.opening() + data
        finished = sequence.made >= sequence.max_tokens
        if finished:
            self._leave(sequence)
            call.unfinished -= 1
            if not call.unfinished:
                data += chunk(call.dialect.closing(call.sequences)) + b"0\r\n\r\n"
                call.open = False
        if self.log:
            sequence.writes.append(time.monotonic_ns())
        call.connection.write(data)
        if finished:
            if self.log:
                self.log.write(log_line(call.request_id, sequence.index, Truth(call.arrival, sequence.writes)))
            self._admit()
        else:
            self._push(sequence)

    def _event(self, sequence: EngineSequence, count: int) -> bytes:
        """Return a framed token event. Most events are identical, so they are built once."""
        dialect = sequence.call.dialect
        alike = count == self.config.tokens_per_event and sequence.made < sequence.max_tokens
        if not alike or dialect.running_usage or dialect.api in ("tgi", "responses"):
            return chunk(dialect.token(sequence, count))
        if sequence.template is None:
            sequence.template = chunk(dialect.token(sequence, count))
        return sequence.template

    def _fail(self, sequence: EngineSequence) -> None:
        """Apply the call's fault, since half of its answer has been sent."""
        call, connection = sequence.call, sequence.call.connection
        fault, call.fault = call.fault, None
        for other in call.sequences:
            if other.running:
                self._leave(other)
        if fault == "error_event":
            data = call.opening() + chunk(call.dialect.error("simulated failure")) + b"0\r\n\r\n"
            call.open = False
            connection.write(data)
        elif fault == "reset":
            connection.reset()
        elif fault == "early_close":
            connection.close()
        elif fault == "trickle":
            connection.trickle(call.opening() + b"1000\r\ndata: {")
        self._admit()

    # -- metrics

    def metrics(self) -> str:
        usage = min(1.0, self.context_tokens / self.config.kv_cache_tokens)
        readings = {
            "vllm:kv_cache_usage_perc": ("gauge", usage),
            "vllm:num_requests_running": ("gauge", self.running),
            "vllm:num_requests_waiting": ("gauge", len(self.waiting)),
            "vllm:num_preemptions_total": ("counter", 0),  # always 0, since the engine never preempts
            "vllm:prompt_tokens_total": ("counter", self.prompted),
            "vllm:generation_tokens_total": ("counter", self.generated),
        }
        if self.prefixes:
            readings["vllm:prefix_cache_queries_total"] = ("counter", self.prefixes.queries)
            readings["vllm:prefix_cache_hits_total"] = ("counter", self.prefixes.hits)
        lines = []
        for metric, (type_, reading) in readings.items():
            lines += [f"# TYPE {metric} {type_}", f'{metric}{{model_name="{self.model}"}} {reading}']
        return "\n".join(lines) + "\n"

    def close(self) -> None:
        if self.log:
            self.log.close()


def _prompts(api: str, body: dict[str, Any]) -> tuple[list[Sequence[object]], int]:
    """Return each prompt's input tokens (words, if it is text) and the number of output tokens."""
    if api == "tgi":
        return [body["inputs"].split()], int((body.get("parameters") or {}).get("max_new_tokens") or 16)
    limits = ("max_tokens", "max_completion_tokens", "max_output_tokens")
    max_tokens = next((int(body[limit]) for limit in limits if body.get(limit)), 16)
    if api in ("chat", "messages", "responses"):
        messages = body["input"] if api == "responses" else body["messages"]
        texts = [messages] if isinstance(messages, str) else [str(message.get("content")) for message in messages]
        return [[word for text in (str(body.get("system") or ""), *texts) for word in text.split()]], max_tokens
    prompt = body["prompt"]
    several = isinstance(prompt, list) and prompt and not isinstance(prompt[0], int)
    prompts = prompt if several else [prompt]
    return [entry.split() if isinstance(entry, str) else entry for entry in prompts], max_tokens
