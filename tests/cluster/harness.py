"""A Ray cluster of several nodes on one host, sweeps on it, and the means to kill any part of either.

Each node is a `ray start` of its own on its own loopback address, so that a raylet can be killed and started again
while the others, and the driver, go on.
"""

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil
from ray.autoscaler._private.fake_multi_node.node_provider import (
    FAKE_HEAD_NODE_ID,
    FAKE_HEAD_NODE_TYPE,
    FakeMultiNodeProvider,
)

from backends.launch import supervisor
from backends.launch.server import free_port
from sweep.base.config import ROOT
from sweep.disk.ledger import ledger_entries
from sweep.disk.run_files import read_trials
from tests.support.results import committed_rows
from tests.support.waiting import wait_until

RAY = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--object-store-memory=100000000"]
ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",  # loopback only, for some minutes
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_raylet_start_wait_time_s": "120",
    "RAY_worker_niceness": "0",  # else whatever else runs on the machine starves the workers alone
    "OMP_NUM_THREADS": "1",
}
# Each of pytest's processes has a loopback subnet of its own, so that two clusters stand beside each other.
SUBNET = f"127.0.{40 + int(os.environ.get('PYTEST_XDIST_WORKER', 'gw0').removeprefix('gw'))}"
NETWORKS = itertools.count()
JOINS_WITHIN = 240.0  # s; a machine that others use too
SIMULATED = (
    *("backend=simulated", "model=tiny-llama", "workload=qa", "workload.output_tokens=8", "workload.num_requests=4"),
    *("tracking=none", "report=false", "backend.ttft.mean=0.02"),
)


# Ray's provider of nodes that are processes of this machine, and what its head must know to be recognized.
AUTOSCALER = {
    **dict.fromkeys(("AUTOSCALER_UPDATE_INTERVAL_S", "RAY_FAKE_CLUSTER", "RAY_enable_autoscaler_v2"), "1"),
    **dict.fromkeys(("RAY_CLOUD_INSTANCE_ID", "RAY_OVERRIDE_NODE_ID_FOR_TESTING"), FAKE_HEAD_NODE_ID),
}


