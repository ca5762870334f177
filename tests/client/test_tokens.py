"""Tokens as the row has them, through the whole command: against an endpoint of known timing that flatters itself."""

from array import array
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import analysis
from sweep.__main__ import main
from sweep.base.records import Record, Request
from sweep.client.measurement import measure
from sweep.client.modes import ClosedLoop
from sweep.client.token_counts import settle
from sweep.client.wire import Target
from sweep.inputs.tokenizer import SHIPPED_TOKENIZER
from sweep.numbers.summarise import summarise
from tests.support.token_server import Script, token_server

ASKED = 32
COMMAND = ["backend=openai", "model=served", "workload=synthetic", "workload.input_tokens=16"]
COMMAND += [f"workload.output_tokens={ASKED}", "workload.num_requests=6", "workload.warmup_requests=1"]
COMMAND += ["hardware=cpu", "cluster=inline", "tracking=none"]
CLOSED = ["load=closed", "load.concurrency=6"]
OWN = f"model.tokenizer={SHIPPED_TOKENIZER}"
TPOT = 0.02
BUSY = pytest.mark.flaky(reruns=2)  # a busy machine makes the server late, which then sends several events at once
pytestmark = [BUSY, pytest.mark.slow]


def sweep(
    folder: Path, *scripts: Script, overrides: Sequence[str] = (), load: Sequence[str] = CLOSED, status: int = 0
) -> Any:
    """The row of the first of these endpoints, of which the command measures one trial each."""
    with ExitStack() as stack:
        urls = [stack.enter_context(token_server(script)) for script in scripts]
        command = [*COMMAND, *load, f"backend.url={','.join(urls)}", *overrides, f"out={folder / 'out'}"]
        # As a user would: a trial that a busy machine spoilt (client_limited) is retried by the same command.
        assert status in (main(command) for _ in range(1 if status else 3))
    return next(analysis.load(folder / "out").itertuples())


def job(
    folder: Path, script: Script, tokens: int = ASKED, count_tokens: Any = None, api: Any = "completions"
) -> dict[str, Any]:
    requests = [Request(f"r{number}", "say", tokens) for number in range(6)]
    with token_server(script) as url:
        target = Target(url, "m", api, continuous_usage=True)
        result = measure(target, [], requests, ClosedLoop(6), folder=folder / "job", count_tokens=count_tokens)
    return summarise(result.records)


