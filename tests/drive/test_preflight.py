"""What there is to run on, where it is a Ray cluster whose nodes may still be on their way."""

from types import SimpleNamespace
from unittest.mock import Mock

import pynvml
import pytest

from backends.base import Host
from backends.launch import gpus, host_facts
from backends.simulated import Simulated
from sweep.base.config import Cluster, ConfigError, Hardware, SimulatedNodes, build
from sweep.base.options import load_option
from sweep.drive import preflight
from sweep.plan import show
from sweep.plan.packing import Node
from tests.support.settings import run_settings

L4 = Node("n0", 4, 48, ("L4",), "n0")


class Joining:
    """A cluster whose node joins at the third look."""

    def __init__(self, startable=()):
        self.looks, self.startable, self.facts = 0, list(startable), {}

    def join_cluster(self, cluster):
        pass

    def nodes(self, cluster):
        self.looks += 1
        return [L4] if self.looks >= 3 else []

    def state_facts(self, nodes, cache_dir):
        return [node._replace(facts=self.facts.get(node.address, node.facts)) for node in nodes]

    def startable_nodes(self, cluster):
        return self.startable


def settings(**more):
    hardware = Hardware(name="l4", platform="cuda", accelerator="L4")
    return run_settings(hardware=hardware, cluster=Cluster(name="ray", kind="ray"), **more)


@pytest.fixture
def joining(monkeypatch):
    cluster = Joining()
    monkeypatch.setattr(preflight, "ray_schedule", lambda _: cluster)
    monkeypatch.setattr(preflight, "NODE_POLL", 0.01)
    return cluster


def test_the_plan_waits_for_the_first_node(joining, capsys):
    assert preflight.find_hardware(settings().cluster) == "l4", "not cpu, because there is no node"
    assert "waiting up to 15 min" in capsys.readouterr().err
    joining.looks = 0
    assert preflight.find_nodes(settings()) == [L4]


def test_a_driver_that_does_not_work_is_known_before_the_plan(joining, monkeypatch):
    """The node states NVML's error; without another GPU node it ends the command, else the plan warns."""
    mismatch = pynvml.NVMLError(pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)
    monkeypatch.setattr(gpus.pynvml, "nvmlInit", Mock(side_effect=mismatch))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for function in (gpus.present, gpus.visible):
        monkeypatch.setattr(gpus, function.__name__, function.__wrapped__)
    joining.facts = {"n0": host_facts.stated(None)}
    with pytest.raises(ConfigError, match=r"^node n0: NVML: .*[Mm]ismatch.*: reboot|^node n0: NVML: .*reboot"):
        preflight.find_nodes(settings())
    healthy = L4._replace(address="n1", node_id="n1", facts=Host(driver="580"))
    broken = L4._replace(facts=joining.facts["n0"])
    preflight._check_drivers([broken, healthy])
    (warning,) = show.broken_drivers([broken, healthy])
    assert warning.startswith("node n0: NVML: ")


def test_a_dry_run_and_a_cluster_that_can_grow_do_not_wait(joining):
    assert preflight.find_nodes(settings(dry_run=True)) == []
    joining.looks, joining.startable = 0, [L4._replace(node_id="")]
    assert preflight.find_nodes(settings()) == joining.startable
    assert joining.looks == 1


@pytest.mark.parametrize(
    ("accelerators", "names", "profile"),
    [
        (("A100",), (), "a100-80g"),  # Ray's name for it
        (("A100",), ("NVIDIA A100-SXM4-80GB",), "a100-80g"),
        (("A100",), ("NVIDIA A100-SXM4-40GB",), "gpu"),  # which Ray calls the same
        (("T4",), ("Tesla T4",), "t4"),
        (("H100",), (), "h100"),
        (("L40S",), (), "gpu"),
    ],
)
def test_the_profile_of_a_clusters_gpus_is_found(joining, accelerators, names, profile):
    facts = Host(gpus=names, driver="580")
    joining.startable = [Node("n0", 4, 48, accelerators, facts=facts), Node("head", 0, 8, ())]
    assert preflight.find_hardware(Cluster(name="ray", kind="ray")) == profile


@pytest.mark.parametrize(
    ("gpus", "accelerator", "profile"), [(1, "A100", "a100-80g"), (1, None, "gpu"), (0, None, "cpu")]
)
def test_the_profile_of_simulated_nodes_is_found(gpus, accelerator, profile):
    nodes = SimulatedNodes(nodes=1, gpus=gpus, accelerator=accelerator)
    assert preflight.find_hardware(Cluster(name="ray", kind="ray", simulate=nodes)) == profile