class Node:
    """One node: `ray start --block` in a session of its own."""

    def __init__(
        self,
        cluster: "RayCluster",
        address: str,
        arguments: list[str],
        prefix: Sequence[str] = (),
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.cluster, self.address, self.arguments, self.prefix = cluster, address, arguments, prefix
        self.environment = {**cluster.environment, **environment}
        self.folder = cluster.folder / address.rpartition(".")[2]
        self.start()

    def start(self) -> None:
        self.last_raylet: psutil.Process | None = None
        self.log = (self.cluster.folder / f"{self.address}.log").open("wb")
        self.process = subprocess.Popen(
            # A folder of its own: nodes that start together would otherwise compete for the same socket names.
            [*self.prefix, *RAY, f"--node-ip-address={self.address}", f"--temp-dir={self.folder}", *self.arguments],
            stdout=self.log,
            stderr=self.log,
            env=self.environment,
            start_new_session=True,
        )

    def below(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def raylet(self) -> psutil.Process | None:
        with contextlib.suppress(psutil.NoSuchProcess):
            if self.last_raylet is not None and self.last_raylet.status() != psutil.STATUS_ZOMBIE:
                return self.last_raylet
        self.last_raylet = next(iter(self.raylets()), None)
        return self.last_raylet

    def raylets(self) -> list[psutil.Process]:
        """Return its raylet, and those of the nodes that its autoscaler has started."""
        named = (process for process in self.below() if process.name() == "raylet")
        return [process for process in named if process.status() != psutil.STATUS_ZOMBIE]

    def joined(self) -> bool:
        return b"Ray runtime started" in Path(self.log.name).read_bytes()

    def stop(self) -> None:
        for process in self.below():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.kill()
        self.process.wait()
        self.log.close()


class RayCluster:
    """A head without CPUs and nodes of one CPU each: on loopback, or in network namespaces, whose links can be cut."""

    def __init__(
        self,
        nodes: int | Sequence[int] = 3,
        network: "Network | None" = None,
        each: tuple[str, ...] = ("--num-cpus=1",),
        prefixes: Sequence[Sequence[str]] = (),
        environments: Sequence[Mapping[str, str]] = (),
        grows: Mapping[str, Any] | None = None,
    ) -> None:
        """Start as many nodes, or those with these numbers in the network.

        `prefixes` stand before each node's command, `environments` are added to its environment. Nodes of the type
        `grows` are started by Ray's autoscaler, on this machine.
        """
        self.folder = Path(tempfile.mkdtemp(prefix="rc-", dir="/tmp"))
        self.environment = {**os.environ, **ENVIRONMENT}
        self.port = free_port()
        subnet = network.subnet if network else SUBNET
        numbers = range(nodes) if isinstance(nodes, int) else nodes
        prefixes = prefixes or [network.prefixes()[number] if network else [] for number in numbers]
        environments = environments or [{}] * len(numbers)
        head = ["--head", f"--port={self.port}", "--num-cpus=0", "--include-dashboard=false"]
        self.address = f"{subnet}.1:{self.port}"
        if grows is not None:
            head.append(f"--autoscaling-config={self._autoscaling(grows)}")
        self.nodes: list[Node] = []
        self.head = Node(self, f"{subnet}.1", head, environment=AUTOSCALER if grows is not None else {})
        joins = [f"--address={self.address}", *each]
        try:
            wait_until(self.head.joined, JOINS_WITHIN, "Ray's head")
            for number, prefix, environment in zip(numbers, prefixes, environments, strict=True):
                self.nodes.append(Node(self, f"{subnet}.{number + 2}", joins, prefix, environment))
            self.wait()
        except BaseException:
            self.stop()
            raise

    def _autoscaling(self, kind: Mapping[str, Any]) -> Path:
        """Write the configuration of an autoscaler that starts nodes of this kind, and return its path."""
        external = f"{FakeMultiNodeProvider.__module__}.{FakeMultiNodeProvider.__name__}"
        provider = {"type": "external", "module": external, "gcs_address": self.address, "launch_multiple": True}
        provider |= {"head_node_id": FAKE_HEAD_NODE_ID, "disable_node_updaters": True}
        head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
        kinds = {FAKE_HEAD_NODE_TYPE: head, "kind": {"node_config": {}, **kind}}
        config = {"cluster_name": "growing", "provider": provider, "max_workers": 8, "idle_timeout_minutes": 60}
        config |= {"available_node_types": kinds, "head_node_type": FAKE_HEAD_NODE_TYPE, "file_mounts": {}}
        config |= {"cluster_synced_files": [], "file_mounts_sync_continuously": False, "rsync_exclude": []}
        for commands in ("setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray", "initialization"):
            config[f"{commands}_commands"] = []
        path = self.folder / "autoscaling.json"
        path.write_text(json.dumps(config))
        return path

    def __enter__(self) -> "RayCluster":
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        for node in [*self.nodes, self.head]:
            node.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def wait(self) -> None:
        wait_until(lambda: all(node.joined() for node in self.nodes), JOINS_WITHIN, "all nodes", poll=0.5)

    def revive(self) -> list[Node]:
        """Start again the nodes whose `ray start` has ended, as Kubernetes or Slurm would; return them."""
        ended = [n for n in self.nodes if n.process.poll() is not None or (n.joined() and n.raylet() is None)]
        for node in ended:
            node.stop()
            node.start()
        return ended

    def restart(self) -> None:
        """End the head and all nodes, and start them again under the same addresses."""
        for node in [*self.nodes, self.head]:
            node.stop()
        self.head.start()
        wait_until(self.head.joined, JOINS_WITHIN, "Ray's head")
        for node in self.nodes:
            node.start()


class Network:
    """Network namespaces n0, n1, ... at .2, .3, ... of a free subnet, each linked to a bridge of this host at .1."""

    def __init__(self, size: int) -> None:
        self.bridge = f"swp{os.getpid()}{chr(97 + next(NETWORKS) % 26)}"  # a retry may begin before its last end
        self.names = [f"{self.bridge}n{index}" for index in range(size)]
        self.subnet = free_subnet()
        self.cut_off: set[int] = set()

    def __enter__(self) -> "Network":
        """Create the network; raises subprocess.CalledProcessError without permission to create namespaces."""
        with contextlib.ExitStack() as made:
            ip("link", "add", self.bridge, "type", "bridge")
            made.callback(ip, "link", "del", self.bridge)
            ip("addr", "add", f"{self.subnet}.1/24", "dev", self.bridge)
            ip("link", "set", self.bridge, "up")
            for index, name in enumerate(self.names):
                ip("netns", "add", name)
                made.callback(ip, "netns", "del", name)
                ip("link", "add", self.link(index), "type", "veth", "peer", "name", "eth0", "netns", name)
                ip("link", "set", self.link(index), "master", self.bridge, "up")
                for step in (f"addr add {self.subnet}.{index + 2}/24 dev eth0", "link set eth0 up", "link set lo up"):
                    ip("-n", name, *step.split())
            self.made = made.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self.made.close()

    def link(self, index: int) -> str:
        return f"{self.bridge}v{index}"

    def prefixes(self) -> list[list[str]]:
        return [["ip", "netns", "exec", name] for name in self.names]

    def cut(self, index: int) -> None:
        """Drop all packets from and to this node from now on, without any notice."""
        ip("link", "set", self.link(index), "down")
        self.cut_off.add(index)

    def mend(self, index: int) -> None:
        """Undo `cut`."""
        ip("link", "set", self.link(index), "up")
        self.cut_off.discard(index)


def network_obstacle(*programs: str) -> str | None:
    """Return why there can be no `Network` here, or which of these programs is missing; None if nothing is."""
    if os.geteuid():
        return "nodes with networks of their own need root"
    missing = [program for program in ("ip", "unshare", *programs) if shutil.which(program) is None]
    if missing:
        return f"nodes with networks of their own need {', '.join(missing)}"
    links = "ip link add bridge0 type bridge && ip link add veth0 type veth peer name veth1"
    tried = subprocess.run(["unshare", "--net", "sh", "-c", links], capture_output=True, text=True, check=False)
    return f"no network namespaces here: {' '.join(tried.stderr.split())}" if tried.returncode else None


def free_subnet() -> str:
    """Return the first three numbers of a subnet that no link has: a run that was killed leaves its bridge behind."""
    taken = {address.address for addresses in psutil.net_if_addrs().values() for address in addresses}
    return next(f"10.77.{number}" for number in range(256) if f"10.77.{number}.1" not in taken)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class Sweep:
    """A sweep of a plan in a folder, run as a user does: the same command, repeated."""

    def __init__(self, out: Path, *arguments: str, cache: Path, environment: dict[str, str] | None = None) -> None:
        self.out = out
        self.environment = {**os.environ, **ENVIRONMENT, **(environment or {})}
        self.arguments = [*SIMULATED, *arguments, f"out={out}", f"cache_dir={cache}"]
        self.logs = out  # beside the folder
        self.program = ["-m", "sweep"]
        self.process: subprocess.Popen[bytes] | None = None
        self.runs = 0
        self.run_name: str | None = None

    @property
    def log(self) -> Path:
        return self.logs.with_name(f"{self.logs.name}.{self.runs}.log")

    def start(self, *arguments: str) -> "Sweep":
        self.runs += 1
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self.program, *self.arguments, *arguments],
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env=self.environment,
                start_new_session=True,
            )
        return self

    def wait(self, timeout: float = 180) -> int:
        assert self.process is not None
        return self.process.wait(timeout)

    def run(self, *arguments: str, timeout: float = 180) -> int:
        return self.start(*arguments).wait(timeout)

    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    # -- what is on disk

    def ledger(self) -> list[dict[str, Any]]:
        path = self.out / "ledger.jsonl"
        return list(ledger_entries(path.read_bytes().splitlines(keepends=True))) if path.exists() else []

    def plan(self) -> list[str]:
        entries = [json.loads(line) for line in (self.out / "plan.jsonl").read_text().splitlines()]
        return [entry["trial_id"] for entry in entries if entry["kind"] == "trial"]

    def rows(self) -> list[dict[str, Any]]:
        return [row for row in read_trials(self.out / "trials.parquet") if row["in_plan"]]

    def outcomes(self) -> Counter[str]:
        return Counter(row["outcome"] for row in self.rows())

    def measured(self) -> Counter[str]:
        """Outcomes, with `client_limited` as ok: these tests are not about a busy machine."""
        return Counter(row["outcome"].replace("client_limited", "ok") for row in self.rows())

    def committed(self) -> list[dict[str, Any]]:
        return committed_rows(self.out / "ledger.jsonl")

    def check_rows(self) -> None:
        """Assert that every trial of the plan has exactly one row, and that there are no other rows."""
        assert sorted(row["trial_id"] for row in self.rows()) == sorted(self.plan())

    # -- its processes

    def name(self) -> str:
        if self.run_name is None:
            self.run_name = next((entry["run"] for entry in self.ledger() if entry["event"] == "run"), None)
        return self.run_name or "no run yet"

    def marked(self) -> list[int]:
        """Engines, their children and supervisors."""
        name = self.name()
        return supervisor.marked(lambda environ: environ[supervisor.MARKER].startswith(f"{name}/"))

    def supervisors(self) -> list[int]:
        return [pid for pid in self.marked() if "SWEEP_SUPERVISOR" in supervisor.process_environment(pid)]

    def engine_processes(self) -> list[int]:
        return [pid for pid in self.marked() if "SWEEP_SUPERVISOR" not in supervisor.process_environment(pid)]

    def engines(self) -> list[int]:
        """Main processes: those whose parent is a supervisor."""
        heads = set(self.supervisors())
        return [pid for pid in self.engine_processes() if parent(pid) in heads]

    def children(self) -> list[int]:
        return [pid for pid in self.engine_processes() if pid not in set(self.engines())]

    def workers(self) -> list[int]:
        owners = {
            supervisor.process_environment(pid).get(supervisor.OWNER, "").partition(":")[0] for pid in self.engines()
        }
        return [int(owner) for owner in owners if owner.isdecimal() and psutil.pid_exists(int(owner))]

    def clients(self) -> list[int]:
        workers = set(self.workers())
        return [pid for pid in pids_of("sweep.client.process") if parent(pid) in workers]


def write_engine(folder: Path, python: str) -> str:
    """Write an interpreter whose engine has a child in a session of its own that ignores SIGTERM."""
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "python"
    child = f"{python} -c 'import signal,time; signal.signal(15, signal.SIG_IGN); time.sleep(3600)'"
    script.write_text(f'#!/bin/sh\n[ -n "$SWEEP_MARKER" ] && setsid {child} &\nexec {python} "$@"\n')
    os.chmod(script, 0o755)
    return f"backend.env.python={script}"


def parent(pid: int) -> int:
    try:
        return psutil.Process(pid).ppid()
    except psutil.NoSuchProcess:
        return 0


def netns(pid: int) -> str:
    """Return the network namespace of a process; empty if it is gone."""
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{pid}/ns/net")
    return ""


def pids_of(argument: str) -> list[int]:
    """Processes with this word on their command line."""
    return [each.pid for each in psutil.process_iter(["cmdline"]) if argument in (each.info["cmdline"] or [])]


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
