"""Optuna's search: what it launches, how it ends, and that results alone decide."""

import numpy as np
import pytest

from benchmarks.ask import flag_problem, search
from sweep.search.ask import Result
from sweep.search.tpe import TpeSearch, usual_launches
from tests.search.test_ask import BEST, SPEED, grid, latency, measured, run
from tests.search.test_ask import asked as asked_of_the_model

pytest.importorskip("optuna")


def asked(space, bounds=(), limit=200):
    like = asked_of_the_model(space, bounds)
    return TpeSearch(space, like.question, like.seconds, limit)


def test_each_launch_measures_a_new_configuration_and_the_last_ones_repeat_the_leader():
    space = grid()
    ask = asked(space, bounds=(latency(1, space) * 1.2,))  # 8 users, unless the configuration is slow
    launches = run(ask, noise=0.001)
    usual = usual_launches(len(SPEED))
    assert usual == 30
    assert len({launch.configuration for launch in launches[:usual]}) == usual
    assert all(len(launch.points) == 3 for launch in launches[:usual])
    leader = ask.standing().leader
    assert [launch.points for launch in launches[usual:]] == [(leader,)]
    assert space.load[leader] == 8
    assert SPEED[space.configuration[leader]] >= SPEED[BEST] - 0.06
    assert ask.standing().done
    assert (ask.standing().sure, ask.standing().probability) == (False, None)


def test_a_bound_that_no_point_meets_leaves_no_leader():
    ask = asked(grid(), bounds=(0.001,))
    assert len(run(ask)) == ask.usual
    assert (ask.standing().leader, ask.standing().done) == (None, True)


def test_the_same_results_suggest_the_same_launch_and_what_runs_or_does_not_fit_is_not_suggested():
    one, other = asked(grid([1.0])), asked(grid([1.0]))
    run(one, most=14)
    other.tell(one.results)
    assert one.ask([]) == other.ask([])
    pending = []
    for _ in range(4):
        pending += one.ask(pending).points
    assert len(set(pending)) == 4
    assert not {result.point for result in one.results} & set(pending)
    assert asked(grid([1.0])).ask([], fits=lambda configuration: configuration == 7).configuration == 7


def test_what_failed_is_told_as_the_worst():
    ask = asked(grid([1.0]))
    for point in range(20):  # the first settings fail
        failed = point < 12
        ask.tell([Result(point, point, None if failed else measured(point, ask.space)[:1])])
    chosen = [ask._suggested([other])[0] for other in range(20, 30)]
    assert np.mean(chosen) >= 2


def test_the_harness_searches_with_it():
    found = search(flag_problem(7, 0.05), 0.02, 2, 7, TpeSearch, 40)
    assert (found.launches, found.sure) == (40, False)
    assert found.quality > 0.8
    assert found.wall < found.spent
