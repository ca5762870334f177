"""Sends one trial's requests to an endpoint from separate processes, which `measure` starts, watches and reads.

This is the orchestrator's side. It writes the job into a folder (the bytes of every request, built before the clock
starts), starts one or more `sweep.client.process` processes, and merges their rows into Records. `process`, `sender`,
`connection` and `wire` do the measuring.
"""

import contextlib
import json
import math
import os
import pickle
import resource
import selectors
import signal
import subprocess
import sys
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal, NamedTuple, cast

from sweep.base.config import import_path
from sweep.base.exits import Cause, Exit, Failed
from sweep.base.records import (
    LIVE,
    UNKNOWN,
    BatchForm,
    Phase,
    Prompt,
    Record,
    Records,
    Request,
    SessionPlaces,
    Timeouts,
    TokenSource,
    TrialProgress,
    most_at_once,
    prompt_text,
)
from sweep.client import wire
from sweep.client.job import NO_REASONING, ROW, Job, PackedRow
from sweep.client.modes import Mode
from sweep.client.process_count import process_count
from sweep.client.token_counts import settle
from sweep.client.wire import Target
from sweep.numbers.quantile import quantile

HEAD_START = 0.02  # s from the message "go" to the start of the clock, so that all processes receive it in time
STOP_WITHIN = 60.0  # s for the client to write its results after it was asked to stop
FILES_OF_PROCESS = 64  # files that a measuring process opens in addition to its connections
STALLED = "stall_timeout"  # the reason for stopping when no request receives a token
PROGRESS_REPORTS = 5  # progress reports per process within the stall timeout, at most one per second
TEXTS_AT_ONCE = 1000  # answers whose tokens are counted in one call


class ClientDied(Failed):
    """The measuring process ended without results: killed, out of memory, or internal error (in the message)."""


@dataclass(frozen=True, slots=True)
class ClientReport:
    """The client's statistics about itself, for the measured part of the trial."""

    processes: int
    cpu: float  # the larger of: share of a core used by the busiest process, share of all cores used by all processes
    cpu_seconds: float  # of all client processes
    loop_lag_p50: float  # delay of the event loop, in s
    loop_lag_p99: float
    offered: int  # requests that were due
    sent: int  # requests whose first byte was written to a socket
    reads: int
    multi_event_reads: int  # reads with several token events of one prompt, which share a stamp
    stamp_source: Literal["kernel", "user", "mixed", "none", "engine"]
    clock_steps: int  # wall-clock jumps above 1 ms: stamps up to a second away may be off by as much
    peak_memory_bytes: int  # memory of the largest client process
    batch_form: BatchForm  # how lockstep batches were actually sent
    stopped: str | None = None  # why the trial was stopped early
    start_spread: float | None = None  # s between the first and the last user's start; None if the load has no users


class WarmUp(NamedTuple):
    """Token counts of the warm-up's answers; only answers that the server counted and that had no hidden reasoning."""

    answers: int
    output_tokens: int
    asked_output_tokens: int


CountTokens = Callable[[list[str]], list[int]]


@dataclass(frozen=True, slots=True)
class Measurement:
    """The result of one trial: Records in the order of the requests, warm-up first."""

    records: Records
    report: ClientReport
    start_monotonic: float  # time zero of the Records, in s of CLOCK_MONOTONIC


