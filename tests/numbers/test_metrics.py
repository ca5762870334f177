"""Every metric on hand-made streams, where the answer is known by pencil."""

import math
from array import array
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.statistics.intervals import PooledRequests
from sweep.base.records import UNKNOWN, Outcome, Phase, Record, Records
from sweep.node.verdict import judge_requests
from sweep.numbers import chunks
from sweep.numbers.chunks import tokens_per_bin, tokens_within
from sweep.numbers.quantile import statistics
from sweep.numbers.quantities.batches import batch_latency, batch_throughput
from sweep.numbers.quantities.goodput import goodput
from sweep.numbers.quantities.latency import itl, itl_token, service_e2el, service_ttft, tpot
from sweep.numbers.quantities.throughput import (
    concurrency_max,
    cost_per_million_tokens,
    output_throughput,
    peak_output_throughput,
)
from sweep.numbers.quantity import declared
from sweep.numbers.selection import Window, measured, succeeded, with_failures
from sweep.numbers.summarise import gaps, summarise
from sweep.numbers.vllm_flavour import vllm_flavour

Chunks = list[tuple[float, int]]  # arrival in s since the send, tokens


def record(
    sent: float,
    chunks: Chunks,
    *,
    scheduled: float | None = None,
    released: float | None = None,
    input_tokens: int = 10,
    output_tokens: int | None = None,
    phase: Phase = "measured",
    batch: int = UNKNOWN,
    error: str | None = None,
    ended: float | None = None,
) -> Record:
    scheduled = sent if scheduled is None else scheduled
    tokens = [count for _, count in chunks]
    return Record(
        f"r{sent}",
        phase,
        scheduled,
        scheduled if released is None else released,
        sent,
        array("I", [round(at * 1e6) for at, _ in chunks]),
        array("H", tokens),
        input_tokens,
        sum(tokens) if output_tokens is None else output_tokens,
        batch,
        "length",
        error,
        ended,
    )


def gather(*rows: Record) -> Records:
    records = Records()
    for row in rows:
        records.append(row)
    return records


A = record(0.25, [(1.0, 1), (1.5, 2), (2.5, 1)], scheduled=0.0)
B = record(2.25, [(0.5, 1)], scheduled=1.0, released=2.0, input_tokens=6)
FAILED = record(3.0, [(1.25, 1)], error="reset: by peer")
WARMUP = record(-5.0, [(1.0, 1), (3.0, 1)], phase="warmup")
ALL = gather(WARMUP, A, B, FAILED)
OF = measured(ALL)
NAN = math.nan


def function(name: str) -> Callable[..., Any]:
    return next(quantity.function for quantity in declared() if quantity.name == name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("service_ttft", [1.0, 1.0, 0.5, 1.25]),
        ("service_e2el", [3.0, 2.5, 0.5, 1.25]),
        ("ttft", [1.0, 1.25, 1.75, 1.25]),
        ("e2el", [3.0, 2.75, 1.75, 1.25]),
        ("slot_wait", [0.0, 0.0, 1.0, 0.0]),
        ("lag", [0.0, 0.25, 0.25, 0.0]),
        ("tpot", [2.0, 0.5, NAN, NAN]),  # one token has no time per token after the first
        ("tpot_e2e", [1.5, 2.75 / 4, 1.75, 1.25]),
    ],
)
def test_latencies_of_each_request(name: str, expected: list[float]) -> None:
    np.testing.assert_allclose(function(name)(ALL), expected, rtol=1e-12)


def test_without_a_schedule_latencies_count_from_the_send() -> None:
    """In a closed loop and in lockstep a late send delays the load, not the answer."""
    records = gather(
        record(0.25, [(1.0, 1), (3.0, 1)], scheduled=NAN, released=0.2),
        record(4.0, [(0.5, 1)], scheduled=NAN, released=3.3),
        record(9.0, [], scheduled=NAN, released=4.0, error="reset: by peer"),
    )
    for name, expected in [
        ("ttft", [1.0, 0.5, NAN]),
        ("e2el", [3.0, 0.5, NAN]),
        ("turnaround", [0.05, 0.7, 5.0]),
        ("slot_wait", [NAN] * 3),
        ("lag", [NAN] * 3),
    ]:
        np.testing.assert_allclose(function(name)(records), expected, rtol=1e-12, err_msg=name)
    row = summarise(records)
    assert row["turnaround_share"] == pytest.approx(0.75 / (0.75 + 3.5)), "of those that succeeded"
    assert row["offered_rate"] is row["lag_p99"] is row["slot_wait_mean"] is None
    assert records[0].scheduled is None
    row = summarise(gather(A, B))
    assert row["turnaround_share"] is row["turnaround_p50"] is None


