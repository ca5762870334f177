"""A trial of an engine that is timed inside: all its requests in one control call, the engine's own stamps come back.

`measure` has the interface of `client.measurement.measure`. Nothing is on the wire while the clock runs, so no client
can be the bottleneck; it shows throughput and duration, not the latency that a user of a server would have.
"""

import asyncio
import time
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import httpx

from sweep.client.measurement import ClientReport, Measurement
from sweep.client.wire import Target
from sweep.records import MOST_TOKENS, Record, Records, Request, Schedule, Timeouts

STOP_POLL = 0.1  # s between two checks whether to stop
EXIT_DELAY = 1.0  # s after a broken connection within which the engine's exit is noticed


def measure(
    target: Target,
    warmup: Sequence[Request],
    requests: Sequence[Request],
    schedule: Schedule,
    *,
    on_start: Callable[[float], None] = lambda start: None,
    should_stop: Callable[[], str | None] = lambda: None,
    folder: Path | None = None,
    cpus: set[int] | None = None,
    processes: int | Literal["auto"] = 1,
    timeouts: Timeouts | None = None,
) -> Measurement:
    """Hand everything to the engine's host and wait: warm-up first, untimed, then the requests as the schedule says.

    `on_start` is called when the engine is asked: when its warm-up is over, only it knows.
    The measuring client's arguments (`folder`, `cpus`, `processes`, `timeouts`) have no meaning here. Every request
    ends with an error when `should_stop` gives a reason, when the engine fails, and under a schedule that has think
    times, for which there are no users here.
    """
    body = {
        "warmup": [_request(request) for request in warmup],
        "requests": [_request(request) for request in requests],
        "ignore_eos": target.ignore_eos,
        "schedule": {
            "mode": schedule.mode,
            "batch_size": schedule.batch_size or 1,
            "concurrency": schedule.concurrency,
            "due": list(schedule.due) if schedule.due is not None else None,
            "duration": schedule.duration,
        },
    }
    answers: dict[str, Any] = {}
    problem: str | None
    if any(schedule.think or ()) or any(schedule.start or ()):
        problem = "protocol: an engine that is timed inside has no users who think or come later"
    else:
        on_start(time.monotonic())
        answers, problem = asyncio.run(_ask(f"{target.url.rstrip('/')}/measure", body, should_stop))
    records = _records(answers, [*warmup, *requests], len(warmup), schedule, problem)
    sent = sum(record.phase == "measured" for record in records) if problem is None else 0
    return Measurement(records, _report(len(requests), sent, problem), answers.get("start_ns", 0) / 1e9)


def _request(request: Request) -> dict[str, Any]:
    return {"prompt": request.prompt, "max_tokens": request.output_tokens}


async def _ask(
    url: str, body: dict[str, Any], should_stop: Callable[[], str | None]
) -> tuple[dict[str, Any], str | None]:
    """Return the host's answers, or why there are none. Closing the connection stops the host."""
    async with httpx.AsyncClient(timeout=None, trust_env=False) as http:
        call = asyncio.create_task(http.post(url, json=body))
        while not (await asyncio.wait([call], timeout=STOP_POLL))[0]:
            reason = should_stop()
            if reason is not None:
                call.cancel()
                await asyncio.wait([call])
                return {}, f"cancelled: {reason}"
        try:
            answer = call.result()
        except httpx.TransportError as error:
            for _ in range(round(EXIT_DELAY / STOP_POLL)):  # so that the caller finds the engine dead
                if should_stop() is not None:
                    break
                await asyncio.sleep(STOP_POLL)
            return {}, f"closed: {type(error).__name__} {error}".rstrip()
    if answer.status_code == 200:
        return answer.json(), None
    try:
        message = answer.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = answer.text[:300]
    return {}, f"engine: {message}" if answer.status_code == 500 else f"status: {answer.status_code} {message}"


def _records(
    answers: dict[str, Any], requests: Sequence[Request], warmup: int, schedule: Schedule, problem: str | None
) -> Records:
    records = Records()
    if problem is not None:
        for request in requests:
            records.append(Record(request.request_id, request.phase, 0.0, 0.0, 0.0, error=problem))
        return records
    for phase, served in ((requests[:warmup], answers["warmup"]), (requests[warmup:], answers["records"])):
        for request, answer in zip(phase, served, strict=False):  # those that were never due have no answer
            records.append(_record(request, answer, schedule))
    return records


def _record(request: Request, answer: dict[str, Any], schedule: Schedule) -> Record:
    record = Record(
        request.request_id,
        request.phase,
        answer["scheduled"],
        answer["released"],
        answer["released"],
        array("I", answer["chunk_us"]),
        array("H", [min(tokens, MOST_TOKENS) for tokens in answer["chunk_tokens"]]),
        answer["input_tokens"],
        answer["output_tokens"],
        finish_reason=answer["finish_reason"],
        error=answer["error"],
    )
    if record.error is None and record.output_tokens == 0:
        record.error = "empty: the engine ended it without a token"  # as on the wire: no answer is no success
    if schedule.mode == "lockstep":
        record.batch = answer["index"] // (schedule.batch_size or 1)
    return record


def _report(offered: int, sent: int, problem: str | None) -> ClientReport:
    """Return the report of a client that does not exist: it was never a bottleneck."""
    return ClientReport(
        processes=0,
        cpu=0.0,
        cpu_seconds=0.0,
        loop_lag_p50=0.0,
        loop_lag_p99=0.0,
        offered=offered,
        sent=sent,
        reads=0,
        multi_event_reads=0,
        stamp_source="engine",
        clock_steps=0,
        peak_memory_bytes=0,
        batch_form="list",
        stopped=problem.removeprefix("cancelled: ") if problem and problem.startswith("cancelled") else None,
    )
