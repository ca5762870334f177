"""The steady-state window: found in the right place, and None without one."""

import heapq
import math
import re
from array import array
from dataclasses import replace

import numpy as np
import pytest

from sweep.base.records import UNKNOWN, Record, Records
from sweep.numbers.chunks import Floats
from sweep.numbers.selection import Window, measured
from sweep.numbers.steady import SLACK, in_flight, mser, settled, stationary, steady_window, turned_over
from sweep.numbers.summarise import summarise
from sweep.numbers.warnings import trial_warnings, warning_codes


def record(sent: float, arrivals: Floats, batch: int = UNKNOWN, error: str | None = None) -> Record:
    stamps = array("I", [round((at - sent) * 1e6) for at in arrivals])
    ones = array("H", [1] * len(stamps))
    return Record(f"{sent}", "measured", sent, sent, sent, stamps, ones, 10, len(stamps), batch, "length", error)


def closed_loop(
    users: int, count: int, tokens: int, itl: float = 0.02, slow_start: float = 0.0, seed: int = 0
) -> Records:
    """Requests of about `tokens` tokens; before `slow_start` s a token takes four times as long."""
    rng = np.random.default_rng(seed)
    records, free = Records(), [0.0] * users
    for _ in range(count):
        sent = heapq.heappop(free)
        gaps = itl * rng.uniform(0.8, 1.2, int(rng.uniform(0.6, 1.4) * tokens))
        slow = sent + 4 * np.cumsum(gaps) < slow_start
        arrivals = sent + np.cumsum(np.where(slow, 4, 1) * gaps)
        records.append(record(sent, arrivals))
        heapq.heappush(free, arrivals[-1] + 1e-4)
    return records


def open_loop(due: Floats, length: float, tokens: int = 20) -> Records:
    records = Records()
    for sent in due:
        records.append(record(sent, sent + np.linspace(length / tokens, length, tokens)))
    return records


# On whole trials ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_closed_loop_loses_its_first_round_and_its_drain(seed: int) -> None:
    records = closed_loop(users=16, count=320, tokens=50, seed=seed)
    window = steady_window(records)
    assert window.begin is not None
    assert window.end is not None
    assert "MSER-5" in window.method
    last_send = max(records.sent)
    assert 0.6 < window.begin < 0.25 * last_send  # a request takes 1 s on average
    assert 0.75 * last_send < window.end <= last_send
    row = summarise(records, window=window)
    assert row["steady_output_throughput"] == pytest.approx(16 / 0.02, rel=0.02)
    assert row["output_throughput"] < row["steady_output_throughput"]


def test_slow_start_is_cut_and_flagged() -> None:
    """Four times slower for the first 10 of some 29 s: whole-run figures are wrong, and said to be."""
    records = closed_loop(users=8, count=160, tokens=50, slow_start=10.0)
    window = steady_window(records)
    assert window.begin is not None
    assert 9.0 < window.begin < 14.0
    row = summarise(records, window=window)
    assert row["startup_transient"] is True
    assert row["steady_output_throughput"] == pytest.approx(8 / 0.02, rel=0.03)


def test_one_user() -> None:
    window = steady_window(closed_loop(users=1, count=60, tokens=30))
    assert window.begin is not None
    assert window.begin < 5


@pytest.mark.parametrize("seed", range(4))
def test_poisson_arrivals(seed: int) -> None:
    due = np.cumsum(np.random.default_rng(seed).exponential(1 / 20, 2000))
    window = steady_window(open_loop(due, length=2.0))
    assert window.begin is not None
    assert window.end is not None
    assert 1.0 < window.begin < 40
    assert window.end <= due[-1]


@pytest.mark.parametrize(
    "due",
    [np.sqrt(np.linspace(0, 100**2, 2000)), 100 - np.sqrt(np.linspace(100**2, 0, 2000))],
    ids=["rising", "falling"],
)
def test_a_ramp_has_no_steady_state(due: Floats) -> None:
    window = steady_window(open_loop(due, length=2.0))
    assert (window.begin, window.end, window.method) == (None, None, "none: no steady state detected")