def test_figures_of_sessions() -> None:
    """A session of three turns, one whose second turn failed, one that the duration cut, and a single request."""

    def turn(session: int, number: int, turns: int, due: float, sent: float, *answer: tuple[float, int]) -> Record:
        made = record(sent, list(answer), scheduled=due, error=None if answer else "reset: by peer")
        return replace(made, session=session, turn=number, session_turns=turns, cached_tokens=2 * session + number + 4)

    records = gather(
        turn(0, 0, 3, 0.5, 1.0, (0.5, 1), (1.5, 2)),
        turn(0, 1, 3, 3.0, 3.0, (0.25, 1), (0.5, 1)),
        turn(0, 2, 3, 4.0, 4.0, (0.5, 1), (1.0, 1)),
        turn(1, 0, 2, 1.0, 1.0, (0.75, 1), (1.75, 1)),
        turn(1, 1, 2, 4.0, 4.0),
        turn(2, 0, 2, 2.0, 2.0, (0.125, 1), (0.25, 1)),
        turn(3, 0, 1, 2.0, 2.0, (2.0, 1), (6.0, 1)),
    )
    row, durations = summarise(records), function("session_duration")(records, measured(records))
    np.testing.assert_allclose(durations, [4.5, math.inf, NAN])
    assert (row["num_sessions"], row["sessions_cut"], row["duration"]) == (3, 1, 7.0)
    assert row["sessions_per_hour"] == pytest.approx(3600 / 7)
    assert (row["first_turn_ttft_p50"], row["later_turn_ttft_p50"], row["later_turn_ttft_p99"]) == (0.75, 0.5, None)
    assert (row["first_turn_tpot_p50"], row["later_turn_tpot_p50"]) == (0.5, 0.5)
    assert row["later_turn_cached_share"] == pytest.approx((5 + 6) / 20)


def test_an_answer_in_one_chunk_has_no_time_per_token() -> None:
    """Not 0, which would be infinitely fast."""
    at_once = record(0.0, [(0.2, 0), (0.5, 8), (0.6, 0)])
    records = gather(at_once, record(1.0, [(0.5, 1), (1.0, 5)]), record(2.0, [(0.5, 1)]))
    np.testing.assert_array_equal(tpot(records), [NAN, 0.1, NAN])
    assert summarise(gather(at_once))["tpot_p50"] is None
    assert goodput(records, measured(records), {"tpot": 0.1}) == pytest.approx(2 / 2.5)


def test_gaps_between_chunks_and_per_token() -> None:
    answered = OF & succeeded(ALL)
    np.testing.assert_allclose((gaps(itl, ALL, answered) / 1e6), [0.5, 1.0])
    np.testing.assert_allclose((gaps(itl_token, ALL, answered) / 1e6), [0.25, 1.0])
    np.testing.assert_allclose((gaps(itl, ALL, np.ones(4, bool)) / 1e6), [2.0, 0.5, 1.0])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("duration", 4.0),  # from the send of A at 0.25 to the failed request's last token at 4.25
        ("output_throughput", 5 / 4),
        ("total_throughput", (5 + 16) / 4),
        ("request_throughput", 2 / 4),
        ("peak_output_throughput", 3),  # of A at 1.25 and 1.75, in the second after 1.25
        ("concurrency_max", 2),
        ("realised_rate", 2 / 2.75),
        ("offered_rate", 2 / 3.0),
        ("arrival_gap_cv", 0.625 / 1.375),  # gaps 2 and 0.75
    ],
)
def test_figures_of_a_trial(name: str, expected: float | None) -> None:
    assert function(name)(ALL, OF) == pytest.approx(expected, rel=1e-12)


def test_a_trial_lasts_until_the_last_request_was_given_up() -> None:
    """96 answers within 1 s, and 4 that hang until their time-out of 60 s: the server was not done in 1 s."""
    answers = [record(0.0, [(1.0, 60)], ended=99.0) for _ in range(96)]
    hung = [record(0.0, [], error="timeout_total: 60 s", ended=60.0) for _ in range(4)]
    row = summarise(gather(*answers, *hung, record(-9.0, [], phase="warmup", error="reset: ", ended=99.0)))
    assert row["duration"] == 60.0
    assert row["output_throughput"] == 96.0
    assert summarise(gather(*hung))["duration"] is None


