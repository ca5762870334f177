"""A trial of an engine that is timed inside, from the orchestrator's side: against the host with a known library."""

import itertools

import pytest

from sweep.__main__ import main
from sweep.base.records import Outcome, Request
from sweep.client.measurement import STALLED
from sweep.client.modes import Lockstep
from sweep.client.wire import Target
from sweep.inputs.load import Batch
from sweep.node import engine_timed, verdict
from sweep.numbers.summarise import summarise
from tests.backends.test_host import model  # noqa: F401 - a fixture
from tests.backends.test_host_continuous import Stepper, client  # noqa: F401 - a fixture


@pytest.fixture
def library() -> Stepper:
    return Stepper(slots=100)


@pytest.fixture
def target(client) -> Target:  # noqa: F811
    return Target(str(client.base_url).rstrip("/"), "tiny", ignore_eos=True)


def asked(count: int, tokens: int = 3, prompt: tuple[int, ...] = (10, 20), phase: str = "measured") -> list[Request]:
    return [Request(f"{phase}-{index}", (index, *prompt), tokens, 3, phase) for index in range(count)]


def test_records_of_lockstep_batches(target, library):
    library.step_seconds = 0.002
    warmup, requests = asked(1, phase="warmup"), asked(5)
    found = engine_timed.measure(target, warmup, requests, Batch(batch_size=2).mode(5, 1))
    records = found.records
    assert list(records.request_id) == ["warmup-0", *(f"measured-{index}" for index in range(5))]
    assert [record.phase for record in records] == ["warmup"] + ["measured"] * 5
    assert records[0].released < 0 <= records[1].released
    assert [record.batch for record in records][1:] == [0, 0, 1, 1, 2]
    assert all(record.output_tokens == 3 and record.input_tokens == 3 and record.error is None for record in records)
    assert library.steps == [1, 1, 1, *([2] * 6), 1, 1, 1]
    columns = summarise(records, slo=None, discard_first_batch=False, window=None)
    assert columns["output_tokens"] == 15
    assert columns["duration"] >= 9 * 0.002
    assert columns["output_throughput"] == pytest.approx(15 / columns["duration"])
    assert columns["batch_latency_mean"] >= 3 * 0.002


def test_the_report_certifies_the_engines_own_stamps(target):
    found = engine_timed.measure(target, [], asked(4), Batch(batch_size=2).mode(4, 1))
    assert found.report.stamp_source == "engine"
    assert (found.report.offered, found.report.sent, found.report.processes) == (4, 4, 0)
    assert verdict.limited(found.report, found.records) is None


def test_out_of_memory_is_the_error_of_every_request(target, library):
    found = engine_timed.measure(target, [], asked(2, prompt=(Stepper.fails,)), Batch(batch_size=2).mode(2, 1))
    assert all("out of memory" in record.error for record in found.records)
    assert verdict.judge_requests(found.records, max_failed=0.05).outcome is Outcome.INVALID
    assert found.report.sent == 0


def test_a_prompt_over_the_context(target):
    found = engine_timed.measure(target, [], asked(1, prompt=(1,) * 100), Batch(batch_size=1).mode(1, 1))
    assert found.records[0].error.startswith("status: 400")
    assert "64 tokens" in found.records[0].error


def test_stopping_ends_the_engines_work_too(target, library):
    library.step_seconds = 0.1
    found = engine_timed.measure(
        target,
        [],
        asked(2, tokens=60),
        Batch(batch_size=2).mode(2, 1),
        should_stop=lambda: "trial_timeout" if len(library.steps) > 3 else None,
    )
    assert [record.error for record in found.records] == ["cancelled: trial_timeout"] * 2
    assert found.report.stopped == "trial_timeout"
    library.step_seconds = 0
    again = engine_timed.measure(target, [], asked(1), Batch(batch_size=1).mode(1, 1))
    assert again.records[0].error is None