def measure(
    target: Target,
    warmup: Sequence[Request],
    requests: Sequence[Request],
    mode: Mode,
    *,
    folder: Path,
    cpus: set[int] | None = None,
    processes: int | Literal["auto"] = 1,
    timeouts: Timeouts | None = None,
    stall_timeout: float | None = None,
    should_stop: Callable[[], str | None] = lambda: None,
    on_start: Callable[[float], None] = lambda start: None,
    on_warm: Callable[[WarmUp], None] = lambda warm_up: None,
    on_progress: Callable[[TrialProgress], None] = lambda progress: None,
    count_tokens: CountTokens | None = None,
) -> Measurement:
    """Send the warm-up and then the requests, as scheduled by the mode; return a Record of each request that was due.

    The warm-up is sent in the same way before the clock starts. Its Records have phase "warmup" and negative times.
    `on_start` is called with the start of the clock (s on CLOCK_MONOTONIC), about 20 ms in advance. `should_stop` is
    called about ten times a second: if it returns a reason, requests in flight end with the error "cancelled: <reason>"
    and no more are sent. The same happens, with the reason STALLED, if no request in flight has received a token for
    `stall_timeout` s. `on_warm` is called before the clock starts, `on_progress` with the counts so far, about once a
    second. After the run, `count_tokens` counts the tokens of texts: all answers that the server did not count, and a
    sample of the rest.

    `folder` is created for the job's files; the Records do not need it afterwards. Several `processes` take requests
    and users in turn, and share a cap on requests in flight; lockstep needs one process. Raises ValueError for requests
    that cannot be sent; ClientDied.
    """
    if target.api_key_env and target.api_key_env not in os.environ:
        raise ValueError(f"api_key_env={target.api_key_env!r}: no such environment variable is set")
    mode = mode.branching(most_at_once(requests))
    target = replace(target, batch_form=_batch_form(target, mode, warmup, requests))
    parts = process_count(processes, mode, requests, cpus)
    allow_open_files(files_needed(mode, len(requests), parts))
    keeps_texts = count_tokens is not None
    every = min(1.0, (stall_timeout or math.inf) / PROGRESS_REPORTS)
    job = Job(target, timeouts or Timeouts(), mode, parts, cpus, keeps_texts, every)
    _write_job(folder, job, warmup, requests)
    supervisor = _Supervisor(should_stop, on_start, on_warm, stall_timeout, _Counts(len(requests), on_progress))
    with _clients(folder, parts) as clients:
        finals = supervisor.until_done(clients)
    records = _read_records(
        folder, parts, [*warmup, *requests], len(warmup), supervisor.start, count_tokens, target.ignore_eos
    )
    cores = len(cpus or os.sched_getaffinity(0))
    report = _report(folder, finals, target, supervisor.stopped, cores)
    report = replace(report, start_spread=mode.after_warm_up(supervisor.request_duration).start_spread())
    return Measurement(records, report, supervisor.start / 1e9)


class TooFewFiles(ValueError):
    """The hard limit on open files is lower than the number that the load's connections need."""