def test_an_overloaded_open_loop_has_no_steady_state() -> None:
    """20 requests/s to an engine that serves 10/s: tokens flow evenly, but more and more are in flight."""
    due = np.arange(1000) / 20
    records = Records()
    for index, sent in enumerate(due):
        begun = max(sent, index / 10)
        records.append(record(sent, begun + np.linspace(0.05, 1, 20)))
    assert steady_window(records).begin is None


def test_short_and_failed_runs_have_none_and_say_why() -> None:
    assert steady_window(Records()).method == "none: no request succeeded"
    failed = Records()
    failed.append(record(0.0, np.array([1.0]), error="reset: by peer"))
    assert steady_window(failed).method == "none: no request succeeded"
    once = Records()
    for _ in range(8):
        once.append(record(0.0, np.linspace(0.1, 1, 10)))
    assert "before the load had turned over" in steady_window(once).method
    few = closed_loop(users=2, count=6, tokens=30)
    assert steady_window(few).method.endswith("are fewer than 500")
    assert steady_window(few).begin is None


def test_failed_requests_do_not_break_it() -> None:
    records = closed_loop(users=16, count=320, tokens=50)
    for index in range(0, 320, 40):
        records.error[index] = "reset: by peer"
    records.append(record(5.0, np.array([]), error="connect: refused"))
    assert steady_window(records).begin is not None


# The tail -------------------------------------------------------------------------------------------------------------


def slow_tail(users: int, count: int, share: float, seed: int, factor: float = 20.0) -> Records:
    """Requests of 0.25 s, of which a share takes `factor` times as long."""
    rng = np.random.default_rng(seed)
    records, free = Records(), [0.0] * users
    for _ in range(count):
        sent = heapq.heappop(free)
        times = (0.1 + 0.01 * np.arange(16)) * rng.uniform(0.95, 1.05) * (factor if rng.random() < share else 1)
        records.append(record(sent, sent + times))
        heapq.heappush(free, sent + times[-1] + 1e-4)
    return records


@pytest.mark.parametrize(("users", "count"), [(32, 320), (64, 1000), (24, 600), (8, 600), (16, 800)])
def test_a_window_does_not_leave_out_the_tail(users: int, count: int) -> None:
    """2 % of answers take 20 times as long: the p99 is 5 s. A window without them would have one of 0.26 s."""
    found = []
    for seed in range(8):
        records = slow_tail(users, count, 0.02, seed)
        row = summarise(records, window=steady_window(records))
        if row["steady_begin"] is None:
            assert {value for name, value in row.items() if name.startswith("steady_") and name != "steady_method"} == {
                None
            }
            continue
        found.append((row["steady_e2el_p99"], row["e2el_p99"]))
        assert row["steady_end"] - row["steady_begin"] >= max(5 * row["e2el_p90"], row["e2el_max"])  # type: ignore
    # By chance a run may have fewer than 1 % of slow answers; then its own p99 does not know of them either.
    assert all(steady > whole / 2 for steady, whole in found), found
    assert sum(steady > 2.5 for steady, _ in found) >= 0.75 * len(found) - 1
    assert bool(found) is (users < 32), "a run shorter than its slowest requests has no steady state"


def test_a_window_is_as_long_as_five_slow_requests() -> None:
    """15 % of answers take 2 s, and the load turns over in 0.5 s: 7 s after that are too short, 30 are not."""
    short, long = (slow_tail(8, count, 0.15, 0, factor=8.0) for count in (100, 700))
    assert re.search(r"shorter than 5 times the p90 of e2el, 2\.\d+ s$", steady_window(short).method)
    assert steady_window(long).begin is not None


def test_a_window_with_too_many_failures_is_none() -> None:
    records = closed_loop(users=16, count=320, tokens=50)
    for index in range(0, 320, 9):
        records.error[index] = "reset: by peer"
    reason = "more than 10% of the requests failed or were never sent, so that e2el has no p90"
    assert steady_window(records).method == f"none: {reason}"