@pytest.mark.parametrize(
    ("slo", "good"),
    [
        ({"ttft": 1.5}, 1),
        ({"ttft": 1.25}, 1),  # a bound is met when it is reached
        ({"tpot": 0.5}, 2),  # a one-token answer meets any bound on tpot
        ({"tpot": 0.4}, 1),
        ({"ttft": 2, "tpot": 0.5, "e2el": 2}, 1),
        ({"e2el": 1}, 0),
    ],
)
def test_goodput(slo: dict[str, float], good: int) -> None:
    assert goodput(ALL, OF, slo) == pytest.approx(good / 4)


def test_goodput_knows_its_words() -> None:
    with pytest.raises(ValueError, match=r"slo\.itl=1: unknown; expected one of ttft, tpot, e2el"):
        goodput(ALL, OF, {"itl": 1})


def test_cost() -> None:
    assert cost_per_million_tokens(3.6, 2, 100.0) == pytest.approx(20.0)  # 2 x 0.001 a second, 10,000 s
    assert cost_per_million_tokens(None, 1, 100.0) is None
    assert cost_per_million_tokens(3.6, 1, None) is None


def test_the_row() -> None:
    row = summarise(ALL, slo={"ttft": 1.5})
    assert (row["num_requests"], row["num_failed"], row["input_tokens"], row["output_tokens"]) == (3, 1, 16, 5)
    assert row["goodput"] == pytest.approx(0.25)
    assert (row["goodput_share"], row["timed_out_after"]) == (pytest.approx(1 / 3), None)
    assert (row["ttft_mean"], row["ttft_max"]) == (pytest.approx(1.5), pytest.approx(1.75))  # of the successes
    assert row["ttft_p50"] == pytest.approx(1.75)  # 1.25, 1.75 and the failed one
    assert row["ttft_p90"] is None
    assert (row["tpot_mean"], row["tpot_p99"]) == (pytest.approx(0.5), None)
    assert (row["itl_mean"], row["itl_p50"]) == (pytest.approx(0.75), pytest.approx(0.75))
    assert row["slot_wait_p99"] == pytest.approx(0.98)  # of all three: a failed request waited, too
    assert row["batch_latency_mean"] is None
    assert row["batch_throughput"] is None
    assert row["steady_method"] == "not sought"
    assert all(value is None for key, value in row.items() if key.startswith("steady_") and key != "steady_method")


def test_the_row_has_the_columns_of_the_design() -> None:
    columns = {"num_requests", "num_failed", "input_tokens", "output_tokens", "duration", "output_throughput"}
    columns |= {"total_throughput", "request_throughput", "peak_output_throughput", "concurrency_max", "goodput"}
    columns |= {"batch_throughput", "realised_rate", "arrival_gap_cv"}
    columns |= {"steady_begin", "steady_end", "steady_method", "steady_output_throughput", "steady_total_throughput"}
    for series in ("ttft", "tpot", "itl", "e2el", "lag", "slot_wait", "service_ttft"):
        for statistic in ("mean", "p50", "p90", "p95", "p99", "max"):
            columns |= {f"{series}_{statistic}", f"steady_{series}_{statistic}", f"batch_latency_{statistic}"}
    assert columns <= set(summarise(ALL))


# What is undefined is None, never zero --------------------------------------------------------------------------------


def test_no_quantile_lies_between_two_modes() -> None:
    """No request took 1.05 s; failed requests are a mode of their own."""
    modes = np.array([0.6] * 12 + [1.5] * 12)
    assert statistics(modes.copy(), (50,))["p50"] == 1.5
    assert PooledRequests(modes.reshape(1, 24)).quantile(0.5).value == 1.5
    near = np.linspace(1, 1.1, 24)
    assert statistics(near.copy(), (50, 90))["p90"] == pytest.approx(np.quantile(near, 0.9))
    assert statistics(np.array([1.0, 1.1, np.inf]), (50, 90)) == {"mean": 1.05, "p50": 1.1, "p90": None, "max": 1.1}


