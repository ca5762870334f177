"""A trial of an engine that is timed in-process: one control call sends all requests and returns their timestamps.

`measure` has the interface of `sweep.client.measurement.measure`. During the measurement, the only traffic is a query
for the counts every PROGRESS_POLL seconds, so no client can be a bottleneck. The results are throughput and duration,
not the latency that a server's user would experience.
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

ANSWER_POLL = 0.1  # s between two checks for a reason to stop
PROGRESS_POLL = 2.0  # s between two queries for the counts so far and the latest token
PROGRESS_TIMEOUT = 10.0  # s
EXIT_DELAY = 1.0  # s to notice the engine's exit after its connection has broken


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
    """Send all requests to the in-process server and wait: first the untimed warm-up, then lockstep batches.

    `on_start` is called when the request is sent, since only the engine knows when its warm-up is over. `on_progress`
    is called with the counts so far while requests are measured. Arguments for the measuring client (`client`) have no
    effect. Every request ends with an error if `should_stop` returns a reason, if no token arrives for `stall_timeout`
    s, or if the engine fails.
    """
    batch = mode.batch()
    assert batch is not None, "the plan rejects other loads"
    body: dict[str, Any] = {
        "warmup": [_request(request) for request in warmup],
        "requests": [_request(request) for request in requests],
        "ignore_eos": target.ignore_eos,
        "batch_size": batch,
        "duration": mode.duration,
    }
    on_start(time.monotonic())
    answer, problem = asyncio.run(_ask(target.url.rstrip("/"), body, should_stop, stall_timeout, on_progress))
    if problem is not None:
        records = Records()
        for request in [*warmup, *requests]:
            records.append(Record(request.request_id, request.phase, None, 0.0, 0.0, error=problem))
        return Measurement(records, _report(len(requests), 0, problem), 0.0)
    start = answer["records"][0]["released"]  # ns
    records = Records()
    for phase, rows in ((warmup, answer["warmup"]), (requests, answer["records"])):
        for index, (request, row) in enumerate(zip(phase, rows, strict=False)):  # without requests that were never due
            records.append(_record(request, row, index // batch, start))
    sent = len(answer["records"])
    return Measurement(records, _report(sent, sent, None), start / 1e9)


def _request(request: Request) -> dict[str, Any]:
    return {"prompt": request.prompt, "max_tokens": request.output_tokens}


async def _ask(
    url: str,
    body: dict[str, Any],
    should_stop: Callable[[], str | None],
    stall_timeout: float | None,
    on_progress: Callable[[TrialProgress], None],
) -> tuple[dict[str, Any], str | None]:
    """Return the in-process server's response, or {} and why it is missing. Closing the connection stops the work."""
    async with httpx.AsyncClient(timeout=None, trust_env=False) as http:
        call = asyncio.create_task(http.post(f"{url}/measure", json=body))
        looked = changed = time.monotonic()
        most_silent, generated = stall_timeout or math.inf, None
        while not (await asyncio.wait([call], timeout=ANSWER_POLL))[0]:
            reason = should_stop()
            if reason is None and time.monotonic() - looked > min(PROGRESS_POLL, most_silent / 2):
                looked = time.monotonic()
                state = await _progress(http, url)
                if state is None or state["generated"] != generated:
                    changed, generated = looked, state and state["generated"]
                reason = STALLED if looked - changed > most_silent else None
                if state and state["counts"] is not None:
                    on_progress(TrialProgress(**state["counts"], total=len(body["requests"])))
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


async def _progress(http: httpx.AsyncClient, url: str) -> dict[str, Any] | None:
    """Return the tokens generated so far, and the counts of the measured requests (null during the warm-up).

    Return None if the server does not respond; the main call will report that.
    """
    try:
        answer = await http.get(f"{url}/progress", timeout=PROGRESS_TIMEOUT)
    except httpx.HTTPError:
        return None
    return dict(answer.json()) if answer.status_code == 200 else None


def _record(request: Request, row: dict[str, Any], batch: int, start: int) -> Record:
    released = (row["released"] - start) / 1e9
    return Record(
        request.request_id,
        request.phase,
        None,
        released,
        released,
        array("I", [round((at - row["released"]) / 1e3) for at, _ in row["stamps"]]),
        array("H", [min(tokens, MOST_TOKENS) for _, tokens in row["stamps"]]),
        row["input_tokens"],
        row["output_tokens"],
        finish_reason=row["finish_reason"],
        # As in the client, an answer without tokens is a failure.
        error=None if row["output_tokens"] else "empty: the engine ended it without a token",
        token_source="ids",  # the engine's error
        asked_input_tokens=request.input_tokens,
        asked_output_tokens=request.output_tokens,
        batch=batch,
    )


def _report(offered: int, sent: int, problem: str | None) -> ClientReport:
    """Return a ClientReport for an engine that is timed in-process, where no client runs."""
    stopped = problem.removeprefix("cancelled: ") if problem and problem.startswith("cancelled") else None
    zeros: dict[str, Any] = dict.fromkeys((field.name for field in fields(ClientReport)), 0)
    figures = {"offered": offered, "sent": sent, "stamp_source": "engine", "batch_form": "list", "stopped": stopped}
    return ClientReport(**zeros | figures)
