"""What the driver makes of Ray's tasks, with a Ray that does as it is told and a clock that is set."""

import contextlib
import ipaddress
import os
import re
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from ray.exceptions import AuthenticationError, RayTaskError

from sweep.base.config import ROOT, Cluster, Halted
from sweep.base.records import TrialProgress
from sweep.cluster import ray_environment, ray_executor
from sweep.cluster.preemption import Preempted
from sweep.disk.run_files import RunPaths
from sweep.node.deployment import DiskFull
from sweep.node.events import Beat, Lost, Measuring, NotStarted, Placed, State
from sweep.plan.packing import Need, Node


class Stream:
    """A task: `said` are the events that are there to be taken, an exception raises."""

    def __init__(self, *said):
        self.said = list(said)

    def __next__(self):
        if not self.said:
            raise StopIteration
        return self.said.pop(0)


class FakeRay:
    def __init__(self):
        self.cancelled, self.done = [], set()

    def wait(self, refs, num_returns=1, timeout=None, fetch_local=True):
        ready = [ref for ref in refs if (ref.said if isinstance(ref, Stream) else ref in self.done)]
        return ready[:num_returns], [ref for ref in refs if ref not in ready[:num_returns]]

    def get(self, value, timeout):
        if isinstance(value, Exception):
            raise value
        return value

    def cancel(self, ref, force):
        self.cancelled.append(ref)


class Clock(SimpleNamespace):
    now = 1000.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(ray_executor, "time", clock)
    return clock


@pytest.fixture
def executor(monkeypatch, clock):
    monkeypatch.setattr(ray_executor, "ray", FakeRay())
    executor = ray_executor.RayExecutor(Cluster(name="ray", kind="ray"))
    executor.nodes = [Node(name, 4, 16, ("L4",), name) for name in ("n0", "n1")]
    executor.all_nodes = {node.node_id: node for node in executor.nodes}
    executor.ports = {"n0": 1, "n1": 1}
    monkeypatch.setattr(executor, "_clean_up_nodes", lambda node_ids, marker: None)
    return executor


def start(executor, node_id, *said, place=None, out="out"):
    stream = Stream(*said)
    node = executor.all_nodes[node_id]
    work = SimpleNamespace(marker="m", out=str(out))
    executor.tasks[stream] = ray_executor._RunningTask(work, place, ray_executor.time.monotonic(), node)
    return stream


def reachable(monkeypatch, answers):
    def connect(address, timeout):
        if not answers:
            raise OSError("no route")
        return SimpleNamespace(close=lambda: None)

    monkeypatch.setattr(ray_executor.socket, "create_connection", connect)


def test_a_stall_of_the_driver_is_no_silence_of_a_node(executor, clock):
    """While it commits one deployment's event the disk hangs; the other has said its word meanwhile."""
    start(executor, "n0", State("trial 1"), Beat(), place=Placed("n0", "n0"))
    healthy = start(executor, "n1", place=Placed("n1", "n1"))
    for _ in executor.events():
        clock.now += ray_executor.HEARTBEAT_TIMEOUT + 5
        healthy.said.append(Beat())
        executor.head_seen = clock.now
    assert list(executor.events()) == [], "both are heard now"
    assert len(executor.tasks) == 2


def test_a_silent_task_is_lost(executor, clock):
    start(executor, "n0", place=Placed("n0", "n0"))
    clock.now = executor.head_seen = clock.now + ray_executor.HEARTBEAT_TIMEOUT + 1
    ((_, loss),) = executor.events()
    assert isinstance(loss, Lost)
    assert [node.node_id for node in executor.schedulable_nodes] == ["n1"]


def test_a_node_that_other_jobs_keep_busy_is_left_alone_and_nothing_is_lost(executor, clock, monkeypatch):
    reachable(monkeypatch, True)
    start(executor, "n0")
    clock.now = executor.head_seen = clock.now + ray_executor.HEARTBEAT_TIMEOUT + 1
    assert list(executor.events()) == [], "it may be queueing"
    clock.now = executor.head_seen = clock.now + ray_executor.START_TIMEOUT
    ((_, end),) = executor.events()
    assert isinstance(end, NotStarted)
    assert [node.node_id for node in executor.schedulable_nodes] == ["n1"], "it goes elsewhere"


def test_a_node_that_is_cut_off_before_it_begins_is_noticed_as_soon_as_any(executor, clock, monkeypatch):
    reachable(monkeypatch, False)
    start(executor, "n0")
    clock.now = executor.head_seen = clock.now + ray_executor.HEARTBEAT_TIMEOUT + 1
    ((_, end),) = executor.events()
    assert isinstance(end, Lost)