@pytest.mark.parametrize(
    "records",
    [
        Records(),
        gather(WARMUP),
        gather(FAILED, record(4.0, [], error="status: 503")),
        gather(record(0.0, [], error="connect: refused")),
        gather(record(0.0, [], output_tokens=0)),
    ],
    ids=["nothing", "warm-up only", "all failed", "no token", "an empty answer"],
)
def test_no_completion_is_no_figure(records: Records) -> None:
    row = summarise(records, slo={"ttft": 1}, window=Window(0.5, 1.0, "by hand"))
    zeros = {key for key, value in row.items() if value == 0 and value is not False}
    counts = {"num_requests", "num_failed", "input_tokens", "output_tokens", "streamed_tokens", "startup_share"}
    finishes = {f"finish_{name}_share" for name in ("stop", "length", "content_filter", "other")}
    assert zeros <= counts | finishes | {
        f"{prefix}{name}_{statistic}"  # of an empty answer even these are known
        for prefix in ("", "steady_")
        for name in ("lag", "slot_wait", "output_length")
        for statistic in ("mean", "p50", "p90", "p95", "p99", "max")
    }
    assert vllm_flavour(records)["output_throughput"] is None
    assert judge_requests(records).outcome is Outcome.INVALID


def test_unknown_counts_are_unknown_in_sum() -> None:
    records = gather(A, record(1.0, [(1.0, 1)], input_tokens=UNKNOWN))
    row = summarise(records)
    assert row["input_tokens"] is None
    assert row["total_throughput"] is None
    assert row["output_throughput"] is not None


def test_usage_counts_where_it_differs_from_the_chunks() -> None:
    """The server's usage is the count of tokens; the chunks are when they came."""
    records = gather(record(0.0, [(1.0, 1), (3.0, 1)], output_tokens=5))
    assert output_throughput(records, measured(records)) == pytest.approx(5 / 3)
    assert tpot(records)[0] == pytest.approx(2 / 2.5)  # two and a half came with the first chunk


# Chunks ---------------------------------------------------------------------------------------------------------------


def test_chunks_without_a_token_are_no_arrivals() -> None:
    """A role-only first event and a usage-only last one change nothing."""
    bare = gather(record(0.0, [(0.5, 1), (1.0, 1)]), record(1.0, [(0.25, 3)]), record(2.0, []))
    dressed = gather(
        record(0.0, [(0.1, 0), (0.5, 1), (0.7, 0), (1.0, 1), (1.1, 0)]),
        record(1.0, [(0.0, 0), (0.25, 3), (9.0, 0)]),
        record(2.0, [(1.0, 0)]),
    )
    assert summarise(dressed) == summarise(bare)


streams = st.lists(
    st.builds(
        lambda sent, gaps, tokens, error: record(
            sent, list(zip(np.cumsum(gaps).tolist(), tokens, strict=False)), error=error
        ),
        st.integers(0, 40).map(lambda eighths: eighths / 8),  # few values, so that ends meet beginnings
        st.lists(st.integers(0, 16).map(lambda eighths: eighths / 8), min_size=6, max_size=6),
        st.lists(st.integers(0, 3), max_size=6),
        st.none() | st.just("closed: early"),
    ),
    max_size=12,
)


@pytest.mark.slow
@given(streams, st.integers(1, 9))
def test_blocks_change_nothing(rows: list[Record], block: int) -> None:
    records, window = gather(*rows), Window(0.5, 3.0, "by hand")
    whole = summarise(records, window=window)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "BLOCK_CHUNKS", block)
        assert summarise(records, window=window) == whole


@given(streams)
def test_concurrency_max_is_what_counting_finds(rows: list[Record]) -> None:
    spans = []
    for row in rows:
        arrivals = [us / 1e6 for us, tokens in zip(row.chunk_us, row.chunk_tokens, strict=True) if tokens]
        if arrivals:
            spans.append((row.sent, row.sent + arrivals[-1]))
    counted = max((sum(begin <= at < end for begin, end in spans) for at, _ in spans), default=None)
    records = gather(*rows)
    assert concurrency_max(records, measured(records)) == counted


@given(streams)
def test_gaps_add_up(rows: list[Record]) -> None:
    records = gather(*rows)
    everyone = np.ones(len(rows), bool)
    spans = service_e2el(records) - service_ttft(records)
    assert (gaps(itl, records, everyone) / 1e6).sum() == pytest.approx(np.nansum(spans))
    tokens = sum(sum(row.chunk_tokens) for row in rows)
    assert tokens_per_bin(records, everyone, 0.0, 0.5, 40).sum() == tokens
    assert tokens_within(records, everyone, -1.0, 100.0) == tokens


def test_stamps_that_go_back_are_a_gap_of_zero() -> None:
    slightly = gather(record(0.0, [(0.5, 1), (0.4999, 1)]))
    assert (gaps(itl, slightly, np.ones(1, bool)) / 1e6).tolist() == [0.0]


