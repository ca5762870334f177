"""The policy: what starts next and where, and what never can."""

import random
from collections import Counter

import pytest

from sweep.plan.packing import Need, Node, Packer, Start, infeasible
from sweep.plan.simulate import simulate


def node(name, gpus, accelerator="L4"):
    return Node(name, gpus, 16, (accelerator,) if gpus else (), name)


def need(key, gpus, seconds=1.0, accelerator=None):
    return Need(key, gpus, accelerator, seconds)


def test_most_gpu_seconds_first_and_more_gpus_where_nothing_tells_them_apart():
    packer = Packer([need("short", 1, 5), need("long", 1, 50), need("widest", 4, 12.5), need("wide", 2, 25)])
    order = [start.key for start in packer.start([node("n", 8)])]
    assert order == ["widest", "wide", "long", "short"]


def test_blocks_are_a_priority_and_the_last_one_starts_with_the_longest():
    """Each block holds each deployment once, in an order of its own; a free GPU takes the next block's."""
    needs = [
        Need(f"{name}{block}", gpus, None, seconds, block, place)
        for block, places in enumerate([(0.5, 0.1, 0.9), (0.2, 0.3, 0.1), (0.1, 0.2, 0.3)])
        for (name, gpus, seconds), place in zip([("a", 1, 5), ("b", 1, 9), ("c", 2, 7)], places, strict=True)
    ]
    order = [start.key for start in Packer(needs).start([node("n", 99)])]
    assert order == ["b0", "a0", "c0", "c1", "a1", "b1", "c2", "b2", "a2"]
    packer = Packer(needs)
    assert [start.key for start in packer.start([node("n", 3)])] == ["b0", "a0", "a1"], "c0 does not fit, a1 does"


def test_what_does_not_fit_lets_smaller_ones_pass():
    packer = Packer([need("a", 3, 10), need("b", 3, 9), need("c", 1, 1)])
    assert packer.start([node("n", 4)]) == [Start("a", "n"), Start("c", "n")]
    packer.release("c")
    assert packer.start([node("n", 4)]) == []
    packer.release("a")
    assert packer.start([node("n", 4)]) == [Start("b", "n")]


def test_small_ones_share_a_node_so_that_another_stays_whole():
    packer = Packer([need("a", 1), need("b", 1), need("c", 1)])
    assert len({start.node_id for start in packer.start([node("x", 4), node("y", 4)])}) == 1


def test_accelerators_are_told_apart():
    nodes = [node("l4", 1), node("a100", 1, "A100")]
    packer = Packer([need("a", 1, accelerator="A100"), need("b", 1, accelerator="A100")])
    assert packer.start(nodes) == [Start("a", "a100")]


def test_without_gpus_a_deployment_has_its_node_to_itself():
    packer = Packer([need(name, 0) for name in "abc"])
    first = packer.start([node("x", 0), node("y", 0)])
    assert {start.node_id for start in first} == {"x", "y"}
    packer.release(first[0].key)
    assert [start.node_id for start in packer.start([node("x", 0), node("y", 0)])] == [first[0].node_id]


def test_cpu_work_leaves_gpu_nodes_alone_where_there_are_others():
    assert Packer([need("a", 0)]).start([node("gpu", 4), node("cpu", 0)]) == [Start("a", "cpu")]
    assert Packer([need("a", 0)]).start([node("gpu", 4)]) == [Start("a", "gpu")]


def test_what_was_lost_comes_first():
    packer = Packer([need("big", 1, 100), need("small", 1, 1)])
    assert packer.start([node("n", 1)]) == [Start("big", "n")]
    packer.release("big")
    packer.requeue("big")
    assert packer.start([node("n", 1)]) == [Start("big", "n")]


@pytest.mark.parametrize(
    ("wanted", "word"),
    [
        (need("a", 8), "needs 8 GPUs on one node and no node has more than 4"),
        (need("a", 1, accelerator="A100"), "no node has an accelerator A100 (found: L4)"),
        (need("a", 8, accelerator="L4"), "needs 8 L4 GPUs"),
    ],
)
def test_what_can_never_run_says_why_and_what_to_do(wanted, word):
    nodes = [node("x", 4), node("y", 0)]
    assert word in infeasible(wanted, nodes)
    packer = Packer([wanted, need("b", 4)])
    assert packer.unschedulable(nodes) == [wanted]
    packer.drop([wanted])
    assert [start.key for start in packer.start(nodes)] == ["b"]
    assert len(packer) == 0


def test_a_place_that_comes_later_counts():
    assert infeasible(need("a", 8), [node("x", 4), node("autoscaler", 8)]) is None


def test_a_kind_that_has_no_node_is_asked_for_first():
    """However far behind many others: without a node of its kind it would wait until it is given up."""
    packer = Packer([*(need(f"long{i}", 1, 500) for i in range(40)), need("short", 4, 1), need("shorter", 4, 0.5)])
    nodes = [node("l4", 1)]
    assert [one.key for one in packer.next_needs(nodes)][:2] == ["short", "long0"]
    assert len(packer.next_needs(nodes)) == 32
    assert packer.next_needs([node("x", 4)])[0].key == "long0"


