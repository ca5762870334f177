"""Questions: what is found of spaces with a known best, what is launched next, and that rows alone decide."""

import numpy as np
import pytest

from benchmarks.ask import Kept, flag_problem, main, search
from sweep.search.ask import BestQuestion, BestSearch, ObjectiveScale, Result
from sweep.search.model import Observations, Space, Surface, level_kernel

SIDE = 6
LEVELS = np.array([(one, other) for one in range(SIDE) for other in range(SIDE)])
LOADS = np.array([1.0, 8.0, 64.0])


def grid(loads=LOADS):
    """36 configurations of two ordered settings, each at these loads."""
    configuration = np.repeat(np.arange(len(LEVELS)), len(loads))
    return Space(LEVELS, (True, True), configuration, np.tile(loads, len(LEVELS)), np.ones(len(LEVELS)))


SPEED = -0.05 * (LEVELS[:, 0] - 2) ** 2 - 0.03 * (LEVELS[:, 1] - 4) ** 2  # ln; the best is (2, 4)
BEST = 2 * SIDE + 4


def latency(point, space):
    return 0.01 * (1 + space.load[point] / 16)


def measured(point, space, noise=0.0):
    """Tokens/s of all users and the time between tokens, of which users get one each."""
    slow = np.exp(noise - SPEED[space.configuration[point]])
    each = latency(point, space) * slow
    return float(space.load[point] / each), float(each)


def asked(space, bounds=(), seed=0, limit=200, **question):
    objective = ObjectiveScale(-1, np.log(space.load))
    return BestSearch(space, BestQuestion(objective, bounds, seed=seed, **question), (90.0, 30.0), limit)


def run(ask, noise=0.02, fails=lambda configuration: False, most=200, seed=0):
    """Measure launch after launch; return the launches."""
    random, launches = np.random.default_rng(seed), []
    while len(launches) < most and (launch := ask.ask([])):
        slow = random.normal() * noise
        values = [measured(point, ask.space, slow)[: 1 + len(ask.question.bounds)] for point in launch.points]
        failed = fails(launch.configuration)
        ask.tell([Result(p, len(launches), None if failed else v) for p, v in zip(launch.points, values, strict=True)])
        launches.append(launch)
    return launches


def test_the_best_is_found_from_a_part_of_the_launches_and_measured_twice():
    ask = asked(grid([1.0]))
    launches = run(ask)
    standing = ask.standing()
    assert standing.done
    assert standing.probability >= ask.enough == pytest.approx(0.98)
    assert SPEED[standing.leader] >= SPEED[BEST] - 0.05
    assert len(launches) < 30 < len(LEVELS)
    assert sum(launch.configuration == standing.leader for launch in launches) >= 2
    assert 0 < ask.launch_noise < 0.06


def test_the_best_within_a_bound_is_at_the_load_that_still_meets_it():
    space = grid()
    ask = asked(space, bounds=(latency(1, space) * 1.2,))  # 8 users, unless the configuration is slow
    launches = run(ask)
    leader = ask.standing().leader
    assert space.load[leader] == 8
    assert SPEED[space.configuration[leader]] >= SPEED[BEST] - 0.06
    assert len({point for launch in launches for point in launch.points}) < space.size / 3


def test_no_point_meets_an_impossible_bound():
    ask = asked(grid(), bounds=(0.001,))
    run(ask)
    standing = ask.standing()
    assert standing.done
    assert standing.leader is None
    assert standing.none_fits >= ask.enough


def test_what_fails_is_not_launched_again_nor_is_what_is_like_it():
    ask = asked(grid([1.0]))
    launches = run(ask, fails=lambda configuration: LEVELS[configuration, 0] <= 2)
    failed = [launch.configuration for launch in launches if LEVELS[launch.configuration, 0] <= 2]
    assert len(failed) == len(set(failed)) < 18
    assert ask.standing().leader in range(3 * SIDE, 4 * SIDE), "the first level that works"