def test_requests_that_hang_are_no_cooling_down() -> None:
    """From 60 % of the run on, half of the users wait until they give up: the load is as high as before."""
    records, hung = closed_loop(users=16, count=480, tokens=50), Records()
    at = 0.6 * max(records.sent)
    for index, one in enumerate(records):
        stuck = one.sent > at and index % 2 == 0
        lost = {"chunk_us": array("I"), "chunk_tokens": array("H"), "error": "timeout_first_token: 9 s"}
        hung.append(replace(one, **lost, ended=one.sent + 9) if stuck and index < 460 else one)
    window = steady_window(hung)
    assert window.begin is None, window


def window_of(begin: float, end: float) -> Window:
    return Window(begin, end, "by hand")


def sent_every(gap: float, latencies: Floats) -> Records:
    records = Records()
    for index, latency in enumerate(latencies):
        records.append(record(index * gap, index * gap + np.linspace(latency / 2, latency, 4)))
    return records


@pytest.mark.parametrize(
    ("change", "expected"), [(np.linspace(1, 1.5, 200), 1.2), (np.repeat([1.0, 0.7], 100), 0.7), (np.ones(200), None)]
)
def test_drift_within_the_window_is_measured(change: Floats, expected: float | None) -> None:
    records = sent_every(0.1, change * np.random.default_rng(0).uniform(0.9, 1.1, 200))
    row = summarise(records, window=window_of(0.0, 20.0))
    assert row["steady_drift"] == (expected and pytest.approx(expected, rel=0.05))
    assert row["steady_drift_after"] is None


def test_drift_after_the_window_is_measured() -> None:
    """A tail of 20 % that begins after the window does not change the median."""
    rng = np.random.default_rng(0)
    latencies = rng.uniform(0.9, 1.1, 300)
    even = summarise(sent_every(0.1, latencies), window=window_of(0.0, 20.0))
    assert (even["steady_drift"], even["steady_drift_after"]) == (None, None)
    latencies[200::5] *= 4
    row = summarise(sent_every(0.1, latencies), window=window_of(0.0, 20.0))
    assert row["steady_drift_after"] == pytest.approx(4 / 1.08, rel=0.1)
    assert "drift-after-steady-state" in warning_codes({**row, "outcome": "ok", "trial_id": "t"})


@pytest.mark.slow
def test_an_even_trial_seldom_seems_to_drift() -> None:
    rng, drifted = np.random.default_rng(0), 0
    for _ in range(200):
        records = sent_every(0.1, rng.lognormal(0, 0.5, 150))
        row = summarise(records, window=window_of(0.0, 10.0))
        drifted += (row["steady_drift"] is not None) or (row["steady_drift_after"] is not None)
    assert drifted <= 10


def raised(records: Records) -> dict[str, str]:
    """Return the warnings about a trial of these records, in its steady state if there is one: code -> message."""
    row = summarise(records, window=steady_window(records), open_loop=not np.isnan(records.scheduled).any())
    return {each.code: each.message for each in trial_warnings({**row, "outcome": "ok", "trial_id": "t"})}


@pytest.mark.parametrize(
    "factors",
    [np.linspace(1, 1.85, 120), np.repeat([0.5, 1.0], [36, 84]), np.repeat([1.0, 1.4], [84, 36])],
    ids=["slower and slower", "turbo at the start", "slower at the end"],
)
def test_a_trial_too_short_for_a_window_is_tested_as_a_whole(factors: Floats) -> None:
    records = sent_every(0.1, factors * np.random.default_rng(0).uniform(0.95, 1.05, 120))
    records.scheduled[:] = array("d", [math.nan] * len(records))
    warnings = raised(records)
    assert "drift-over-trial" in warnings
    assert re.search(r"no steady state: .*requests may show one", warnings["no-steady-state"])