# Lockstep batches -----------------------------------------------------------------------------------------------------

LOCKSTEP = gather(
    record(0.0, [(4.0, 2)], batch=0),
    record(0.5, [(9.5, 2)], batch=0),  # batch 0: 10 s, 4 tokens
    record(10.0, [(1.0, 1), (2.0, 1)], batch=1),
    record(10.0, [(1.0, 1), (4.0, 5)], batch=1),  # batch 1: 4 s, 8 tokens
    record(14.0, [(1.0, 4)], batch=2),
    record(14.0, [(2.0, 8)], batch=2),  # batch 2: 2 s, 12 tokens
    record(16.0, [(1.0, 1)], batch=3),
    record(16.0, [], batch=3, error="status: 500"),  # batch 3 did less work than asked
)


def test_batches() -> None:
    of = measured(LOCKSTEP)
    np.testing.assert_allclose(batch_latency(LOCKSTEP, of), [10, 4, 2, np.inf])
    assert batch_throughput(LOCKSTEP, of) == pytest.approx((24 + 1) / (16 + 1))
    row = summarise(LOCKSTEP)
    assert (row["batch_latency_mean"], row["batch_latency_p50"]) == (pytest.approx(16 / 3), 7.0)
    assert row["batch_latency_p90"] is None, "the slowest of four never ended"
    until = Records()
    for each in LOCKSTEP:
        until.append(replace(each, ended=46.0 if each.error else None))
    assert batch_throughput(until, of) == pytest.approx(25 / 46), "until the failed request was given up"


def test_first_batch_is_left_out_of_everything_when_asked() -> None:
    row = summarise(LOCKSTEP, discard_first_batch=True)
    assert row["batch_throughput"] == pytest.approx(21 / 7)
    assert row["batch_latency_mean"] == pytest.approx(3.0)
    assert (row["num_requests"], row["num_failed"], row["output_tokens"]) == (6, 1, 21)
    assert row["duration"] == pytest.approx(7.0)


# The window -----------------------------------------------------------------------------------------------------------


def test_steady_figures_by_pencil() -> None:
    """Window 2 to 6. Tokens after 2 and until 6: of P at 3, of Q at 4 and 6, of R at 5, of S and T at 5.5."""
    records = gather(
        record(1.0, [(0.5, 1), (2.0, 1)]),  # P: sent before, its last token at 3
        record(2.0, [(2.0, 1), (4.0, 2)]),  # Q: at 4 and 6, the very end
        record(3.0, [(2.0, 3)]),  # R: at 5
        record(4.0, [(1.5, 1), (3.0, 1)]),  # S: first token at 5.5, last at 7
        record(5.0, [(0.5, 1)]),  # T: at 5.5
        record(5.5, [(1.0, 1), (2.0, 1)]),  # U: nothing inside
    )
    row = summarise(records, window=Window(2.0, 6.0, "by hand"))
    assert (row["steady_begin"], row["steady_end"], row["steady_method"]) == (2.0, 6.0, "by hand")
    assert row["steady_output_throughput"] == pytest.approx((1 + 3 + 3 + 1 + 1) / 4)
    assert row["steady_request_throughput"] == pytest.approx(4 / 4)  # P, Q, R, T
    assert row["steady_total_throughput"] == pytest.approx((9 + 40) / 4)  # first tokens of Q, R, S, T
    assert row["steady_ttft_mean"] == pytest.approx((2 + 2 + 1.5 + 0.5 + 1) / 5)  # all that were sent in it: Q to U
    assert row["steady_e2el_mean"] == pytest.approx((4 + 2 + 3 + 0.5 + 2) / 5)
    assert row["steady_num_requests"] == 5
    assert row["steady_tpot_mean"] == pytest.approx((2 / 2 + 1.5 + 1) / 3)  # Q, S, U; R's tokens came at once
    assert row["steady_itl_mean"] == pytest.approx((2.0 + 1.5) / 2)  # Q's and S's begin in it; P's before, U's after
    assert row["steady_lag_mean"] == 0.0
    assert row["startup_share"] == pytest.approx(1 / 6.5)
    assert row["startup_transient"] is False


def test_long_start_is_flagged() -> None:
    records = gather(record(0.0, [(1.0, 1)]), record(8.0, [(2.0, 1)]))
    row = summarise(records, window=Window(5.0, 10.0, "by hand"))
    assert row["startup_share"] == pytest.approx(0.5)
    assert row["startup_transient"] is True