def disk_full():
    cause = DiskFull("No space left on device: /cache/x")
    return RayTaskError("deploy", "traceback", cause)


def test_a_nodes_own_full_disk_is_a_loss_and_nothing_more_is_started_there(executor, tmp_path):
    start(executor, "n0", disk_full(), place=Placed("n0", "n0"), out=tmp_path)
    ((_, loss),) = executor.events()
    assert "No space left on device: /cache/x (on node n0)" in loss.reason
    assert loss.error is None, "not an error of ours"
    assert [node.node_id for node in executor.schedulable_nodes] == ["n1"]


def test_a_preempted_machine_is_a_loss_that_says_so_and_nothing_is_started_there(executor):
    cause = Preempted("the machine is about to be taken away")
    start(executor, "n0", RayTaskError("deploy", "traceback", cause), place=Placed("n0", "n0"))
    ((_, loss),) = executor.events()
    assert loss == Lost("node n0: the machine is about to be taken away")
    assert [node.node_id for node in executor.schedulable_nodes] == ["n1"]


def test_full_results_or_no_other_node_end_the_sweep_and_name_the_node(executor, tmp_path, clock):
    start(executor, "n0", disk_full(), out=tmp_path / "nothing can be written here")
    with pytest.raises(Halted, match="on node n0"):
        list(executor.events())
    start(executor, "n1", disk_full(), out=tmp_path)
    with pytest.raises(Halted, match="on node n1"):
        list(executor.events())


def test_a_frozen_driver_asks_ray_again_before_it_judges(executor, clock):
    """The machine was moved for a minute: nobody listened. A head that is really gone is noticed after that."""
    clock.now += 60
    executor._check()  # the clock's thread has not had its turn yet
    executor._tick()
    for _ in range(int(ray_executor.HEARTBEAT_TIMEOUT)):
        executor._check()
        clock.now += 1
        executor._tick()
    clock.now += 1
    executor._tick()
    with pytest.raises(Halted, match="Ray's head has not answered for 40 s"):
        executor._check()


def test_full_nodes_are_not_waited_for_for_ever(executor, clock):
    executor.full = {"n0", "n1"}
    clock.now = executor.head_seen = clock.now + executor.cluster.wait_for_nodes + 1
    with pytest.raises(Halted, match="disk is not full"):
        list(executor.events())


def test_placeholders_follow_the_requested_capacity_by_kind(executor, clock, monkeypatch):
    monkeypatch.setattr(executor, "_placeholder", lambda gpus, accelerator: f"{gpus} x {accelerator}")
    executor.autoscaling = True
    narrow, wide = Need("a", 1, "L4", 1.0), Need("b", 4, "L4", 1.0)
    executor.request_capacity([narrow, narrow], [])
    clock.now += ray_executor.HEARTBEAT
    executor.request_capacity([wide, narrow], [])
    assert executor.placeholders == {(4, "L4"): ["4 x L4"], (1, "L4"): ["1 x L4"]}
    assert ray_executor.ray.cancelled == ["1 x L4"]
    ray_executor.ray.done.add("4 x L4")  # its node has come
    clock.now += ray_executor.HEARTBEAT
    executor.request_capacity([narrow], [])
    assert executor.placeholders == {(4, "L4"): [], (1, "L4"): ["1 x L4"]}


def test_an_autoscaler_adds_nodes_only_for_the_shares_that_no_node_can_take(executor, monkeypatch):
    monkeypatch.setattr(executor, "_placeholder", lambda gpus, accelerator: gpus)
    executor.autoscaling, executor.nodes = True, [Node("here", 8, 16, (), "here")]
    divided = Need("a", 16, None, 1.0, replicas=16)
    for left, missing in ((8, 1), (7, 2)):
        executor.requested_at = 0.0
        executor.request_capacity([divided], [Node("here", left, 16, (), "here")])
        assert executor.placeholders == {(8, None): [8] * missing}
    executor.requested_at = 0.0
    executor.request_capacity([divided, divided], [Node("here", 8, 16, (), "here")])
    assert executor.placeholders == {(8, None): [8] * 3}, "the node takes one share of one of them"


def test_results_are_not_sent_to_nodes_as_code(tmp_path):
    """Whatever the results folder is called; and no file of this repository is left out."""
    paths = RunPaths(tmp_path)
    assert {path.name for path in (paths.deployments, paths.trials, paths.ledger, paths.plan)} <= {
        *ray_executor.NOT_CODE
    }
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not {part for path in tracked.split() for part in path.split("/")} & {*ray_executor.NOT_CODE}


