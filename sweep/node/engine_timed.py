"""A trial of an engine that is timed inside: all its requests in one control call, the engine's own stamps come back.

`measure` has the interface of `sweep.client.measurement.measure`. Nothing but a question for the counts, every
PROGRESS_POLL seconds, is on the wire while the clock runs, so there is no client to be a bottleneck; the result is
throughput and duration, not what a user of a server would feel.
"""

import asyncio
import math
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import httpx

from sweep.base.records import MOST_TOKENS, Record, Records, Request, TrialProgress
from sweep.client.measurement import STALLED, ClientReport, Measurement
from sweep.client.modes import Mode
from sweep.client.wire import Target
from sweep.numbers.selection import measured, was_sent

ANSWER_POLL = 0.1  # s between two checks whether to stop
PROGRESS_POLL = 2.0  # s between two questions for the counts so far and the latest token
PROGRESS_TIMEOUT = 10.0  # s
EXIT_DELAY = 1.0  # s after a broken connection within which the engine's exit is noticed


def measure(
    target: Target,
    warmup: Sequence[Request],
    requests: Sequence[Request],
    mode: Mode,
    *,
    on_start: Callable[[float], None] = lambda start: None,
    should_stop: Callable[[], str | None] = lambda: None,
    stall_timeout: float | None = None,
    on_progress: Callable[[TrialProgress], None] = lambda progress: None,
    **client: object,
) -> Measurement:
    """Hand everything to the engine's host and wait: warm-up first, untimed, then the requests when the mode says.

    `on_start` is called when the engine is asked: when its warm-up is over, only it knows. `on_progress` is called with
    the counts so far while requests are measured. The measuring client's own arguments (`client`) have no meaning here.
    Every request ends with an error when `should_stop` gives a reason, when no token has come for `stall_timeout` s,
    when the engine fails, and in a mode that needs a client.
    """
    body: dict[str, Any] = {
        "warmup": [_request(request) for request in warmup],
        "requests": [_request(request) for request in requests],
        "ignore_eos": target.ignore_eos,
    }
    answer: dict[str, Any] = {}
    problem: str | None
    try:
        body["order"] = mode.without_client()
    except ValueError as error:
        problem = f"protocol: {error}"
    else:
        on_start(time.monotonic())
        answer, problem = asyncio.run(_ask(target.url.rstrip("/"), body, should_stop, stall_timeout, on_progress))
    records = _records(answer, [*warmup, *requests], len(warmup), mode, problem)
    sent = int((measured(records) & was_sent(records)).sum()) if problem is None else 0
    due = records.phase.count("measured")
    return Measurement(records, _report(due, sent, problem), answer.get("start_ns", 0) / 1e9)


def _request(request: Request) -> dict[str, Any]:
    return {"prompt": request.prompt, "max_tokens": request.output_tokens}


async def _ask(
    url: str,
    body: dict[str, Any],
    should_stop: Callable[[], str | None],
    stall_timeout: float | None,
    on_progress: Callable[[TrialProgress], None],
) -> tuple[dict[str, Any], str | None]:
    """Return the host's answer, or the reason why there is none. Closing the connection stops the host."""
    async with httpx.AsyncClient(timeout=None, trust_env=False) as http:
        call = asyncio.create_task(http.post(f"{url}/measure", json=body))
        looked = time.monotonic()
        most_silent = stall_timeout or math.inf
        while not (await asyncio.wait([call], timeout=ANSWER_POLL))[0]:
            reason = should_stop()
            if reason is None and time.monotonic() - looked > min(PROGRESS_POLL, most_silent / 2):
                looked = time.monotonic()
                silent, counts = await _progress(http, url)
                reason = STALLED if silent > most_silent else None
                if counts is not None:
                    on_progress(TrialProgress(**counts, total=len(body["requests"])))
            if reason is not None:
                call.cancel()
                await asyncio.wait([call])
                return {}, f"cancelled: {reason}"
        try:
            answer = call.result()
        except httpx.TransportError as error:
            for _ in range(round(EXIT_DELAY / ANSWER_POLL)):  # until `should_stop` can report that the engine died
                if should_stop() is not None:
                    break
                await asyncio.sleep(ANSWER_POLL)
            return {}, f"closed: {type(error).__name__} {error}".rstrip()
    if answer.status_code == 200:
        return answer.json(), None
    try:
        message = answer.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = answer.text[:300]
    return {}, f"engine: {message}" if answer.status_code == 500 else f"status: {answer.status_code} {message}"


async def _progress(http: httpx.AsyncClient, url: str) -> tuple[float, dict[str, Any] | None]:
    """The time since the latest token, and the counts of the measured requests; None during the warm-up.

    0.0 and None where the host gives no answer, which the call itself will report.
    """
    try:
        answer = await http.get(f"{url}/progress", timeout=PROGRESS_TIMEOUT)
    except httpx.HTTPError:
        return 0.0, None
    if answer.status_code != 200:
        return 0.0, None
    state = answer.json()
    return float(state["seconds_since_token"]), state["counts"]


def _records(
    answer: dict[str, Any], requests: Sequence[Request], warmup: int, mode: Mode, problem: str | None
) -> Records:
    records = Records()
    if problem is not None:
        for request in requests:
            records.append(Record(request.request_id, request.phase, None, 0.0, 0.0, error=problem))
        return records
    for phase, rows in ((requests[:warmup], answer["warmup"]), (requests[warmup:], answer["records"])):
        for request, row in zip(phase, rows, strict=False):  # requests that were never due have no row
            records.append(_record(request, row, mode.batch()))
    rows = len(answer["records"])
    for request, due in zip(requests[warmup + rows :], mode.due_in_time()[rows:], strict=False):
        error = "unsent: due, and still waiting for a slot when load.duration was over"
        records.append(Record(request.request_id, request.phase, due, math.nan, math.nan, error=error))
    return records


def _record(request: Request, row: dict[str, Any], batch: int | None) -> Record:
    record = Record(
        request.request_id,
        request.phase,
        row["scheduled"],
        row["released"],
        row["released"],
        array("I", row["chunk_us"]),
        array("H", [min(tokens, MOST_TOKENS) for tokens in row["chunk_tokens"]]),
        row["input_tokens"],
        row["output_tokens"],
        finish_reason=row["finish_reason"],
        error=row["error"],
        token_source="ids",  # the engine's own
        asked_input_tokens=request.input_tokens,
        asked_output_tokens=request.output_tokens,
    )
    if record.error is None and record.output_tokens == 0:
        record.error = "empty: the engine ended it without a token"  # as on the wire: no answer is no success
    if batch is not None:
        record.batch = row["index"] // batch
    return record


def _report(offered: int, sent: int, problem: str | None) -> ClientReport:
    """The report of a client, where there is none."""
    stopped = problem.removeprefix("cancelled: ") if problem and problem.startswith("cancelled") else None
    zeros: dict[str, Any] = dict.fromkeys((field.name for field in fields(ClientReport)), 0)
    figures = {"offered": offered, "sent": sent, "stamp_source": "engine", "batch_form": "list", "stopped": stopped}
    return ClientReport(**zeros | figures)