def test_a_driver_that_no_node_has_stated_is_not_one_of_theirs():
    """A node type's decides what is planned, but not whether a final failure is retried."""
    stated = Host(driver="580.95.05", machine="x86_64")
    assert preflight.drivers_of([L4._replace(facts=stated), L4._replace(facts=Host(driver="580"))]) == {"580.95.05"}


@pytest.mark.parametrize("nodes", [[], [L4]])
def test_a_node_that_is_not_there_now_is_the_drivers_to_wait_for(nodes):
    """A node of eight GPUs may be rebooting. A dry run says that there is none."""
    wide = SimpleNamespace(
        name="wide", gpu_count=8, gpu_keys=(), replicas=1, launches=False, unavailable=lambda host: None
    )
    assert preflight.surroundings(settings(), nodes).unavailable(wide, "cuda") is None
    assert preflight.surroundings(settings(dry_run=True), nodes).unavailable(wide, "cuda")


@pytest.mark.parametrize(
    ("engine", "words", "remedy"),
    [
        ("vllm", {"flags": {"data_parallel_size": 2}}, "add one, or lower backend.flags.data-parallel-size"),
        ("vllm", {"cuda_flags": {"pipeline-parallel-size": 2}}, "or lower backend.cuda_flags.pipeline-parallel-size"),
        ("vllm", {"gpus": 2, "replicas": 2}, "add one, or lower backend.gpus or backend.replicas"),
        ("sglang", {"gpus": 4, "flags": {"dp-size": 2, "enable-dp-attention": True}}, "add one, or lower backend.gpus"),
    ],
)
def test_what_needs_too_many_gpus_is_told_the_keys_that_ask_for_them(engine, words, remedy):
    backend = build({**load_option("backend", engine), **words}, "backend")
    facts = Host(gpus=("L4",), driver="580", capability="8.9")
    nodes = [L4._replace(gpus=1, facts=facts)]
    said = preflight.surroundings(settings(dry_run=True), nodes).unavailable(backend, "cuda")
    assert said is not None
    assert said.endswith(remedy)


def of_an_engine(kind, cache_dir, **env):
    """Why a simulated engine cannot run on such a cluster."""
    cluster = Cluster(name=kind, kind=kind, address="auto" if kind == "ray" else None)
    asked = settings(cache_dir=str(cache_dir)).model_copy(
        update={"cluster": cluster, "hardware": Hardware(name="cpu", platform="cpu")}
    )
    backend = Simulated(name="simulated", **({"env": env} if env else {}))
    return preflight.surroundings(asked, [Node("n0", 0, 8, (), "n0")]).unavailable(backend, "cpu")


@pytest.mark.parametrize("key", ["python", "binary"])
def test_an_own_program_that_is_not_there_is_refused_where_it_would_run(tmp_path, key, monkeypatch):
    monkeypatch.setattr(preflight, "ray_schedule", lambda _: SimpleNamespace(ask_nodes=lambda *arguments: {}))
    for kind in ("inline", "local"):
        with pytest.raises(ConfigError, match=f"^backend.env.{key}=/no/such: not an executable file; expected"):
            of_an_engine(kind, tmp_path, **{key: "/no/such"})
    assert of_an_engine("ray", tmp_path, **{key: "/no/such"}) is None, "a node may have it"


def test_a_cache_that_cannot_be_written_is_refused_and_none_is_made(tmp_path):
    for kind in ("inline", "local"):
        with pytest.raises(ConfigError, match=r"^cache_dir=/proc/none: cannot be written"):
            of_an_engine(kind, "/proc/none")
    assert of_an_engine("ray", "/proc/none") is None
    assert of_an_engine("inline", tmp_path / "new" / "cache") is None
    assert not list(tmp_path.iterdir())


def test_an_endpoint_needs_no_program_and_no_cache_here(tmp_path):
    attached = SimpleNamespace(name="there", gpus=1, launches=False, unavailable=lambda host: None)
    inline = Cluster(name="inline", kind="inline")
    asked = settings(cache_dir="/proc/none").model_copy(update={"cluster": inline})
    assert preflight.surroundings(asked, [L4]).unavailable(attached, "cpu") is None
