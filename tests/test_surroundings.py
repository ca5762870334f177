"""What there is to run on, where it is a Ray cluster whose nodes may still be on their way."""

from types import SimpleNamespace

import pytest

from sweep import surroundings
from sweep.config import Cluster, Hardware, Settings, Tracking
from sweep.packing import Node

L4 = Node("n0", 4, 48, ("L4",), "n0")


class Joining:
    """A cluster whose node joins at the third look."""

    def __init__(self, startable=()):
        self.looks, self.startable = 0, list(startable)

    def connect(self, cluster):
        pass

    def nodes(self, cluster):
        self.looks += 1
        return [L4] if self.looks >= 3 else []

    def startable_nodes(self, cluster):
        return self.startable


def settings(**more):
    return Settings(
        name="test",
        out="out",
        hardware=Hardware(name="l4", platform="cuda", accelerator="L4"),
        cluster=Cluster(name="ray", kind="ray"),
        tracking=Tracking(name="none", kind="none"),
        **more,
    )


@pytest.fixture
def joining(monkeypatch):
    cluster = Joining()
    monkeypatch.setattr(surroundings, "ray_schedule", lambda _: cluster)
    monkeypatch.setattr(surroundings, "POLL", 0.01, raising=False)
    return cluster


def test_the_plan_waits_for_the_first_node(joining, capsys):
    assert surroundings.find_hardware(settings().cluster) == "l4", "not cpu, for want of any node"
    assert "waiting for one, 15 min at most" in capsys.readouterr().err
    joining.looks = 0
    assert surroundings.find_nodes(settings()) == [L4]


def test_a_dry_run_and_a_cluster_that_can_grow_do_not_wait(joining):
    assert surroundings.find_nodes(settings(dry_run=True)) == []
    joining.looks, joining.startable = 0, [L4._replace(node_id="")]
    assert surroundings.find_nodes(settings()) == joining.startable
    assert joining.looks == 1


@pytest.mark.parametrize("nodes", [[], [L4]])
def test_a_node_that_is_not_there_now_is_the_drivers_to_wait_for(nodes):
    """A node of eight GPUs may be rebooting. A dry run says that there is none."""
    wide = SimpleNamespace(name="wide", gpus=8, launches=False, unavailable=lambda host: None)
    assert surroundings.surroundings(settings(), nodes).unavailable(wide, "cuda") is None
    assert surroundings.surroundings(settings(dry_run=True), nodes).unavailable(wide, "cuda")