def test_a_failure_inside_the_window_does_not_end_it() -> None:
    records = gather(
        record(1.0, [(0.5, 1)]), record(2.0, [], error="status: 503"), record(3.0, [(0.5, 1)]), record(4.0, [(0.5, 1)])
    )
    row = summarise(records, window=Window(1.0, 5.0, "by hand"))
    assert row["steady_request_throughput"] == pytest.approx(3 / 4)
    assert (row["steady_num_requests"], row["steady_num_failed"]) == (4, 1)
    assert (row["steady_e2el_mean"], row["steady_e2el_p50"]) == (pytest.approx(0.5), pytest.approx(0.5))
    assert row["steady_e2el_p90"] is None


# Statistics -----------------------------------------------------------------------------------------------------------


def test_quantiles_are_linear_between_order_statistics() -> None:
    found = statistics(np.array([4.0, NAN, 1.0, 3.0, 2.0]), (50, 90, 99))
    assert found == {"mean": 2.5, "p50": 2.5, "p90": pytest.approx(3.7), "p99": pytest.approx(3.97), "max": 4.0}
    assert statistics(np.array([NAN]), (50, 90, 99)) == dict.fromkeys(["mean", "p50", "p90", "p99", "max"])
    micro = statistics(np.array([1_000_000, 4_000_000_000], np.uint32), (50,), 1e6)
    assert (micro["mean"], micro["p50"]) == (2000.5, 2000.5)  # no overflow of the small integers


@pytest.mark.parametrize(
    ("failed", "p50", "p99"), [(0, 50.0, 99.0), (1, 50.0, 99.0), (2, 50.0, None), (60, None, None)]
)
def test_a_percentile_that_falls_on_a_failure_does_not_exist(failed: int, p50: float | None, p99: float | None) -> None:
    """Of 0, 1, …, 100 the slowest fail: the p99 is the 100th of 101, so one may fail and two may not."""
    values = with_failures(np.arange(101.0), np.arange(101) > 100 - failed)
    found = statistics(values, (50, 99))
    assert (found["p50"], found["p99"]) == (pytest.approx(p50), pytest.approx(p99))
    assert found["max"] == 100 - failed
    assert found["mean"] == (100 - failed) / 2


def test_what_is_known_at_the_send_is_known_of_a_failure() -> None:
    late = record(2.0, [], scheduled=0.0, released=1.0, error="timeout_first_token: 3 s", ended=5.0)
    row = summarise(gather(late, *(record(float(at), [(0.5, 1), (1.0, 1)]) for at in range(9))))
    assert row["slot_wait_max"] == 1.0
    assert row["ttft_max"] == 0.5
    assert row["lag_max"] == 0.0, "the client's own delays are of the successes"
    assert row["timed_out_after"] == 3.0
    assert row["longest_gap_p50"] == 0.5
    assert row["longest_gap_p99"] is None


@pytest.mark.parametrize("length", [0.3, 1.0, 1.9, 7.3])
def test_a_peak_is_never_below_the_mean(length: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        at = np.sort(rng.uniform(0, length, 40)) ** rng.uniform(0.5, 2)
        records = gather(record(0.0, [(arrival, 1) for arrival in at]))
        everything = np.ones(1, np.bool_)
        peak, mean = peak_output_throughput(records, everything), output_throughput(records, everything)
        assert peak is not None
        assert mean is not None
        assert peak >= mean * (1 - 1e-9)


def test_the_servers_count_of_tokens_is_used_where_chunks_do_not_say_theirs() -> None:
    """Three chunks of which nothing is known but that the server counted 12 tokens in them."""
    records = gather(record(0.0, [(0.1, 1), (0.2, 1), (0.3, 1)], output_tokens=12))
    everything = np.ones(1, np.bool_)
    assert peak_output_throughput(records, everything) == pytest.approx(12 / 0.3)
    assert tokens_within(records, everything, 0.0, 0.2) == 8


def test_inputs_count_in_the_window_in_which_their_first_token_came() -> None:
    """One request is sent before the window and begins to answer in it, one is sent in it and answers after it."""
    early = record(0.0, [(1.5, 1), (1.6, 1)], input_tokens=100)
    late = record(1.8, [(0.5, 1), (0.6, 1)], input_tokens=1000)
    row = summarise(gather(early, late), window=Window(1.0, 2.0, "by hand"))
    assert row["steady_total_throughput"] == pytest.approx(100 + 2)
