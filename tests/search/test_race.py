"""Races: what they drop depends on the trials that ended, in whatever order, and is replayed from their rows."""

import random

import pytest

from sweep.search.race import Race

FIGURES = {"a": 10.0, "b": 9.5, "c": 7.0, "d": 2.0}
MARGINS = {2: 5.0, 3: 2.0, 4: 0.1}  # by replicates that ended: a point this far behind the best is dropped


def race(settled=()):
    points = [[f"{name}{replicate}" for replicate in range(5)] for name in FIGURES]
    counts = []

    def judge(counted):
        counts.append(len(counted))
        behind = {point: 10.0 - figure for point, figure in enumerate(FIGURES.values())}
        return {point: f"{lag:g} behind" for point, lag in behind.items() if lag > MARGINS[running.complete]}

    running = Race(points, judge)
    running.settle(settled)
    return running, counts


@pytest.mark.parametrize("seed", range(5))
def test_the_order_in_which_trials_end_changes_nothing(seed):
    running, counts = race()
    trials = [trial for point in running.points for trial in point]
    random.Random(seed).shuffle(trials)
    ended = []
    for trial in trials:
        if trial not in running.dropped:
            running.settle([trial])
            ended.append(trial)
    assert running.looks == 3
    assert running.ends == {3: 2, 2: 3, 1: 4}
    assert {trial: reason for trial, reason in running.dropped.items() if trial[0] != "c"} == {
        **{f"d{replicate}": "8 behind" for replicate in (2, 3, 4)},
        "b4": "0.5 behind",
    }
    assert counts == [8, 2 + 9, 2 + 3 + 8], "a dropped point counts with its trials up to then"
    replayed, _ = race(ended)
    assert (replayed.ends, replayed.dropped) == (running.ends, running.dropped)


def test_a_block_is_complete_without_dropped_trials_only():
    running, counts = race(["a0", "b0", "c0", "d0", "a1", "b1", "c1", "a2", "b2", "c2"])
    assert not counts, "a trial of the second block is missing"
    assert running.settle(["d1"])
    assert running.dropped.keys() == {"d2", "d3", "d4", "c3", "c4"}
    assert len(counts) == 2, "the third block was complete without the dropped trial"