def test_no_gpu_is_used_twice_and_none_idles_while_something_fits():
    """Whatever ends when: at every moment the places are right, and what waits fits nowhere."""
    shuffle = random.Random(5)
    nodes = [node("a", 4), node("b", 4), node("c", 8, "A100"), node("d", 2)]
    needs = {
        f"d{i}": need(f"d{i}", shuffle.choice([1, 2, 4]), shuffle.random(), shuffle.choice([None, "L4", "A100"]))
        for i in range(300)
    }
    packer, running, waiting = Packer(needs.values()), {}, set(needs)
    while waiting or running:
        for key, node_id, _ in packer.start(nodes):
            waiting.remove(key)
            running[key] = node_id
        used = Counter()
        for key, node_id in running.items():
            used[node_id] += needs[key].gpus
        for one in nodes:
            free = one.gpus - used[one.node_id]
            assert free >= 0
            for key in waiting:
                wanted = needs[key]
                assert wanted.gpus > free or (wanted.accelerator and wanted.accelerator not in one.accelerators)
        gone = shuffle.choice(sorted(running))
        del running[gone]
        packer.release(gone)


@pytest.mark.parametrize("seed", range(5))
def test_mixed_work_ends_within_a_tenth_of_the_lower_bound(seed):
    draw = random.Random(seed)
    needs = [need(f"d{i}", draw.choice([1, 1, 1, 2, 4]), draw.lognormvariate(5, 1)) for i in range(200)]
    bound = max(sum(n.gpus * n.seconds for n in needs) / 16, max(n.seconds for n in needs))
    assert simulate(needs, [node(name, 4) for name in "wxyz"]).makespan < 1.1 * bound


def test_an_endpoint_is_asked_by_one_client_at_a_time():
    needs = [Need(f"{name}{block}", 0, None, 1.0, block, endpoint=name) for block in (0, 1, 2) for name in "ab"]
    packer, nodes = Packer(needs), [node(name, 0) for name in "xyz"]
    assert [start.key for start in packer.start(nodes)] == ["a0", "b0"]
    packer.release("b0")
    assert [start.key for start in packer.start(nodes)] == ["b1"], "a1 ranks higher, and its endpoint is being asked"
    packer.release("a0")
    assert [start.key for start in packer.start(nodes)] == ["a1"]


def replicated(key, gpus, replicas, accelerator=None):
    return need(key, gpus, accelerator=accelerator)._replace(replicas=replicas)


@pytest.mark.parametrize(
    ("gpus", "replicas", "nodes", "starts"),
    [
        (16, 16, {"a": 8, "b": 8}, [("a", ("b",))]),
        (16, 16, {"a": 8, "b": 16}, [("b", ())]),  # one node is preferred
        (16, 2, {"a": 8, "b": 8, "c": 8}, [("a", ("b",))]),  # engines of 8 GPUs
        (12, 12, {"a": 4, "b": 8, "c": 8}, [("b", ("c",))]),  # in equal shares
        (12, 3, {"a": 4, "b": 6, "c": 7}, [("a", ("b", "c"))]),
        (16, 1, {"a": 8, "b": 8}, []),  # tensor-parallel: one engine
        (16, 16, {"a": 8, "b": 4}, []),
    ],
)
def test_replicas_that_fit_on_no_node_are_divided_over_the_fewest(gpus, replicas, nodes, starts):
    nodes = [node(name, size) for name, size in nodes.items()]
    packer = Packer([replicated("r", gpus, replicas)])
    assert packer.start(nodes) == [Start("r", *where) for where in starts]
    assert (infeasible(packer.needs["r"], nodes) is None) == bool(starts)


def test_divided_replicas_take_their_share_of_each_node_and_give_it_back():
    nodes = [node("a", 8), node("b", 8)]
    packer = Packer([replicated("r", 12, 12), need("small", 2, 0.1), need("late", 3, 0.01)])
    assert packer.start(nodes) == [Start("r", "a", ("b",)), Start("small", "a")]
    assert packer.used == {"a": 8, "b": 6}
    packer.release("r")
    assert packer.used == {"a": 2, "b": 0}
    packer.requeue("r", frozenset("a"))
    assert packer.start(nodes)[0] == Start("r", "a", ("b",)), "one node alone cannot run it"
    assert simulate([replicated("r", 16, 16), need("single", 1)], nodes).makespan == 2.0


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (
            replicated("r", 16, 16, "L4"),
            "needs 16 L4 GPUs on one node, or 4 on each of 4 nodes, and only 2 have that many: add nodes",
        ),
        (replicated("r", 32, 2), "needs 32 GPUs on one node, 16 for each engine, and no node has more than 4: add one"),
    ],
)
def test_why_replicas_cannot_be_divided(wanted, said):
    assert infeasible(wanted, [node("x", 4), node("y", 4), node("z", 2)]) == said
    assert infeasible(replicated("r", 16, 16), [node("", 4)]) is None, "an autoscaler starts as many nodes as needed"