def count_words(texts: list[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def report(folder: Path) -> str:
    return (folder / "out" / "report.html").read_text()


# -- buffered streams


@pytest.mark.parametrize("events", [None, 16])
def test_a_buffered_stream_has_no_time_per_token(
    events: int | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = sweep(tmp_path, *[Script(events_per_write=events)] * 2, overrides=["slo={tpot: 50ms}"])
    assert row.outcome == "ok"
    assert row.buffered_share == 1
    assert "buffered-stream" in row.warnings
    spaced = [f"{name}_p50" for name in ("tpot", "itl", "itl_token", "steady_tpot", "steady_itl")]
    for column in [*spaced, "tpot_p99", "itl_max", "goodput"]:
        assert pd.isna(getattr(row, column)), column
    assert row.ttft_p50 > 0.05
    printed = capsys.readouterr().out
    assert "buffered-stream" in printed
    points = pd.read_csv(tmp_path / "out" / "summary.csv")
    assert points["output_throughput_standing"].eq("best").any()
    assert points["ttft_p50_standing"].isna().all(), "the first token waited in the buffer"
    assert "tpot_p50_standing" not in points or points["tpot_p50_standing"].isna().all()
    requests = analysis.requests(tmp_path / "out")
    assert requests[requests.phase == "measured"].tpot.isna().all()


def test_events_of_their_own_are_not_buffered(tmp_path: Path) -> None:
    row = sweep(tmp_path, Script(usage="running"), overrides=["slo={tpot: 50ms}"])
    assert row.buffered_share < 0.1
    assert row.tpot_p50 == pytest.approx(TPOT, rel=0.1)
    assert row.goodput == pytest.approx(row.request_throughput)
    assert (row.token_source, row.tokens_per_event, row.hidden_share) == ("running usage", 1.0, 0.0)
    assert row.finish_length_share == 1
    doubts = {"few-requests", "no-steady-state", "uncommitted-code", "shared-timestamps", "unverified-tokens"}
    assert set(row.warnings) <= doubts


def test_an_answer_that_does_not_end_is_over_as_a_failed_request(tmp_path: Path) -> None:
    """Eight tokens were asked for, and 100,000 come: only the time-out of an hour ended that."""
    requests, script = [Request("r", "say", 8)], Script(tokens=100_000, ttft=0.01, itl=0.001)
    with token_server(script) as url:
        result = measure(Target(url, "m"), [], requests, ClosedLoop(1), folder=tmp_path / "job")
    assert result.records.error == ["protocol: 65 events without an end; far fewer tokens were requested"]


# -- who counts


@pytest.mark.parametrize("usage", ["running", "ids"])
@pytest.mark.parametrize(("each", "tokens"), [(4, 64), (4, 16), (32, 64)])
def test_tpot_is_exact_with_several_tokens_an_event(usage: Any, each: int, tokens: int, tmp_path: Path) -> None:
    """The first event's tokens are in no time per token: (last − first) / (n − k)."""
    row = job(tmp_path, Script(tokens_per_event=each, usage=usage), tokens=tokens)
    assert row["tpot_p50"] == pytest.approx(TPOT, rel=0.05)
    assert row["tokens_per_event"] == each
    assert row["output_tokens"] == 6 * tokens


def test_tpot_is_exact_with_four_tokens_an_event_through_the_command(tmp_path: Path) -> None:
    row = sweep(tmp_path, Script(tokens_per_event=4, usage="running"))
    assert row.tpot_p50 == pytest.approx(TPOT, rel=0.05)
    assert (row.tokens_per_event, row.itl_p50) == (4, pytest.approx(4 * TPOT, rel=0.1))


def test_hidden_tokens_do_not_make_the_visible_ones_fast(tmp_path: Path) -> None:
    row = sweep(tmp_path, Script(hidden=200), overrides=["slo={tpot: 10ms}"])
    assert row.outcome == "ok"
    assert row.tpot_p50 == pytest.approx(TPOT, rel=0.05)
    assert row.goodput == 0
    assert (row.output_tokens, row.streamed_tokens) == (6 * (ASKED + 200), 6 * ASKED)
    assert row.hidden_share == pytest.approx(200 / (ASKED + 200))
    assert row.peak_output_throughput == pytest.approx(6 * ASKED / row.duration)
    assert "hidden-tokens" in row.warnings


@pytest.mark.parametrize("count_tokens", [None, count_words])
@pytest.mark.parametrize("usage", ["final", "running"])
@pytest.mark.parametrize("details", [True, False])
@pytest.mark.parametrize("api", ["completions", "chat"])
def test_hidden_tokens_however_they_are_counted(
    api: Any, usage: Any, details: bool, count_tokens: Any, tmp_path: Path
) -> None:
    script = Script(hidden=200, usage=usage, details=details)
    row = job(tmp_path, script, count_tokens=count_tokens, api=api)
    assert row["tpot_p50"] == pytest.approx(TPOT, rel=0.05)
    assert row["output_tokens"] == 6 * (ASKED + 200)
    assert row["streamed_tokens"] == 6 * ASKED
    if count_tokens:
        assert row["recounted_share"] == (1.0 if details else pytest.approx(ASKED / (ASKED + 200)))


def test_undeclared_hidden_tokens_within_the_limit_are_found_by_the_text(tmp_path: Path) -> None:
    """32 tokens were asked for and counted, and only 8 of them came: no more of them are timed."""
    script = Script(tokens=8, hidden=24, details=False)
    assert job(tmp_path, script, count_tokens=count_words)["tpot_p50"] == pytest.approx(TPOT, rel=0.05)


@pytest.mark.parametrize("usage", ["none", "zero"])
def test_events_do_not_stand_for_tokens(usage: Any, tmp_path: Path) -> None:
    row = sweep(tmp_path, Script(tokens_per_event=4, usage=usage))
    assert (row.outcome, row.token_source) == ("ok", "events")
    assert "uncounted-tokens" in row.warnings
    for column in ("output_tokens", "output_throughput", "total_throughput", "tpot_p50", "peak_output_throughput"):
        assert pd.isna(getattr(row, column)), column
    assert row.ttft_p50 == pytest.approx(0.05 + 3 * TPOT, rel=0.2)
    assert row.request_throughput > 0
    assert "inf" not in str(row.warnings)
    assert "inf%" not in report(tmp_path)


@pytest.mark.parametrize("usage", ["none", "zero"])
def test_the_tokenizer_counts_what_the_server_does_not(usage: Any, tmp_path: Path) -> None:
    row = sweep(tmp_path, Script(tokens_per_event=4, usage=usage), overrides=[OWN])
    assert (row.outcome, row.token_source) == ("ok", "text")
    assert row.output_tokens == 6 * ASKED
    assert row.tpot_p50 == pytest.approx(TPOT, rel=0.1)
    assert "own-token-count" in row.warnings
    assert "uncounted-tokens" not in row.warnings


def test_a_running_count_that_stays_at_0_is_no_empty_answer(tmp_path: Path) -> None:
    row = sweep(tmp_path, Script(usage="running zero"))
    assert (row.outcome, row.num_failed, row.token_source) == ("ok", 0, "running usage")
    assert row.output_tokens == 6 * ASKED
    assert row.tpot_p50 == pytest.approx(TPOT, rel=0.1)
    assert row.ttft_p50 == pytest.approx(0.05, rel=0.2)


def test_a_server_that_counts_double_is_found_out(tmp_path: Path) -> None:
    row = sweep(tmp_path, Script(overcount=2.0), overrides=[OWN, "workload.ignore_eos=false"])
    assert row.recounted_share == pytest.approx(0.5)
    assert "token-counts-differ" in row.warnings
    requests = analysis.requests(tmp_path / "out")
    assert set(requests.recounted_tokens) == {ASKED}
    assert set(requests.output_tokens) == {2 * ASKED}


def test_the_answer_after_reasoning_has_a_time_of_its_own(tmp_path: Path) -> None:
    row = sweep(tmp_path, Script(reasoning=10, usage="running"), overrides=["backend.api=chat", OWN])
    assert row.ttft_p50 == pytest.approx(0.05, rel=0.2)
    assert row.answer_ttft_p50 == pytest.approx(0.05 + 10 * TPOT, rel=0.1)
    assert row.tpot_p50 == pytest.approx(TPOT, rel=0.1)
    assert (row.output_tokens, row.streamed_tokens, row.recounted_share) == (6 * ASKED, 6 * ASKED, 1.0)
    assert "hidden-tokens" not in row.warnings


# -- asked and got


def test_answers_that_ignore_ignore_eos_are_invalid_and_it_is_said_early(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = sweep(tmp_path, Script(tokens=8, finish="stop"), status=1)
    assert row.outcome == "invalid"
    assert "8.0 output tokens on average, not the 32.0" in row.reason
    assert "workload.ignore_eos=false" in row.reason
    assert pd.isna(row.output_throughput)
    assert row.finish_stop_share == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.index("warm-up: answers have 8.0 output tokens") < printed.index("[1/1")


@pytest.mark.slow
def test_answers_that_are_too_long_are_invalid(tmp_path: Path) -> None:
    row = sweep(tmp_path, Script(tokens=2 * ASKED), status=1)
    assert row.outcome == "invalid"
    assert "64.0 output tokens on average, not the 32.0" in row.reason


def test_answers_that_may_be_short_are_no_fault(tmp_path: Path) -> None:
    row = sweep(tmp_path, Script(tokens=8, finish="stop"), overrides=["workload.ignore_eos=false"])
    assert (row.outcome, row.output_length_mean, row.asked_output_tokens) == ("ok", 8, 6 * ASKED)
    assert pd.isna(row.output_length_ratio)
    assert "other-lengths" not in row.warnings


@pytest.mark.parametrize(
    ("tokens", "overrides"), [(31, []), (8, ["backend.ignores_eos=false"])], ids=["a little", "not sent"]
)
def test_other_lengths_are_a_warning(tokens: int, overrides: list[str], tmp_path: Path) -> None:
    row = sweep(tmp_path, Script(tokens=tokens, finish="stop"), overrides=overrides)
    assert row.outcome == "ok"
    assert row.output_length_ratio == pytest.approx(tokens / ASKED)
    assert "other-lengths" in row.warnings
    requests = analysis.requests(tmp_path / "out")
    assert set(requests.asked_output_tokens) == {ASKED}
    assert set(requests.output_tokens) == {tokens}


def test_a_content_filter_is_told(tmp_path: Path) -> None:
    row = sweep(tmp_path, Script(tokens=2, finish="content_filter"), overrides=["workload.ignore_eos=false"])
    assert row.finish_content_filter_share == 1
    assert "filtered-answers" in row.warnings


def test_prompts_that_engines_count_differently_are_told(tmp_path: Path) -> None:
    sweep(tmp_path, Script(prompt_tokens=16), Script(prompt_tokens=20))
    summary = pd.read_csv(tmp_path / "out" / "summary.csv")
    assert summary["warnings"].str.contains("unequal-inputs").all()


@pytest.mark.slow
def test_throughput_at_an_offered_rate_is_never_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load = ["load=constant", "load.rate=10"]
    short = ["workload.output_tokens=8", "workload.num_requests=20"]
    row = sweep(tmp_path, Script(), Script(), overrides=short, load=load)
    assert row.below_saturation
    assert "throughput-as-offered" in row.warnings
    assert "as offered, 10 requests/s" in report(tmp_path)
    points = pd.read_csv(tmp_path / "out" / "summary.csv")
    assert points.as_offered.all()
    assert points["ttft_p50_standing"].eq("best").any()
    assert points["output_throughput_standing"].isna().all()


@pytest.mark.slow
def test_an_open_loop_above_capacity_is_the_engines_own_throughput(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load = ["load=constant", "load.rate=200", "load.max_concurrency=4"]
    short = ["workload.output_tokens=8", "workload.num_requests=40"]
    row = sweep(tmp_path, Script(), Script(), overrides=short, load=load)
    assert not row.below_saturation
    assert "throughput-as-offered" not in row.warnings
    assert pd.read_csv(tmp_path / "out" / "summary.csv")["output_throughput_standing"].eq("best").any()


@pytest.mark.parametrize("source", ["final usage", "running usage"])
@pytest.mark.parametrize(("fixed_length", "streamed"), [(True, 32), (False, 20)])
def test_end_tokens_that_were_forced_are_tokens(fixed_length, streamed, source):
    """With ignore_eos a trained model goes on behind its end tokens, which are not in the text."""
    record = Record("r", "measured", 0.0, 0.0, 0.0, array("I", [1, 2]), array("H", [16, 16]))
    record.output_tokens = record.asked_output_tokens = 32
    record.token_source, record.recounted_tokens = source, 20
    settle(record, fixed_length)
    assert record.streamed_tokens == streamed