def queue(load: float, slots: int, count: int, poisson: bool = True, seed: int = 0) -> Records:
    """An open loop at this share of the capacity of some slots, whose service takes 1 s."""
    gaps = np.random.default_rng(seed).exponential(1, count) if poisson else np.ones(count)
    records, free = Records(), [0.0] * slots
    for due in np.cumsum(gaps / (load * slots)):
        begin = max(due, heapq.heappop(free))
        heapq.heappush(free, begin + 1.0)
        records.append(record(due, begin + np.linspace(0.2, 1.0, 16)))
    return records


@pytest.mark.parametrize(("load", "slots", "count", "poisson"), [(1.09, 12, 110, False), (1.05, 16, 1000, True)])
def test_the_queue_of_an_overloaded_open_loop_is_severe(load: float, slots: int, count: int, poisson: bool) -> None:
    records = queue(load, slots, count, poisson)
    assert "growing-queue" in raised(records)
    assert "throughput-as-offered" not in raised(records)
    assert "the queue grows" in steady_window(records).method


@pytest.mark.slow
@pytest.mark.parametrize(
    ("load", "count", "fewest", "most"), [(0.7, 64, 0, 2), (0.7, 256, 0, 2), (1.2, 64, 22, 40), (1.1, 256, 34, 40)]
)
def test_a_queue_is_said_to_grow_where_it_does(load: float, count: int, fewest: int, most: int) -> None:
    """Of 40 trials; docs/measurements/growing_queue.md has more."""
    flagged = sum("growing-queue" in raised(queue(load, 16, count, seed=seed)) for seed in range(40))
    assert fewest <= flagged <= most


# Lockstep -------------------------------------------------------------------------------------------------------------


def lockstep(latencies: list[float]) -> Records:
    records, now = Records(), 0.0
    for batch, latency in enumerate(latencies):
        for share in (0.5, 1.0):
            records.append(record(now, now + latency * np.linspace(share / 10, share, 10), batch))
        now += latency
    return records


def test_lockstep_window_is_whole_batches() -> None:
    """Two slow batches first (8 s), then eighteen of 1 s with little noise."""
    noise = np.random.default_rng(0).uniform(0.98, 1.02, 18)
    latencies = [5.0, 3.0, *noise.tolist()]
    window = steady_window(lockstep(latencies))
    assert window.method == "MSER over batches"
    assert window.begin == pytest.approx(8.0)
    assert window.end == pytest.approx(sum(latencies))
    row = summarise(lockstep(latencies), window=window)
    assert row["steady_output_throughput"] == pytest.approx(18 * 20 / noise.sum())
    assert row["steady_e2el_mean"] == pytest.approx(0.75 * noise.mean())


def test_lockstep_without_noise_keeps_everything() -> None:
    window = steady_window(lockstep([1.0] * 12))
    assert (window.begin, window.end) == (pytest.approx(0.0), pytest.approx(12.0))


def test_few_batches_have_none() -> None:
    assert steady_window(lockstep([1.0] * 9)).method == "none: 9 whole batches are fewer than 10"


def test_batches_that_get_slower_and_slower_have_none() -> None:
    assert steady_window(lockstep([1.0 + 0.1 * i for i in range(30)])).begin is None


# The parts ------------------------------------------------------------------------------------------------------------


def test_mser_by_pencil() -> None:
    """Means 9, 1, 2, 1, 2, 1 (of one each): e(0) = (var 7.89)/6, e(1) = 0.24/5: cut one."""
    assert mser(np.array([9.0, 1, 2, 1, 2, 1]), means_of=1) == 1
    assert mser(np.array([1.0, 2, 1, 2, 1, 2]), means_of=1) == 0
    assert mser(np.repeat([9.0, 1, 2, 1, 2, 1], 5), means_of=5) == 5
    assert mser(np.full(50, 3.0)) == 0
    assert mser(np.linspace(2, 0, 40) ** 2, means_of=1) == 20  # never beyond the half: the test for drift decides


