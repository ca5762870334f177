"""A bad node is told from a bad deployment."""

from sweep.drive.node_health import NodeRecord


def test_two_deployments_that_fail_on_one_node_only_make_it_bad():
    record = NodeRecord()
    record.failure("a", "n1")
    record.failure("a", "n1")
    assert record.bad() == set(), "one deployment may be at fault itself"
    record.failure("b", "n1")
    assert record.bad() == {"n1"}
    assert sorted(record.blamed("n1")) == ["a", "b"]


def test_what_fails_elsewhere_too_is_not_the_nodes_fault():
    record = NodeRecord()
    for node in ("n1", "n2"):
        record.failure("a", node)
        record.failure("b", node)
    assert record.bad() == set()


def test_a_trial_that_goes_well_clears_the_node():
    record = NodeRecord()
    record.failure("a", "n1")
    record.success("n1")
    record.failure("b", "n1")
    assert record.bad() == set()
