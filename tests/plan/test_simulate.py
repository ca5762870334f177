"""The simulated run: known answers, and a large plan in little time."""

import random
import time

from sweep.plan.packing import Need, Node
from sweep.plan.simulate import simulate


def need(key, gpus, seconds):
    return Need(key, gpus, None, seconds)


def test_known_answer():
    """Two GPUs; 2 x 3 s first, then 5 s beside 4 s + 1 s."""
    simulated = simulate([need("wide", 2, 3), need("a", 1, 5), need("b", 1, 4), need("c", 1, 1)], [Node("n", 2, 8, ())])
    assert simulated.makespan == 8
    assert simulated.gpu_seconds == 16
    assert simulated.busy == 1
    assert [(span.key, span.begin, span.end) for span in simulated.spans] == [
        ("wide", 0, 3), ("a", 3, 8), ("b", 3, 7), ("c", 7, 8)
    ]  # fmt: skip


def test_the_critical_path_leads_from_the_first_to_the_last():
    needs = [need("long", 1, 9), need("a", 1, 6), need("b", 1, 5)]
    simulated = simulate(needs, [Node("n", 2, 8, ())])
    assert [span.key for span in simulated.critical_path()] == ["a", "b"]
    assert simulated.makespan == 11


def test_a_long_deployment_is_spread_over_the_gpus():
    """Three deployments on four GPUs: as a launch each the longest decides, as three launches each they share them."""
    seconds = {"long": 9.0, "middle": 6.0, "short": 3.0}
    nodes = [Node(name, 1, 8, (), name) for name in "wxyz"]
    launches = [Need(f"{name}{n}", 1, None, took / 3, n) for name, took in seconds.items() for n in range(3)]
    whole = simulate([need(name, 1, took) for name, took in seconds.items()], nodes)
    spread = simulate(launches, nodes)
    assert (whole.makespan, whole.bound) == (9.0, 9.0)
    assert (spread.makespan, spread.bound) == (6.0, 4.5)


def test_what_fits_nowhere_is_left_out():
    simulated = simulate([need("huge", 16, 9), need("a", 1, 2)], [Node("n", 2, 8, ())])
    assert [span.key for span in simulated.spans] == ["a"]
    assert simulate([], [Node("n", 2, 8, ())]).makespan == 0


def test_without_gpus_nodes_are_counted():
    simulated = simulate([need(name, 0, 4) for name in "abc"], [Node("x", 0, 8, (), "x"), Node("y", 0, 8, (), "y")])
    assert (simulated.makespan, simulated.capacity, simulated.busy) == (8, 2, 0.75)


def test_a_large_cluster_in_little_time():
    draw = random.Random(1)
    needs = [need(str(i), draw.choice([1, 2, 4, 8]), draw.lognormvariate(6, 1)) for i in range(10_000)]
    began = time.process_time()
    simulated = simulate(needs, [Node(str(i), 8, 64, (), str(i)) for i in range(64)])
    assert time.process_time() - began < 10
    assert simulated.busy > 0.95