def test_mser_leaves_a_quiet_stretch_alone() -> None:
    """The rule proper would cut half of this; nothing in it is a transient."""
    rng = np.random.default_rng(3)
    values = np.concatenate([rng.normal(100, 10, 300), rng.normal(100, 8, 200)])
    assert mser(values, slack=2.0) <= 25
    assert mser(np.array([9.0, 1, 2, 1, 2, 1]), means_of=1, slack=2.0) == 1


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_stationary_series_seldom_fail_the_test(correlation: float) -> None:
    rng, failed = np.random.default_rng(0), 0
    for _ in range(300):
        noise = rng.normal(size=400)
        values = np.empty(400)
        values[0] = noise[0]
        for index in range(1, 400):
            values[index] = correlation * values[index - 1] + noise[index]
        failed += not stationary(5 + values, typical=round((1 + correlation) / (1 - correlation)))
    assert failed / 300 < 0.1


@pytest.mark.parametrize("trend", [0.5, 1.0])
def test_drift_is_seen(trend: float) -> None:
    rng = np.random.default_rng(0)
    seen = [not stationary(np.linspace(1, 1 + trend, 400) + rng.normal(0, 0.3, 400), 10) for _ in range(100)]
    assert np.mean(seen) > 0.95


def test_a_drift_that_does_not_matter_is_let_pass() -> None:
    assert stationary(np.linspace(100, 104, 400), typical=1)  # 2 % from half to half, without any noise
    assert not stationary(np.linspace(100, 130, 400), typical=1)


def test_every_series_must_be_settled() -> None:
    level = 1 + 0.01 * np.sin(np.arange(500))
    ramp = np.linspace(1, 3, 500) + 0.01 * np.cos(np.arange(500))
    late = np.where(np.arange(500) < 100, 0.1, 1.0) + 0.01 * np.sin(np.arange(500))
    assert settled([level], 5, 1) == slice(0, 500)
    assert settled([level, late], 5, 1) == slice(100, 500)
    assert settled([level, late[::-1]], 5, 1, load=late[::-1]) == slice(0, 400)
    assert settled([level, ramp], 5, 1) is None


def test_slowing_down_under_the_same_load_is_not_cooling_down() -> None:
    """To cut it off would leave the fast part and flatter the engine."""
    steps = np.where(np.arange(500) < 350, 1.0, 0.5) + 0.01 * np.sin(np.arange(500))
    load = 16 + 0.01 * np.sin(np.arange(500))
    assert settled([steps, load], 5, 1, load=load) is None
    both = settled([steps, steps], 5, 1, load=steps)  # here the load falls too, which is cooling down
    assert both is not None
    assert 345 <= both.stop <= 365
    backlog = 16 * (2 - steps)  # a queue that builds up at the end is not cut off either
    assert settled([backlog], 5, 1, load=backlog) is None


def test_in_flight_by_pencil() -> None:
    """In flight from 0 to 2 and from 1 to 4: means of the seconds 1, 2, 1, 1, 0; of half a second across an end 1.5."""
    records = Records()
    records.append(record(0.0, np.array([0.5, 2.0])))
    records.append(record(1.0, np.array([4.0])))
    records.append(record(9.0, np.array([]), error="connect: refused"))
    of = measured(records)
    np.testing.assert_allclose(in_flight(records, of, np.arange(6.0)), [1, 2, 1, 1, 0], atol=1e-12)
    np.testing.assert_allclose(in_flight(records, of, np.array([1.75, 2.25])), [1.5])


def test_turn_over_by_pencil() -> None:
    """Two users, requests of 1 s: two in flight, and the second one ends at 1."""
    records = Records()
    for start in range(5):
        for _ in range(2):
            records.append(record(float(start), np.array([start + 1.0])))
    assert turned_over(records, measured(records)) == pytest.approx(1.0)


def test_a_slow_transient_is_cut_by_the_strict_rule_where_the_lenient_one_leaves_drift() -> None:
    """The lenient rule keeps all of a small transient; what is left drifts, so the rule proper cuts."""
    time = np.arange(400)
    series = 1 + 0.3 * np.exp(-time / 100) + 0.05 * np.random.default_rng(0).standard_normal(time.size)
    assert mser(series, slack=SLACK) == 0
    assert not stationary(series, 5)
    assert settled([series], means_of=5, typical=5) == slice(175, 400)
