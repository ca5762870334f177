"""The search for users of a closed loop, on simulated deployments whose capacity long runs know."""

import numpy as np
import pytest

from benchmarks.capacity import Bench
from benchmarks.deployments import deployment
from sweep.search.capacity import LatencyBound, ProbeResult
from sweep.search.twin import Replay
from sweep.search.users import MOST_REPEATS, MOST_USERS, SharesOfBatches, UserCapacity, decisions


def search(answer, budget=1e6, earlier=None):
    """A search, at its end, of a deployment with this share of good requests by users."""
    proposer, random = UserCapacity([LatencyBound("ttft", 1.0)], budget), np.random.default_rng(1)
    if earlier:
        proposer.continue_from(earlier)
    while probe := proposer.ask():
        good = random.random(probe.requests) < answer(probe.users)
        latency = np.where(good, 0.5, 2.0)
        ones = np.ones(probe.requests, int)
        run = Replay(np.arange(probe.requests) / 1.0, ones, ones, latency, latency, latency, probe.users)
        proposer.tell(ProbeResult(probe, run, float(probe.requests)))
    return proposer


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda users: 0.999 if users <= 11 else 0.5, ("confirmed", 11, 11)),
        (lambda users: 0.999 if users <= 1 else 0.3, ("confirmed", 1, 1)),
        (lambda users: 1.0, ("above", MOST_USERS, 0)),
        (lambda users: 1.0 if users == 1 else 0.0, ("confirmed", 1, 1)),
        (lambda users: 0.0, ("impossible", 0, 0)),
        (lambda users: 0.4, ("impossible", 0, 0)),
    ],
)
def test_a_cliff_is_found_to_the_user(answer, expected):
    proposer = search(answer)
    claim = proposer.claim()
    assert (claim.status, claim.lower, claim.upper, claim.unit) == (*expected, "users")
    replayed = UserCapacity(proposer.bounds, proposer.budget)
    for measured in proposer.measured:
        assert replayed.ask() == measured.probe
        replayed.tell(measured)
    assert (replayed.ask(), replayed.claim()) == (None, claim)


def test_a_flat_curve_and_a_short_budget_give_intervals():
    flat = search(lambda users: 0.93 - 0.001 * users, budget=8000.0)  # 90% at 30 users
    assert flat.claim().status == "interval"
    assert flat.claim().lower <= 30 <= flat.claim().upper + 1
    assert max(flat._looks(probed.probe.users) for probed in flat.measured) <= MOST_REPEATS
    short = search(lambda users: 0.999 if users <= 11 else 0.5, budget=300.0).claim()
    assert short.lower <= 11
    assert short.upper in (0, *range(11, 16))
    assert short.seconds <= 330


@pytest.mark.slow
def test_an_interval_of_a_queue_holds_its_capacity():
    bench = Bench(deployment(108), [108, 3])
    proposer = UserCapacity(bench.simulated.bounds, 1200.0)
    while probe := proposer.ask():
        proposer.tell(bench.measure(probe))
    claim = proposer.claim()
    assert 10 <= claim.lower <= 11 <= claim.upper <= 12
    assert bench.clock < 1300


def test_requests_that_depend_on_each_other_decide_less():
    users, good = np.repeat([10.0, 12.0], 10), np.array([0.8, 1.0] * 10)
    batches = [SharesOfBatches(users, good, np.full(20, size)) for size in (40.0, 400.0)]
    assert [decisions(batch, np.array([10]), 0.8).tolist() for batch in batches] == [[0], [0]]
    assert decisions(SharesOfBatches(users, np.full(20, 0.9), np.full(20, 400.0)), np.array([10]), 0.8).tolist() == [1]
    assert decisions(SharesOfBatches(users[:3], good[:3], good[:3]), np.array([10]), 0.8).tolist() == [0]


@pytest.mark.parametrize(("probes", "first"), [(1, 4), (6, 11)])
def test_the_search_on_the_next_launch_begins_at_the_ends_of_a_lost_launch(probes, first):
    lost = search(lambda users: 0.999 if users <= 11 else 0.5)
    proposer = UserCapacity(lost.bounds, lost.budget)
    for measured in lost.measured[:probes]:
        proposer.tell(measured)
    following, chained = UserCapacity(lost.bounds, lost.budget), UserCapacity(lost.bounds, lost.budget)
    following.continue_from(proposer)
    chained.continue_from(following)
    assert following.ask() == chained.ask()
    assert following.ask().users == (proposer.failing if proposer.failing <= MOST_USERS else first)
    complete = search(lambda users: 0.999 if users <= 11 else 0.5, earlier=proposer)
    assert (complete.claim().status, complete.claim().lower) == ("confirmed", 11)
    assert all(measured.probe.users > 1 for measured in complete.measured), "one user was enough to know"