def test_a_launch_that_failed_says_so_of_all_loads_until_it_works():
    ask = asked(grid())
    ask.tell([Result(point, 1, None, at_launch=True) for point in (3, 4, 5)] + [Result(7, 2, None)])
    assert {result.point for result in ask.results} == {3, 4, 5, 7}
    ask.tell([Result(4, 1, measured(4, ask.space)[:1])])
    assert [(result.point, result.values is None) for result in ask.results] == [(7, True), (4, False)]


def test_the_same_results_give_the_same_search():
    one, other = asked(grid([1.0])), asked(grid([1.0]))
    launches = run(one, most=14)
    other.tell(one.results)  # all at once, as from the rows of a killed run
    assert (other.ask([]), other.standing()) == (one.ask([]), one.standing())
    assert launches != run(asked(grid([1.0]), seed=1), most=14), "another seed"


def test_a_point_is_launched_side_by_side_once_measured_and_what_may_be_settled_is_not_launched():
    ask = asked(grid([1.0]))
    run(ask, most=11)
    known = {result.point for result in ask.results}
    pending, weights = [], []
    while launch := ask.ask(pending):
        pending += launch.points
        weights.append(launch.weight)
        assert pending.count(launch.points[0]) <= (3 if launch.points[0] in known else 1)
        assert ask.begun(pending) == 11 + len(pending)
    assert min(weights[1:]) >= 0.01
    assert max(map(pending.count, known)) > 1
    assert len(pending) < len(LEVELS)
    only = asked(grid([1.0])).ask([], fits=lambda configuration: configuration == 7)
    assert only.configuration == 7


def test_one_noise_is_shared_by_the_trials_of_a_launch():
    space = grid()
    surface = Surface(space)
    covariance = surface.noisy(surface.parameters, Observations(np.array([0, 1, 2]), np.array([0, 0, 1]), np.zeros(3)))
    alone = surface.covariance(surface.parameters, np.arange(3), np.arange(3))
    noise = covariance - alone
    assert noise[0, 1] == pytest.approx(surface.launch_noise**2)
    assert noise[0, 2] == pytest.approx(0)
    assert noise[0, 0] > noise[0, 1]


def test_samples_follow_what_was_measured_and_spread_where_nothing_was():
    space = grid([1.0])
    surface = Surface(space)
    values = Observations(np.array([0, 7, 14, 21]), np.arange(4), -SPEED[[0, 7, 14, 21]])
    draws = surface.draws(values, np.random.default_rng(0), 4000)
    assert draws.shape == (4000, 36)
    assert draws.mean(0)[7] == pytest.approx(-SPEED[7], abs=0.06)
    assert draws.std(0)[7] < draws.std(0)[35] / 2
    wider = surface.draws(values, np.random.default_rng(0), 4000, unmeasured=True).std(0) / draws.std(0)
    assert wider == pytest.approx(2**0.5), "four points tell little of five fitted parameters"
    left = surface.variance(np.array([7])) / surface.variance(np.array([], int))
    assert left[7] < left[8] < left[35], "more is known of what is alike"


def test_a_level_is_alike_to_its_neighbours_only_in_an_ordered_setting():
    ordered, plain = level_kernel(4, True), level_kernel(4, False)
    assert ordered[0, 1] > ordered[0, 3]
    assert plain[0, 1] == pytest.approx(plain[0, 3])
    for kernel in (ordered, plain):
        assert kernel.sum() == pytest.approx(0)
        assert np.diag(kernel).mean() == pytest.approx(1)


def test_the_harness_keeps_its_results_and_uses_nodes(tmp_path, capsys):
    one, four = (search(flag_problem(7, 0.05), 0.02, nodes, 7) for nodes in (1, 4))
    assert min(one.quality, four.quality) > 0.9
    assert four.wall < one.wall / 2
    assert max(one.launches, four.launches) < 120
    state = tmp_path / "state"
    arguments = ["baselines", "--problems", "2", "--noise", "0.02", "--launches", "20", "--state", str(state)]
    main(arguments)
    first = capsys.readouterr().out
    assert Kept(state).known.keys() >= {"grid 576 0.02 1000", "random 20 0.02 1001"}
    main(arguments)
    assert capsys.readouterr().out.splitlines()[:5] == first.splitlines()[:5]
