"""What a plan will take and cost: known answers from a made-up history, and honest words where there is none."""

from types import SimpleNamespace

import pytest

from sweep.config import Settings
from sweep.estimate import Assumed, History, estimate, kind_of
from sweep.packing import Node
from sweep.plan import Deployment, Plan, Trial

HARDWARE = {"name": "l4", "platform": "cuda", "accelerator": "L4", "price_per_hour": 3.6}
ONE_NODE = [Node("a", 2, 16, ("L4",), "a")]


def trial(trial_id, size):
    load = SimpleNamespace(name="batch", batch_size=size)
    return Trial(trial_id, SimpleNamespace(name="qa"), load, 0, 1, {}, {})


def deployment(name, *trials, gpus=1):
    return Deployment(name, SimpleNamespace(name=name), SimpleNamespace(name="m"), gpus, "L4", list(trials))


def plan(*deployments):
    group = {"name": "inline", "kind": "inline"}
    settings = {
        "name": "t",
        "out": "o",
        "hardware": HARDWARE,
        "cluster": group,
        "tracking": {"name": "n", "kind": "none"},
    }
    return Plan(Settings.model_validate(settings), list(deployments), [], [])


def row(of, one, seconds, startup=100.0):
    hardware = SimpleNamespace(**HARDWARE)
    begin = "2026-11-21T10:00:00.000+00:00"
    end = f"2026-11-21T10:{int(seconds // 60):02}:{seconds % 60:06.3f}+00:00"
    times = {"wall_seconds": seconds - 1, "started_at": begin, "ended_at": end, "startup_seconds": startup}
    return kind_of(of, one, hardware) | times


def words(the_plan, history, assumed=None):
    return "\n".join(estimate(the_plan, the_plan.deployments, history, ONE_NODE, assumed).words)


def test_known_answer():
    """Two GPUs: 100 + 800 s on one, 100 + 300 s on the other; 1,300 GPU-seconds at $3.6/h are $1.30."""
    long, short = deployment("long", trial("1", 8)), deployment("short", trial("2", 1))
    history = History([row(long, long.trials[0], 800), row(short, short.trials[0], 300)])
    told = words(plan(long, short), history)
    assert "15 min on 1 node with 2 GPUs, 72% busy, 0.36 GPU-hours, $1.30 ($1.80 for all of it until the end)" in told
    assert "durations: from earlier runs of the same kind" in told
    assert "critical path: long m [long] (15 min); more GPUs would not shorten it" in told


def test_the_median_of_the_same_trial_before_that_of_its_kind():
    one = deployment("a", trial("1", 8))
    other = trial("another replicate", 8)
    rows = [row(one, other, 10.0), row(one, other, 30.0), row(one, other, 20.0)]
    assert History(rows).trial(kind_of(one, one.trials[0], SimpleNamespace(**HARDWARE))) == 20.0
    rows.append(row(one, one.trials[0], 7.0))
    assert History(rows).trial(kind_of(one, one.trials[0], SimpleNamespace(**HARDWARE))) == 7.0


def test_what_is_not_known_is_said_and_never_guessed():
    one = deployment("a", trial("1", 8), trial("2", 4))
    history = History([row(one, one.trials[0], 60)])
    told = estimate(plan(one), [one], history, ONE_NODE)
    assert told.words == ["duration and cost unknown (1 trials of a kind that has not been run yet)"]
    assert told.seconds is None


def test_an_assumption_is_stated():
    one = deployment("a", trial("1", 8), trial("2", 4))
    told = words(plan(one), History([]), Assumed(90, 60))
    assert "4 min on 1 node" in told
    assert "assumed 90 s for each of 2 trials; assumed 60 s for each of 1 launches" in told
    assert "earlier runs" not in told


@pytest.mark.parametrize("nodes", [[], [Node("b", 0, 4, (), "b")]])
def test_without_a_node_there_is_no_duration(nodes):
    one = deployment("a", trial("1", 8))
    told = estimate(plan(one), [one], History([row(one, one.trials[0], 60)]), nodes)
    assert told.words == ["duration unknown: no node could run it now"]
    assert told.seconds is None