@pytest.mark.slow
def test_the_counts_so_far_are_reported_while_requests_are_measured(target, library, monkeypatch):
    """Four requests in two batches of 30 steps, and a warm-up of as many, which is not counted."""
    monkeypatch.setattr(engine_timed, "PROGRESS_POLL", 0.15)
    library.step_seconds, seen = 0.02, []
    warmup, requests = asked(1, tokens=30, phase="warmup"), asked(4, tokens=30)
    engine_timed.measure(target, warmup, requests, Batch(batch_size=2).mode(4, 1), on_progress=seen.append)
    assert seen
    assert all((each.total, each.failed) == (4, 0) and each.in_flight == each.sent - each.done for each in seen)
    assert all(before.tokens <= after.tokens <= 120 for before, after in itertools.pairwise(seen))
    most = [2 * (each.seconds / 0.02 + 1) for each in seen]  # of two requests, as no sleep is shorter than asked
    assert all(each.tokens <= tokens for each, tokens in zip(seen, most, strict=True))


def test_a_stall_inside_an_engine(target, library):
    library.step_seconds = 1.5
    found = engine_timed.measure(target, [], asked(1), Batch(batch_size=1).mode(1, 1), stall_timeout=0.4)
    assert found.report.stopped == STALLED
    assert list(found.records.error) == [f"cancelled: {STALLED}"]


@pytest.mark.slow
@pytest.mark.parametrize("step", [0.0, 0.1])
def test_steps_within_the_stall_timeout(target, library, step):
    library.step_seconds = step
    found = engine_timed.measure(target, [], asked(1, tokens=12), Batch(batch_size=1).mode(1, 1), stall_timeout=0.4)
    assert found.records.error[0] is None


@pytest.mark.parametrize(("tokens", "kind"), [(1, None), (0, "empty")])
def test_an_answer_without_a_token_is_an_error_as_on_the_wire(monkeypatch, tokens, kind):
    answer = {"released": 1, "stamps": [[9000, 1]] * tokens}
    answer |= {"input_tokens": 3, "output_tokens": tokens, "finish_reason": "stop"}

    async def ask(*arguments: object) -> tuple[dict, None]:
        return {"warmup": [], "records": [answer]}, None

    monkeypatch.setattr(engine_timed, "_ask", ask)
    mode = Batch(batch_size=1).mode(1, 1)
    (error,) = engine_timed.measure(Target("http://127.0.0.1:9", "tiny"), [], asked(1), mode).records.error
    assert (error and error.partition(":")[0]) == kind


@pytest.mark.slow
def test_an_engine_that_is_gone():
    target = Target("http://127.0.0.1:9", "tiny")
    found = engine_timed.measure(target, [], asked(1), Batch(batch_size=1).mode(1, 1))
    assert found.records[0].error.startswith("closed: ConnectError")


def test_after_a_broken_connection_the_engines_death_is_waited_for():
    asked_for = []

    def should_stop() -> str | None:
        asked_for.append(1)
        return "the engine died" if len(asked_for) >= 4 else None

    mode = Batch(batch_size=1).mode(1, 1)
    found = engine_timed.measure(Target("http://127.0.0.1:9", "tiny"), [], asked(1), mode, should_stop=should_stop)
    assert len(asked_for) >= 4
    assert found.records[0].error.startswith("closed: ")


def test_requests_that_were_never_due_have_no_record(target, library):
    library.step_seconds = 0.02
    found = engine_timed.measure(target, [], asked(100), Lockstep(1, duration=0.1))
    assert 1 <= len(found.records) < 10
    assert found.report.sent == len(found.records)
    assert found.report.offered == found.report.sent, "nothing else was due"


@pytest.mark.parametrize("load", ["closed", "poisson"])
def test_the_plan_refuses_loads_without_batches(load, capsys, tmp_path):
    command = ["run", "backend=vllm_offline", "workload=qa", f"load={load}", "dry_run=true", f"out={tmp_path}"]
    assert main([*command, "hardware=cpu", "cluster=inline"]) == 2
    assert f"load={load}: vllm_offline is timed in-process" in capsys.readouterr().err
