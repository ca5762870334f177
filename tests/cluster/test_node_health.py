"""A bad node is told from a bad deployment."""

from sweep.cluster.node_health import NodeHealth
from sweep.node.events import Placed

N1, N2 = Placed("n1", "10.0.0.1"), Placed("n2", "10.0.0.2")


def test_two_deployments_that_fail_on_one_node_only_make_it_bad():
    health = NodeHealth()
    health.record_failure("a", N1)
    health.record_failure("a", N1)
    assert health.suspects() == set(), "one deployment may be at fault itself"
    health.record_failure("b", N1)
    assert health.suspects() == {"n1"}
    assert sorted(health.failed_only_on("n1")) == ["a", "b"]


def test_what_fails_elsewhere_too_is_not_the_nodes_fault():
    health = NodeHealth()
    for node in (N1, N2):
        health.record_failure("a", node)
        health.record_failure("b", node)
    assert health.suspects() == set()


def test_a_trial_that_goes_well_clears_the_node():
    health = NodeHealth()
    health.record_failure("a", N1)
    health.record_success(N1)
    health.record_failure("b", N1)
    assert health.suspects() == set()


def test_a_suspect_is_quarantined_while_another_node_remains_and_restored_when_it_is_none():
    health = NodeHealth()
    for node in (N1, N2):
        health.record_failure(f"a on {node.node_id}", node)
        health.record_failure(f"b on {node.node_id}", node)
    has_nodes_besides = lambda excluded: bool({"n1", "n2"} - excluded)  # noqa: E731
    review = health.review(has_nodes_besides)
    assert review.restored == set()
    assert len(review.quarantined) == 1, "the other one is the last"
    assert health.quarantined == review.quarantined
    assert health.review(has_nodes_besides) == (set(), set()), "nothing new"
    health.record_success(N1)
    health.record_success(N2)
    assert health.review(has_nodes_besides) == (review.quarantined, set())
    assert health.quarantined == set()
