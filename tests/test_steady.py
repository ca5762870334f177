"""The steady-state window: found where there is one, in the right place, and None where there is none."""

import heapq
from array import array

import numpy as np
import pytest

from sweep.numbers.chunks import Floats
from sweep.numbers.selection import measured
from sweep.numbers.steady import SLACK, in_flight, mser, settled, stationary, steady_window, turned_over
from sweep.numbers.summarise import summarise
from sweep.records import UNKNOWN, Record, Records


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
    assert row["output_throughput"] < row["steady_output_throughput"]  # type: ignore[operator]  # the drain is in it


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