def files_needed(mode: Mode, requests: int, parts: int) -> int:
    """Return how many files each of the client's processes has open at most."""
    return -(-min(mode.most_in_flight() or requests, requests) // parts) + FILES_OF_PROCESS


def check_open_files(files: int) -> None:
    """Raise TooFewFiles if the hard limit does not allow this many open files."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < files:
        raise TooFewFiles(f"{files} open files are needed, but this machine allows only {hard}; set ulimit -n {files}")


def allow_open_files(files: int) -> None:
    """Allow this many open files, here and in the client processes. Raises TooFewFiles."""
    check_open_files(files)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))


def _batch_form(target: Target, mode: Mode, warmup: Sequence[Request], requests: Sequence[Request]) -> BatchForm:
    """Return the form of calls: a list of prompts shares max_tokens and model, so mixed batches are sent as streams."""
    if target.batch_form == "streams" or mode.batch() in (None, 1):
        return "streams"
    alike = all(len({(each.output_tokens, each.model) for each in phase}) <= 1 for phase in (warmup, requests))
    return "list" if alike else "streams"


def _write_job(folder: Path, job: Job, warmup: Sequence[Request], requests: Sequence[Request]) -> None:
    """Write the client's input to two files: the bytes of the calls, and the job with an index of these bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    size = (job.mode.batch() or 1) if job.target.batch_form == "list" else 1
    if size > 1 and any(request.parent != UNKNOWN for request in requests):
        raise ValueError("a batch in one call cannot have turns that wait for each other")
    with (folder / "requests").open("wb") as file:
        for phase in (warmup, requests):
            for begin in range(0, len(phase), size):
                batch, base = phase[begin : begin + size], job.warmup_calls
                if batch[0].parent == UNKNOWN:
                    job.heads.append(len(job.prompts))
                else:
                    turn = len(job.prompts), int(batch[0].gap * 1e9)
                    job.followers.setdefault(base + batch[0].parent, []).append(turn)
                    job.live |= LIVE in (prompt_text(batch[0].prompt) or "")
                job.offsets.append(job.offsets[-1] + file.write(wire.call(job.target, batch)))
                job.prompts.append(len(batch))
                job.limits.append(max(request.output_tokens for request in batch))
            if phase is warmup:
                job.warmup_calls = len(job.prompts)
    job.target = replace(job.target, extra_body={})  # the requests' bytes contain it already
    (folder / "job").write_bytes(pickle.dumps(job))


class _Client(NamedTuple):
    process: "subprocess.Popen[bytes]"
    stdin: IO[bytes]
    stdout: IO[bytes]
    stderr: Path


@contextlib.contextmanager
def _clients(folder: Path, parts: int) -> Iterator[list[_Client]]:
    """Yield the client processes; all are killed at the end of the block."""
    environment = {**os.environ, "PYTHONPATH": import_path()}
    clients: list[_Client] = []
    try:
        for part in range(parts):
            stderr = folder / f"client.{part}.stderr"
            with stderr.open("wb") as file:
                process = subprocess.Popen(
                    [sys.executable, "-m", "sweep.client.process", str(folder), str(part)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=file,
                    env=environment,
                )
            assert process.stdin is not None
            assert process.stdout is not None
            clients.append(_Client(process, process.stdin, process.stdout, stderr))
        yield clients
    finally:
        for client in clients:
            client.process.kill()
            client.process.wait()
            client.stdout.close()
            with contextlib.suppress(BrokenPipeError):
                client.stdin.close()


class _Counts:
    """The counts of all processes together, reported about once a second."""

    def __init__(self, total: int, report: Callable[[TrialProgress], None]) -> None:
        self._total, self._report = total, report
        self._parts: dict[int, list[int]] = {}
        self._next = 0  # ns

    def take(self, part: int, counts: list[int] | None, start: int) -> None:
        """Add the counts of one process; `counts` is None during its warm-up."""
        now = time.monotonic_ns()
        if counts is None:
            return
        self._parts[part] = counts
        if now >= self._next:
            self._next = now + 1_000_000_000
            sent, done, failed, in_flight, tokens = map(sum, zip(*self._parts.values(), strict=True))
            seconds = max(0.0, (now - start) / 1e9)
            self._report(TrialProgress(sent, done, failed, in_flight, tokens, self._total, seconds))


class _Supervisor:
    """Exchanges messages with the client processes, from their start to the last report."""

    def __init__(
        self,
        should_stop: Callable[[], str | None],
        on_start: Callable[[float], None],
        on_warm: Callable[[WarmUp], None],
        stall_timeout: float | None,
        counts: "_Counts",
    ) -> None:
        self._counts = counts
        self._should_stop, self._on_start, self._on_warm = should_stop, on_start, on_warm
        self._stall_timeout = math.inf if stall_timeout is None else stall_timeout
        self._progress = time.monotonic_ns()  # the latest token, as reported by the processes
        self._warm_ups: list[WarmUp] = []
        self._durations: list[float] = []  # durations of the warm-up's requests, in s
        self.request_duration = 0.0  # the median of these durations
        self.start = time.monotonic_ns()
        self.stopped: str | None = None
        self._stop_by = float("inf")  # time.monotonic()
        self._ready: set[int] = set()
        self._finals: dict[int, dict[str, Any]] = {}

    def until_done(self, clients: list[_Client]) -> list[dict[str, Any]]:
        """Wait for all processes; return the last message of each, with its statistics, in order."""
        lines = [b""] * len(clients)
        with selectors.DefaultSelector() as selector:
            for part, client in enumerate(clients):
                selector.register(client.stdout, selectors.EVENT_READ, part)
            while len(self._finals) < len(clients):
                for key, _ in selector.select(0.1):
                    part = key.data
                    data = os.read(key.fd, 65536)
                    if not data and part not in self._finals:
                        raise _died(clients[part])
                    if not data:
                        selector.unregister(key.fileobj)
                    *complete, lines[part] = (lines[part] + data).split(b"\n")
                    for line in complete:
                        self._take(part, json.loads(line), clients)
                self._poll(clients)
        return [self._finals[part] for part in range(len(clients))]

    def _take(self, part: int, message: dict[str, Any], clients: list[_Client]) -> None:
        if message["event"] == "ready":
            self._ready.add(part)
            self._warm_ups.append(WarmUp(*message["warm_up"]))
            self._durations += message["durations"]
            if len(self._ready) == len(clients):
                self._on_warm(WarmUp(*map(sum, zip(*self._warm_ups, strict=True))))
                self.request_duration = quantile(self._durations, 0.5) if self._durations else 0.0
                self.start = time.monotonic_ns() + int(HEAD_START * 1e9)
                _send(clients, go=self.start, request_duration=self.request_duration)
                self._on_start(self.start / 1e9)
        elif message["event"] == "progress":
            self._progress = max(self._progress, message["at"])
            self._counts.take(part, message["counts"], self.start)
        else:
            self._finals[part] = message

    def _poll(self, clients: list[_Client]) -> None:
        if self.stopped is None:
            stalled = time.monotonic_ns() - self._progress > self._stall_timeout * 1e9
            self.stopped = self._should_stop() or (STALLED if stalled else None)
            if self.stopped is not None:
                _send(clients, stop=self.stopped)
                self._stop_by = time.monotonic() + STOP_WITHIN
        elif time.monotonic() > self._stop_by:
            problem = f"the measuring process did not end within {STOP_WITHIN:g} s of being asked to stop"
            raise ClientDied(problem, Exit(Cause.CLIENT))


def _send(clients: list[_Client], **message: object) -> None:
    for client in clients:
        with contextlib.suppress(BrokenPipeError):  # the process has died, which its stdout will show
            client.stdin.write(json.dumps(message).encode() + b"\n")
            client.stdin.flush()


def _died(client: _Client) -> ClientDied:
    status = client.process.wait()
    how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    lines = client.stderr.read_text("utf-8", "replace").strip().splitlines()
    problem = f"the measuring process ended without its results ({how})" + (f": {lines[-1]}" if lines else "")
    exit = Exit(Cause.CLIENT, signal=-status) if status < 0 else Exit(Cause.CLIENT, status=status)
    return ClientDied(problem, exit)


class _Part(NamedTuple):
    rows: bytes
    us: BinaryIO
    tokens: BinaryIO
    answers: BinaryIO
    texts: list[str]


class _Place(NamedTuple):
    """The position of a request's results in its process's files."""

    row: int
    chunk: int
    answer: int


def _read_records(
    folder: Path,
    parts: int,
    requests: list[Request],
    warmup: int,
    start: int,
    count_tokens: CountTokens | None,
    fixed_length: bool,
) -> Records:
    """Return the rows of all processes as Records in request order; requests that were never due have none."""
    phases = [requests[:warmup], requests[warmup:]]
    places = [SessionPlaces.of(phase) for phase in phases]
    # For each request: which process sent it (-1: none), where its row is, and its first chunk and text there. As
    # arrays, since there may be a million.
    parts_of, rows_of, chunks_of, answers_of = (array(code, [-1]) * len(requests) for code in "hqqq")
    files: list[_Part] = []
    records = Records()
    with contextlib.ExitStack() as stack:
        for index in range(parts):
            rows = (folder / f"rows.{index}").read_bytes()
            us = stack.enter_context((folder / f"chunk_us.{index}").open("rb"))
            tokens = stack.enter_context((folder / f"chunk_tokens.{index}").open("rb"))
            answers = stack.enter_context((folder / f"answers.{index}").open("rb"))
            files.append(_Part(rows, us, tokens, answers, json.loads((folder / f"texts.{index}.json").read_text())))
            chunk = answer = 0
            for offset in range(0, len(rows), ROW.size):
                row = PackedRow(*ROW.unpack_from(rows, offset))
                number = row.record
                parts_of[number], rows_of[number], chunks_of[number], answers_of[number] = index, offset, chunk, answer
                chunk += row.chunks
                answer += max(0, row.text_bytes)
        for begin in range(0, len(requests), TEXTS_AT_ONCE):
            some = [
                _record(
                    files[parts_of[number]],
                    _Place(rows_of[number], chunks_of[number], answers_of[number]),
                    requests[number],
                    _turn(phases, places, number, warmup),
                    "warmup" if number < warmup else "measured",
                    start,
                )
                for number in range(begin, min(begin + TEXTS_AT_ONCE, len(requests)))
                if parts_of[number] >= 0
            ]
            _recount(some, count_tokens)
            for record, _ in some:
                settle(record, fixed_length)
                records.append(record)
    return records


def _recount(records: list[tuple[Record, str | None]], count_tokens: CountTokens | None) -> None:
    kept_texts = [(record, text) for record, text in records if text]
    if count_tokens is not None and kept_texts:
        counts = count_tokens([text for _, text in kept_texts])
        for (record, _), count in zip(kept_texts, counts, strict=True):
            record.recounted_tokens = count


def _record(
    part: _Part, place: _Place, request: Request, turn: dict[str, Any], phase: Phase, start: int
) -> tuple[Record, str | None]:
    row = PackedRow(*ROW.unpack_from(part.rows, place.row))
    us, tokens = array("I"), array("H")
    part.us.seek(place.chunk * us.itemsize)
    us.frombytes(part.us.read(row.chunks * us.itemsize))
    part.tokens.seek(place.chunk * tokens.itemsize)
    tokens.frombytes(part.tokens.read(row.chunks * tokens.itemsize))
    record = Record(
        request_id=request.request_id,
        phase=phase,
        scheduled=_since(row.scheduled, start),
        released=_or_nan(_since(row.released, start)),
        sent=_or_nan(_since(row.sent, start)),
        ended=_since(row.ended, start),
        chunk_us=us,
        chunk_tokens=tokens,
        input_tokens=row.input_tokens if row.input_tokens >= 0 else request.input_tokens,
        output_tokens=row.output_tokens,
        batch=row.batch,
        finish_reason=part.texts[row.finish_reason] if row.finish_reason >= 0 else None,
        error=part.texts[row.error] if row.error >= 0 else None,
        token_source=cast("TokenSource", part.texts[row.token_source]),
        asked_input_tokens=request.input_tokens,
        asked_output_tokens=request.output_tokens,
        hidden_tokens=row.reasoning_tokens if row.answer_us == NO_REASONING else 0,  # otherwise they were sent as well
        first_answer=row.answer_us / 1e6 if row.answer_us >= 0 else None,
        cached_tokens=row.cached_tokens,
        served_model=part.texts[row.served_model] if row.served_model >= 0 else None,
        characters=row.characters,
        text_hash=row.text_hash,
        prompt_words=_words(request.prompt),
        connecting=_since(row.connecting, start),
        connected=_since(row.connected, start),
        closed=row.closed,
        model=request.model,
        **turn,
    )
    return record, _answer_text(part, place, row.text_bytes)


def _turn(phases: list[list[Request]], places: list[SessionPlaces], number: int, warmup: int) -> dict[str, Any]:
    """Return a record's session fields for a request, numbered over both phases."""
    measured = number >= warmup
    place, index = places[measured], number - warmup * measured
    request, session = phases[measured][index], place.session[index]
    fields: dict[str, Any] = {"session": session, "turn": place.turn[index], "session_turns": place.turns[session]}
    if request.parent != UNKNOWN:
        fields |= {"parent": phases[measured][request.parent].request_id, "gap": request.gap}
    return fields


def _words(prompt: Prompt) -> int:
    """Return the words of a prompt, or a sixth of its bytes if more (code, and languages without spaces)."""
    text = prompt_text(prompt)
    return len(prompt) if text is None else max(len(text.split()), len(text.encode()) // 6)


def _since(instant: int, start: int) -> float | None:
    return None if instant == UNKNOWN else (instant - start) / 1e9


def _or_nan(seconds: float | None) -> float:
    return math.nan if seconds is None else seconds


def _answer_text(part: _Part, place: _Place, size: int) -> str | None:
    if size <= 0:
        return None
    part.answers.seek(place.answer)
    return str(json.loads(b'"%b"' % part.answers.read(size)))


def _report(
    folder: Path, finals: list[dict[str, Any]], target: Target, stopped: str | None, cores: int
) -> ClientReport:
    """Combine the processes' statistics; `cores` is the number of cores that they share."""
    shares = [final["cpu_seconds"] / max(final["wall_seconds"], 1e-3) for final in finals]
    lags = array("f")
    for part in range(len(finals)):
        lags.frombytes((folder / f"lags.{part}").read_bytes())
    kernel, user = (sum(final[name] for final in finals) for name in ("kernel_stamps", "user_stamps"))
    source: Literal["kernel", "user", "mixed", "none"] = "none"
    if kernel or user:
        source = "mixed" if kernel and user else "kernel" if kernel else "user"
    return ClientReport(
        processes=len(finals),
        cpu=max(*shares, sum(shares) / cores) if len(shares) > 1 else shares[0],
        cpu_seconds=sum(final["cpu_seconds"] for final in finals),
        loop_lag_p50=quantile(lags, 0.5) if lags else 0.0,
        loop_lag_p99=quantile(lags, 0.99) if lags else 0.0,
        offered=sum(final["offered"] for final in finals),
        sent=sum(final["sent"] for final in finals),
        reads=kernel + user,
        multi_event_reads=sum(final["multi_event_reads"] for final in finals),
        stamp_source=source,
        clock_steps=max(final["clock_steps"] for final in finals),
        peak_memory_bytes=max(final["peak_memory_bytes"] for final in finals),
        batch_form=target.batch_form,
        stopped=stopped,
    )
