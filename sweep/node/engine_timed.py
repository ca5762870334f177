"""A trial of an engine that is timed inside: all its requests in one control call, the engine's own stamps come back.

`measure` has the face of `client.measure`. Nothing is on the wire while the clock runs, so there is no client to be a
bottleneck; what it shows is throughput and duration, not what a user of a server would feel.
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

POLL = 0.1  # s between two looks at whether to stop
LAST_WORDS = 1.0  # s that a death may take to be known after the connection broke


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
    What concerns a measuring client (`folder`, `cpus`, `processes`, `timeouts`) has no meaning here. When
    `should_stop` gives a reason, or the engine fails, every request ends with that as its error; so it does with a
    schedule that has think times, for which there are no users here.
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
    found: dict[str, Any] = {}
    problem: str | None
    if any(schedule.think or ()) or any(schedule.start or ()):
        problem = "protocol: an engine that is timed inside has no users who think or come later"
    else:
        on_start(time.monotonic())
        found, problem = asyncio.run(_ask(f"{target.url.rstrip('/')}/measure", body, should_stop))
    records = _records(found, [*warmup, *requests], len(warmup), schedule, problem)
    sent = sum(record.phase == "measured" for record in records) if problem is None else 0
    return Measurement(records, _report(len(requests), sent, problem), found.get("start_ns", 0) / 1e9)


def _request(request: Request) -> dict[str, Any]:
    return {"prompt": request.prompt, "max_tokens": request.output_tokens}


async def _ask(
    url: str, body: dict[str, Any], should_stop: Callable[[], str | None]
) -> tuple[dict[str, Any], str | None]:
    """The host's answer, or why there is none. Leaving the connection stops the host."""
    async with httpx.AsyncClient(timeout=None, trust_env=False) as http:
        call = asyncio.create_task(http.post(url, json=body))
        while not (await asyncio.wait([call], timeout=POLL))[0]:
            reason = should_stop()
            if reason is not None:
                call.cancel()
                await asyncio.wait([call])
                return {}, f"cancelled: {reason}"
        try:
            answer = call.result()
        except httpx.TransportError as error:
            for _ in range(round(LAST_WORDS / POLL)):  # so that whoever asks next knows an engine that died
                if should_stop() is not None:
                    break
                await asyncio.sleep(POLL)
            return {}, f"closed: {type(error).__name__} {error}".rstrip()
    if answer.status_code == 200:
        return answer.json(), None
    try:
        said = answer.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        said = answer.text[:300]
    return {}, f"engine: {said}" if answer.status_code == 500 else f"status: {answer.status_code} {said}"


def _records(
    found: dict[str, Any], requests: Sequence[Request], warmup: int, schedule: Schedule, problem: str | None
) -> Records:
    records = Records()
    if problem is not None:
        for request in requests:
            records.append(Record(request.request_id, request.phase, 0.0, 0.0, 0.0, error=problem))
        return records
    for phase, answers in ((requests[:warmup], found["warmup"]), (requests[warmup:], found["records"])):
        for request, answer in zip(phase, answers, strict=False):  # those that were never due have no answer
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
    """What a client would say of itself, where there is none."""
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
