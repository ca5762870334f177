"""The verdict on a trial, by its requests and by the client that sent them."""

import math
import time
from array import array
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sweep.base.exits import Exit
from sweep.base.records import Outcome, Record, Records
from sweep.client.measurement import ClientReport
from sweep.node import verdict
from sweep.node.verdict import judge_requests, limited
from tests.numbers.test_metrics import FAILED, WARMUP, A, gather, record


def outcome_of(records: Records, **settings: Any) -> tuple[Outcome, str | None]:
    judged = judge_requests(records, **settings)
    return judged.outcome, judged.reason


def test_stamps_that_go_back_by_much_are_invalid() -> None:
    assert outcome_of(gather(record(0.0, [(0.5, 1), (0.4999, 1)])))[0] is Outcome.OK
    outcome, reason = outcome_of(gather(record(0.0, [(0.5, 1), (0.25, 1)])))
    assert outcome is Outcome.INVALID
    assert reason is not None
    assert "0.250000 s" in reason


def test_too_many_failures_are_invalid_and_named() -> None:
    good = [record(float(i), [(0.5, 1)]) for i in range(90)]
    bad = [record(100.0 + i, [], error=f"status: 503 retry_after={i}") for i in range(7)]
    bad += [record(200.0 + i, [], error="reset: by peer") for i in range(3)]
    outcome, reason = outcome_of(gather(*good, *bad))
    assert outcome is Outcome.INVALID
    assert reason == (
        "10 of 100 requests failed (10.0%; allowed 5.0%); most common: status, 7 times, "
        "e.g. 'status: 503 retry_after=0'"
    )
    assert outcome_of(gather(*good, *bad), max_failed=0.1) == (Outcome.OK, None)
    assert outcome_of(gather(*good)) == (Outcome.OK, None)


class ExitingEngine:
    """An engine that refuses connections, and exits some time later."""

    log = Path("engine.log")

    def __init__(self, exits_after: float) -> None:
        self.exits_at = time.monotonic() + exits_after

    def alive(self) -> bool:
        return time.monotonic() < self.exits_at

    def ran_out_of_memory(self, since: int) -> bool:
        return False

    def exit_reason(self) -> str:
        return "EngineDeadError (exit status 0)"

    def exit(self) -> Exit:
        return Exit(status=0, words="EngineDeadError")

    def log_tail(self) -> str:
        return "shutting down"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "exits_after", "outcome"),
    [
        ("connect: refused", 0.3, "engine_crashed"),
        ("status: 500 EngineDeadError", 0.3, "engine_crashed"),
        ("connect: refused", math.inf, "invalid"),
        ("protocol: not an event stream", 0.3, "invalid"),  # nothing to wait for
    ],
)
def test_an_engine_that_serves_no_more_is_given_time_to_exit(
    error: str, exits_after: float, outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verdict, "EXIT_WITHIN", 1.0)
    engine = ExitingEngine(exits_after)
    running: Any = SimpleNamespace(
        engine=engine,
        gateway=None,
        alive=engine.alive,
        dead=lambda: None if engine.alive() else engine,
        ran_out_of_memory=lambda logged: False,
    )
    settings = SimpleNamespace(max_failed=0.05, stall_timeout=60.0, trial_timeout=None)
    deployment = SimpleNamespace(backend=SimpleNamespace(launches=True, ignores_eos=False), gateway=None)
    work: Any = SimpleNamespace(settings=settings, deployment=deployment)
    trial: Any = SimpleNamespace(num_requests=1, load=SimpleNamespace(duration=None))
    result: Any = SimpleNamespace(records=gather(record(0.0, [], error=error)), report=report())
    judged = verdict.judge(work, trial, running, result, {engine.log: 0})
    assert judged.outcome == outcome, judged.reason
    assert judged.log_tail == "shutting down"


def test_failures_of_the_warmup_do_not_count() -> None:
    warm = [record(-1.0, [], phase="warmup", error="status: 503") for _ in range(9)]
    assert outcome_of(gather(*warm, A)) == (Outcome.OK, None)


def test_nothing_completed() -> None:
    assert outcome_of(gather(FAILED)) == (
        Outcome.INVALID,
        "none of 1 requests completed; most common: reset, 1 times, e.g. 'reset: by peer'",
    )
    assert outcome_of(gather(WARMUP)) == (Outcome.INVALID, "no measured request was sent")


# The client ----------------------------------------------------------------------------------------------------------