@pytest.mark.parametrize("mode", ["disabled", "token", None])
def test_a_ray_in_place_always_asks_for_a_token_of_its_own(monkeypatch, mode):
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "that of a cluster")
    if mode:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    ray_environment.prepare_ray(Cluster(name="local", kind="local"))
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


@pytest.mark.ray
def test_a_ray_in_place_runs_its_tasks_at_the_priority_of_the_command():
    """Ray's own default is a niceness of 15: an engine would be measured on what other work leaves of the machine."""
    program = (
        "import os; from sweep.base.config import Cluster; from sweep.cluster.ray_environment import prepare_ray; "
        "prepare_ray(Cluster(name='local', kind='local')); import ray; "
        "ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=100_000_000); "
        "print(os.nice(0), ray.get(ray.remote(lambda: os.nice(0)).remote(), timeout=300))"
    )
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT, env=plain, timeout=400)
    driver, task = result.stdout.split()
    assert task == driver


IN_PLACE = """
import sys
from sweep.base.config import Cluster
from sweep.cluster.ray_environment import prepare_ray
cluster = Cluster(name="local", kind="local")
prepare_ray(cluster)
from sweep.cluster import ray_executor
ray_executor.join_cluster(cluster)
import ray
ray.get(ray.remote(lambda: None).remote())  # a worker listens, too
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""
INTRUDER = "import sys, ray; ray.init(address=sys.argv[1]); print(ray.get(ray.remote(lambda: 'inside').remote()))"


@pytest.fixture
def ray_in_place():
    """The process of a Ray in place, the address of its head, and the environment of the shell that started it."""
    shell = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    shell |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    command, pipe = [sys.executable, "-c", IN_PLACE], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT, env=shell) as process:
        assert process.stdout is not None
        yield psutil.Process(process.pid), process.stdout.readline().strip(), shell


def listening(process: psutil.Process) -> list[Any]:
    return [each for each in process.net_connections("inet") if each.status == psutil.CONN_LISTEN]


def is_wildcard_or_loopback(text: str) -> bool:
    address = ipaddress.ip_address(text)
    return address.is_unspecified or address.is_loopback


@pytest.mark.ray
def test_a_ray_in_place_has_a_loopback_address_and_refuses_who_has_no_token(ray_in_place):
    """Ray has some of its programs listen on all addresses, so the token is what keeps others out."""
    process, address, shell = ray_in_place
    sockets = set()
    for each in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):  # some of Ray's processes end at once
            sockets |= {(each.name(), connection.laddr.ip) for connection in listening(each)}
    assert {"gcs_server", "raylet"} <= {name for name, _ in sockets}, sockets
    of_network = {(name, ip) for name, ip in sockets if not is_wildcard_or_loopback(ip)}
    assert not of_network, "none has an address of the network"
    assert address.startswith("127.")
    intruder = [sys.executable, "-c", INTRUDER, address]
    refused = subprocess.run(intruder, capture_output=True, text=True, cwd=ROOT, env=shell, timeout=180)
    assert refused.returncode != 0
    assert "inside" not in refused.stdout
    assert re.search("[Aa]uthenticat|token", refused.stdout + refused.stderr), refused.stderr[-2000:]


def test_a_cluster_that_is_there_keeps_its_token(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "that of a cluster")
    ray_environment.prepare_ray(Cluster(name="ray", kind="ray"))
    assert (os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"]) == ("disabled", "that of a cluster")


def test_a_trials_progress_is_no_more_often_than_a_heartbeat_and_nothing_else_is_left_out(monkeypatch):
    now = 0
    monkeypatch.setattr(ray_executor, "time", SimpleNamespace(monotonic=lambda: 100.0 + now))

    def events():
        nonlocal now
        for now in range(12):  # s
            yield Measuring(TrialProgress(now, now, 0, 1, 9, 100, 1.0))
        yield State("trial 2 of 2")

    *progress, last = ray_executor._sparing(events())
    assert [event.progress.sent for event in progress] == [0, 5, 10]
    assert last == State("trial 2 of 2")


def test_a_head_that_was_restarted_halts_the_sweep(executor, monkeypatch):
    """Ray then refuses what it is asked with an error of its own; found by the soak."""

    def refuse(function, gpus):
        raise AuthenticationError("RPC error: WrongClusterID")

    monkeypatch.setattr(ray_executor, "_remote", refuse)
    monkeypatch.setattr(ray_executor, "NodeAffinitySchedulingStrategy", lambda *arguments, **more: None)
    work = SimpleNamespace(deployment=SimpleNamespace(gpu_count=1, describe=lambda: "d"))
    with pytest.raises(Halted, match="restarted .*WrongClusterID.*repeat the command"):
        executor.submit(work, "n0")
    assert not executor.tasks
