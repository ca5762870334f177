"""The twin's queue, and the search that is told its probes: what it claims of deployments whose capacity is known."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.capacity import Bench
from benchmarks.deployments import deployment
from sweep.search import capacity
from sweep.search.capacity import Capacity, CapacityQuestion, LatencyBound, ProbeResult
from sweep.search.twin import Costs, Limits, Replay, Requests, run_queue


def requests(inputs, outputs, users=0):
    lengths = np.array([inputs, outputs])
    return Requests(np.zeros(len(inputs)), *lengths, users)


@pytest.mark.parametrize(
    ("limits", "ttft", "e2el"),
    [
        (Limits(), [0.3, 0.3], [0.54, 0.54]),  # both prompts in one step
        (Limits(running=1), [0.2, 0.62], [0.42, 0.84]),  # one after another
        (Limits(step_tokens=10), [0.2, 0.41], [0.53, 0.64]),  # the second prompt stalls the first answer
    ],
)
def test_a_queue_of_two_by_hand(limits, ttft, e2el):
    run = run_queue(Costs(0.1, 0.01, 0.0, 0.01), limits, requests([10, 10], [3, 3]))
    assert run.ttft == pytest.approx(ttft)
    assert run.e2el == pytest.approx(e2el)


def test_preempted_requests_are_computed_again():
    full = run_queue(Costs(0.1, 0.0, 0.0, 0.0), Limits(), requests([10] * 4, [20] * 4))
    tight = run_queue(Costs(0.1, 0.0, 0.0, 0.0), Limits(cached_tokens=60), requests([10] * 4, [20] * 4))
    assert full.e2el == pytest.approx([2.0] * 4)
    assert tight.e2el[0] == pytest.approx(2.0, abs=0.11)
    assert tight.e2el[3] > 2.5
    assert np.isfinite(tight.e2el).all()


def test_a_closed_loop_sends_when_an_answer_has_ended():
    run = run_queue(Costs(0.1, 0.0, 0.0, 0.0), Limits(), requests([1] * 6, [10] * 6, users=2))
    assert run.arrivals == pytest.approx([0, 0, 1, 1, 2, 2])


def arrivals(count, seed):
    return np.sort(np.random.default_rng(seed).random(count)) * count


def search(bounds=None, drift=0.0, **settings):
    """Our search, at its end, on a deployment whose capacity is 18.75 requests/s."""
    bench = Bench(deployment(5002, drift), [1])
    settings = {"shortest": 0.0, "limits": bench.simulated.limits} | settings
    settings["lengths"] = lambda count, seed: bench.simulated.lengths(count, np.random.default_rng(seed))
    proposer = Capacity(CapacityQuestion(bounds or bench.simulated.bounds, arrivals, **settings))
    while probe := proposer.ask():
        proposer.tell(bench.measure(probe))
    return proposer


@pytest.fixture(autouse=True)
def short_long_runs(monkeypatch):
    monkeypatch.setattr(capacity, "LONG_RUN", 2000)


@pytest.mark.slow
def test_the_interval_holds_the_capacity_and_equal_rows_give_equal_claims():
    proposer, truth = search(), 18.75
    claim = proposer.claim()
    assert claim.status == "confirmed"
    assert 0.93 * truth < claim.lower < 1.02 * truth
    assert claim.upper > 0.98 * truth
    replayed = Capacity(proposer.question)
    for measured in proposer.measured:
        assert replayed.ask() == measured.probe
        replayed.tell(measured)
    assert replayed.ask() is None
    assert replayed.claim() == claim


@pytest.mark.parametrize(
    ("bounds", "status"),
    [
        ([LatencyBound("ttft", 1e-4)], "impossible"),
        ([LatencyBound("tpot", 10.0)], "above"),
    ],
)
def test_bounds_that_none_or_all_meet(bounds, status):
    proposer = search(bounds)
    claim = proposer.claim()
    assert claim.status == status
    if status == "above":
        assert 0.9 * claim.upper < claim.lower <= claim.upper == pytest.approx(proposer.throughput)
    else:
        assert (claim.lower, claim.upper, claim.probes) == (0, 0, 1)


@pytest.mark.slow
def test_a_deployment_that_becomes_slower_is_noticed():
    claim = search(drift=0.1).claim()
    assert claim.status == "drift"
    assert claim.ended == "the deployment became slower while it was measured"
    assert claim.lower < 18.75


def four_lanes(probe, random, slower=1.0):
    """An engine unlike the twin: a request has one of four lanes for 0.2 s, half of it to the first token."""
    service = 0.2 * slower
    arrivals = np.cumsum(random.exponential(1 / probe.rate, probe.requests)) if probe.rate else np.zeros(probe.requests)
    lanes, users, waits = [0.0] * 4, [0.0] * probe.users, []
    for i, due in enumerate(arrivals):
        arrivals[i] = due = users.pop(0) if users else due
        start = max(due, lanes.pop(0))
        lanes = sorted([*lanes, start + service])
        users = sorted([*users, start + service]) if probe.users else users
        waits.append(start - due)
    ttft, lengths = np.array(waits) + service / 2, np.full(probe.requests, 11)
    tpot = random.normal(0.05 * service, 1e-5, probe.requests)
    run = Replay(arrivals, lengths, lengths, ttft, tpot, ttft + service / 2, probe.users)
    return ProbeResult(probe, run, float(np.max(run.arrivals + run.e2el)))


def told(probes, failing=(), share=1.1):
    """The search after so many probes of the lanes, of whose requests this share failed in those that are failing."""
    proposer, random = Capacity(question()), np.random.default_rng(1)
    while (number := len(proposer.measured)) < probes and (probe := proposer.ask()):
        measured = four_lanes(probe, random)
        failed = random.random(measured.probe.requests) < share * (number in failing)
        latencies = {name: np.where(failed, np.inf, getattr(measured.run, name)) for name in ("ttft", "tpot", "e2el")}
        proposer.tell(replace(measured, run=replace(measured.run, **latencies)))
    return proposer


def question(*bounds):
    bounds = bounds or [LatencyBound("ttft", 0.4)]
    return CapacityQuestion(bounds, arrivals, lambda count, seed: (np.full(count, 11),) * 2, budget=480.0)


@pytest.mark.parametrize(("lost_after", "kept"), [(0, False), (1, False), (4, True), (6, True)])
def test_the_search_on_the_next_launch_begins_with_what_a_lost_launch_showed(lost_after, kept):
    lost, random = told(lost_after), np.random.default_rng(3)
    lost.estimate *= 1.2  # it sustained more than its twin
    following, chained = Capacity(question()), Capacity(question())
    following.continue_from(lost)
    chained.continue_from(following)  # a launch that was lost before its first probe has nothing to add
    assert following.ask() == chained.ask()
    assert (following.ask().requests == 5) == (lost_after == 0), "a single request is tried once"
    if not kept:
        return
    saturated = four_lanes(following.ask(), random, slower=1.25)
    following.tell(saturated)
    probe = following.ask()
    assert saturated.probe.users in {each.probe.users for each in lost.measured}
    assert (probe.users, following._open_probes) == (0, []), "the saturating users and the fit are known"
    assert probe.rate == pytest.approx(lost.estimate / 1.25, rel=0.06), "this launch is slower"
    assert following.claim().probes == 1
    following.tell(four_lanes(probe, random, slower=1.25))
    assert len(following._open_probes) == 1


def test_probes_begin_no_lower_than_a_light_rate_that_met_the_bounds(monkeypatch):
    monkeypatch.setattr(Capacity, "_capacity_of_twin", lambda *_: 0.4)  # a twin that expects every request to be slow
    proposer = told(4)
    assert proposer.ask().rate == proposer.measured[3].probe.rate == pytest.approx(9, rel=0.05)


def test_both_ends_are_apart_by_what_the_twin_does_not_know():
    proposer = told(5)
    proposer.below = proposer.above = 0.0
    proposer.floor, proposer.unlike, proposer.saturated, proposer.failing = 0.03, False, False, np.inf
    ends = proposer.claim().lower, proposer.claim().upper
    assert ends == pytest.approx((proposer.estimate * np.exp(-0.044), proposer.estimate * np.exp(0.03)))


def test_so_many_requests_in_flight_show_that_a_rate_is_too_high():
    proposer = told(5)
    probe = proposer.ask()
    most = proposer.users + 0.4 * proposer.throughput + 0.2 * probe.requests
    assert [proposer.is_hopeless(probe, round(most + more), 9.0) for more in (-1, 1)] == [False, True]
    assert not proposer.is_hopeless(probe, 10_000, 0.7), "no request had time enough"
    assert not proposer.is_hopeless(proposer.measured[1].probe, 10_000, 9.0), "a closed loop waits"
    proposer.question = question(LatencyBound("tpot", 0.4))
    assert not proposer.is_hopeless(probe, 10_000, 9.0), "a queue does not slow down decoding"


@pytest.mark.slow
def test_probes_bound_the_capacity_where_the_twin_is_wrong():
    claim, truth = told(100).claim(), 16.85
    assert 0.65 * truth < claim.lower < 1.05 * truth < 1.1 * claim.upper < 1.1 * 20.1
    assert (claim.status, claim.seconds < 1.1 * 480) == ("interval", True)


@pytest.mark.parametrize(("probes", "load"), [(0, "1 user"), (1, "32 users"), (2, "128 users"), (3, "9 requests/s")])
def test_a_search_ends_where_all_requests_fail(probes, load):
    proposer = told(probes + 1, [probes])
    assert proposer.ask() is None
    claim = proposer.claim()
    assert (claim.status, claim.lower, claim.ended) == ("interval", 0, f"all requests failed at {load}")


def test_a_rate_at_which_all_requests_failed_is_no_lower_end():
    proposer = told(8)
    proposer.phase, proposer.claimed_rate = "confirm", 9.5
    probe = proposer.ask()
    measured = four_lanes(probe, np.random.default_rng(2))
    lost = {name: np.full(probe.requests, np.inf) for name in ("ttft", "tpot", "e2el")}
    proposer.tell(replace(measured, run=replace(measured.run, **lost)))
    assert (proposer.claim().lower, proposer.claim().upper) == (0, 9.5)


def test_failed_requests_leave_the_twin_finite():
    proposer = told(5, range(1, 5), 0.6)
    assert np.isfinite([*proposer.twin.costs, proposer.estimate]).all()


@pytest.mark.parametrize(("probes", "upper", "throughput"), [(1, 0, None), (2, 0, 20), (3, 20, 20)])
def test_a_throughput_bounds_the_capacity_only_once_it_is_saturated(probes, upper, throughput):
    proposer = told(probes)
    assert proposer.claim().upper == pytest.approx(upper, rel=0.05)
    assert proposer.most_throughput == (throughput and pytest.approx(throughput, rel=0.05))