def report(**more: Any) -> ClientReport:
    values: dict[str, Any] = dict.fromkeys(ClientReport.__dataclass_fields__, 0) | {"stamp_source": "kernel"}
    return ClientReport(**values | {"stopped": None} | more)


def late(lag: float, spread: float = 0.1) -> Records:
    made = Records()
    for i in range(100):
        chunk_us, chunk_tokens = array("I", [50_000]), array("H", [1])
        made.append(Record(f"r{i}", "measured", i * spread, i * spread, i * spread + lag, chunk_us, chunk_tokens))
    return made


def test_limited_says_why() -> None:
    assert limited(report(cpu=0.5), late(0.001)) is None
    busy = limited(report(cpu=0.95), late(0.001))
    assert busy is not None
    assert "95% of a core" in busy
    assert "client.processes" in busy
    told = limited(report(cpu=0.5), late(0.02))
    assert told is not None
    assert "20.0 ms late" in told
    assert limited(report(cpu=0.5), late(0.006, spread=0.0)) is not None
    assert limited(report(cpu=0.5), late(0.0049, spread=0.0)) is None
    assert limited(report(stamp_source="user", loop_lag_p99=0.02), late(0.001)) is not None
    assert limited(report(stamp_source="kernel", loop_lag_p99=0.02), late(0.001)) is None


def test_the_first_token_is_what_the_engine_is_timed_by() -> None:
    """A role that comes at once is no token: 20 ms late is little beside a second."""
    with_role = [record(float(i), [(0.001, 0), (1.0, 1)], scheduled=i - 0.02) for i in range(100)]
    assert limited(report(cpu=0.5), gather(*with_role)) is None


def test_one_late_request_of_few_is_an_accident_and_two_are_a_pattern() -> None:
    punctual = [record(float(i), [(0.05, 1)]) for i in range(10)]
    late_ones = [record(10.0 + i, [(0.05, 1)], scheduled=9.5 + i) for i in range(2)]
    assert limited(report(cpu=0.5), gather(*punctual, late_ones[0])) is None
    assert limited(report(cpu=0.5), gather(*punctual, *late_ones)) is not None


def test_those_who_leave_one_after_another_may_be_late_by_their_place_in_the_row() -> None:
    """A thousand due at once at the start are no excuse for later ones."""
    crowd = [record(i * 40e-6, [(0.05, 1)], scheduled=0.0) for i in range(1000)]
    assert limited(report(cpu=0.5), gather(*crowd)) is None
    tardy = [record(10 + i / 10 + 0.02, [(0.05, 1)], scheduled=10 + i / 10) for i in range(100)]
    assert limited(report(cpu=0.5), gather(*crowd, *tardy)) is not None


def closed(turnaround: float) -> Records:
    """50 requests of 1 s each without a schedule."""
    sent = [i * (1 + turnaround) for i in range(50)]
    times = [(0.5, 1), (1.0, 1)]
    return gather(*(record(at, times, scheduled=math.nan, released=at - turnaround) for at in sent))


def test_a_client_that_keeps_its_users_waiting_is_limited_by_the_share_of_their_time() -> None:
    """A thousand users in step may be late by 13 ms of 6 s; 5 ms of 0.1 s are a lower load than the one asked for."""
    assert limited(report(cpu=0.6), closed(0.0099)) is None
    message = limited(report(cpu=0.6), closed(0.0105))
    assert message is not None
    assert "10.50 ms (mean) from an answer to the next send, 1.04% of its users' time (limit: 1%)" in message
    assert "client.processes" in message
    assert "idle" in (limited(report(cpu=0.2), closed(0.02)) or "")
    short = [record(i * 0.01, [(0.009, 1)], scheduled=math.nan, released=i * 0.01 - 0.0004) for i in range(50)]
    assert "4.26% of its users' time" in (limited(report(cpu=0.6), gather(*short)) or ""), "however quick the client is"


@pytest.mark.parametrize(
    ("lag", "shared", "said"),
    [
        (0.05, 500, "ms late (p99), more than the time between chunks, and 500 reads"),
        (0.05, 5, None),
        (0.004, 900, None),
    ],
)
def test_gaps_that_the_client_falsified_are_no_result(lag: float, shared: int, said: str | None) -> None:
    """Reads of several tokens by a late loop; a server that writes in bursts is read so by one that is in time."""
    slow = [record(float(i), [(1.0 + k * 0.02, 1) for k in range(20)]) for i in range(100)]
    told = limited(report(cpu=0.85, loop_lag_p99=lag, multi_event_reads=shared), gather(*slow))
    assert (told is None) if said is None else (said in (told or ""))
