"""Runs deployments on a Ray cluster. The only file that imports Ray; Ray schedules deployments, never requests.

A deployment is one task that reserves its GPUs or, on a machine without GPUs, the whole node, since engines on the same
CPU would disturb each other. Its events are streamed back. Ray's retries are off: the driver decides which attempt is
used. `ray_environment.prepare_ray` must run before this file is imported.

Ray takes minutes to notice that a node is gone. So driver and tasks send each other heartbeats: the driver through a
key in Ray's head, a task through a Beat in its stream. After HEARTBEAT_TIMEOUT seconds without a heartbeat, the driver
retries the deployment elsewhere, and a task stops itself and its engine.
"""

import functools
import os
import re
import socket
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

import ray
import yaml
from ray.exceptions import NodeDiedError, RayError, RayTaskError
from ray.experimental import internal_kv
from ray.util import metrics
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from backends.base import Host
from backends.launch import host_facts
from backends.launch.gpus import find_gpu
from sweep.base.config import ROOT, Cluster, ConfigError, Halted, first_line, import_path
from sweep.base.time_factor import FACTOR_VARIABLE, TIME_FACTOR, scaled
from sweep.cluster import preemption
from sweep.cluster.preemption import Preempted
from sweep.cluster.transfer import carried
from sweep.node.deployment import DiskFull, clear_engines, stream_deployment
from sweep.node.events import Beat, Completed, End, Event, Lost, Measuring, NotStarted, PartnerEvent, Placed
from sweep.node.spread.partners import NodeLost, NodeShare, SpreadNodes
from sweep.node.spread.share import stream_share
from sweep.node.work import Work
from sweep.plan.packing import Need, Node, can_run

RESULT_POLL = 0.5  # s
HEARTBEAT = scaled(5.0)  # s
CLOCK_POLL = 1.0  # s
LEADER_POLL = 0.5  # s between two checks of whether the leader is done
HEARTBEAT_TIMEOUT = scaled(40.0)  # s; within 60 s a lost connection must be noticed and the node's engines stopped
START_TIMEOUT = scaled(120.0)  # s for a node to start a deployment
CONNECT_TIMEOUT = 3.0  # s for a node to accept a connection
FREE_PROBE_BYTES = 16 << 20  # written to the disk of the results as a test
SILENT_NODE_BACKOFF = scaled(180.0)  # s without new deployments on a node that fell silent
LOSS_BACKOFF = 2 * HEARTBEAT  # s without new deployments on a node that lost one
STATEMENT_TIMEOUT = 30.0  # s for a node to report its facts
CLEANUP_TIMEOUT = 30.0  # s for a node to kill leftover engines
IN_PLACE_ADDRESS = "127.0.0.2"  # Ray replaces 127.0.0.1 and localhost by the machine's own address
LAUNCHER_CONFIG = Path(os.path.expanduser("~/ray_bootstrap_config.yaml"))  # Path.home() fails without a home
NOT_CODE = ["results", ".git", ".venv", "wandb"]  # in the working directory, which is sent to every node
NOT_CODE += ["deployments", "trials.parquet", "ledger.jsonl", "plan.jsonl"]  # large files in a results folder
NODE_ID = "ray.io/node-id"  # the label that Ray gives every node
NAMESPACE = b"sweep"
TRIALS_TAGS = ("experiment", "backend", "model", "outcome")
THROUGHPUT_TAGS = ("experiment", "backend", "model", "workload", "load")
REMEDY = "once it is running again, repeat the command to continue"


_facts: dict[tuple[str, str | None], Host] = {}  # of nodes, by id and cache_dir


@contextmanager
def _halting() -> Iterator[None]:
    """Turn an error of Ray itself into Halted, e.g. after a restart of the head, which no longer knows this driver."""
    try:
        yield
    except RayError as error:
        raise Halted(f"Ray's head is gone or was restarted ({first_line(error)}); {REMEDY}") from error


def _refuse_dead_address(cluster: Cluster) -> None:
    """Reject an address where nothing listens; Ray itself would try to reach it for minutes."""
    address = cluster.address if cluster.address not in (None, "auto") else os.environ.get("RAY_ADDRESS")
    host, _, port = (address or "").rpartition(":")
    if cluster.kind != "ray" or not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        problem = f"nothing listens there ({error}); expected HOST:PORT of a Ray head, or auto"
        raise ConfigError(f"cluster.address={address}: {problem}") from None


def join_cluster(cluster: Cluster) -> None:
    """Start a Ray for this run, or join an existing one. Raises ConfigError if there is none to join."""
    if ray.is_initialized():
        return
    _refuse_dead_address(cluster)
    try:
        options: dict[str, Any] = {"address": cluster.address or "auto"}
        if cluster.kind == "local":  # otherwise Ray searches for minutes for a dead cluster of this host
            options = {"address": "local", "_node_ip_address": IN_PLACE_ADDRESS, "include_dashboard": False}
            options["runtime_env"] = {"env_vars": {"PYTHONPATH": import_path()}}
        elif "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:
            options["runtime_env"] = {"working_dir": str(ROOT), "excludes": NOT_CODE}
            if TIME_FACTOR != 1:  # the tasks need it too, or they would miss heartbeats that are not due yet
                options["runtime_env"]["env_vars"] = {FACTOR_VARIABLE: str(TIME_FACTOR)}
        ray.init(log_to_driver=False, logging_level="ERROR", **options)
    except (ConnectionError, RayError, RuntimeError, ValueError) as error:
        where = f"cluster.address={cluster.address}" if cluster.kind == "ray" else f"cluster={cluster.name}"
        raise ConfigError(f"{where}: cannot connect to Ray ({first_line(error)})") from None


def nodes(cluster: Cluster) -> list[Node]:
    """Return the living nodes of the cluster that match its labels."""
    return [
        _node(node["NodeManagerAddress"], node["Resources"], node["NodeID"])
        for node in ray.nodes()
        if node["Alive"]
        and node["Resources"].get("CPU")
        and all(_matches_label(node["Labels"].get(key), selector) for key, selector in cluster.labels.items())
    ]


def state_facts(living: Sequence[Node], cache_dir: str | None) -> list[Node]:
    """Return the nodes with the facts they report: driver, GPUs, free disk; without facts if a node does not answer."""
    asked_now = [node for node in living if (node.node_id, cache_dir) not in _facts]
    answers = ask_nodes(host_facts.stated, asked_now, cache_dir)
    _facts.update({(node_id, cache_dir): facts for node_id, facts in answers.items()})
    return [node._replace(facts=_facts.get((node.node_id, cache_dir), node.facts)) for node in living]


def ask_nodes(function: Callable[..., Any], living: Sequence[Node], *arguments: Any) -> dict[str, Any]:
    """Run a function on each node; return the results by node id, without nodes that do not answer in time."""
    tasks = {
        _call.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.node_id, soft=False)).remote(
            function, *arguments
        ): node.node_id
        for node in living
        if node.node_id
    }
    finished, _ = ray.wait(list(tasks), num_returns=len(tasks), timeout=STATEMENT_TIMEOUT) if tasks else ([], [])
    answers = {}
    for task in finished:
        with suppress(RayError):
            answers[tasks[task]] = ray.get(task)
    return answers


def _matches_label(value: str | None, selector: str) -> bool:
    """Return whether a label's value matches a selector in Ray's syntax: x, !x, in(x,y), !in(x,y)."""
    positive = selector.removeprefix("!")
    values = positive[3:-1].split(",") if positive.startswith("in(") else [positive]
    return (value in [name.strip() for name in values]) == (positive == selector)


def startable_nodes(cluster: Cluster) -> list[Node]:
    """Return the nodes that an autoscaler could start, one of each type; an empty list if there is no autoscaler.

    Ray has no call for this: the types come from cluster.node_types, or from the file of Ray's launcher on the head.
    A type's GPU driver comes from its configuration, or from the name of its image.
    """
    if cluster.node_types is not None:
        kinds = [
            (kind.gpus, kind.cpus, (kind.accelerator,) if kind.accelerator else (), "", Host(driver=kind.driver))
            for kind in cluster.node_types
        ]
        return [Node(f"autoscaler: node type {index}", *kind) for index, kind in enumerate(kinds)]
    if not LAUNCHER_CONFIG.exists():
        return []
    types = yaml.safe_load(LAUNCHER_CONFIG.read_text()).get("available_node_types", {})
    return [
        _node(f"autoscaler: {name}", kind["resources"])._replace(facts=Host(driver=_image_driver(kind)))
        for name, kind in types.items()
        if kind.get("max_workers", 1)
    ]


def _image_driver(kind: Mapping[str, Any]) -> str | None:
    """Return the GPU driver in the name of a node type's image, as in Google's own images: ...-nvidia-580."""
    disks = kind.get("node_config", {}).get("disks", ())
    images = [disk.get("initializeParams", {}).get("sourceImage", "") for disk in disks]
    return next((match[1] for image in images if (match := re.search(r"-nvidia-(\d+)", image))), None)


def _node(address: str, resources: Mapping[str, float], node_id: str = "") -> Node:
    prefix = "accelerator_type:"
    accelerators = tuple(name.removeprefix(prefix) for name in resources if name.startswith(prefix))
    return Node(address, int(resources.get("GPU", 0)), int(resources.get("CPU", 0)), accelerators, node_id)


# In a task -----------------------------------------------------------------------------------------------------------


def _deploy(work: Work, session: str, group: "_Group | None" = None) -> Iterator[Event]:
    draining = threading.Event()
    _follow(session, draining)
    address = ray.util.get_node_ip_address()
    yield Placed(ray.get_runtime_context().get_node_id(), ", ".join(group.addresses) if group else address)
    spread = group and SpreadNodes(
        group.addresses, lambda index, share: _RayPartner(work, session, group, index, share)
    )
    events = carried(work, lambda local: stream_deployment(local, _own_gpus(), draining, HEARTBEAT, spread))
    yield from _unless_preempted(_sparing(events))  # at least one in every two HEARTBEATs


def _hold_share(work: Work, session: str, share: NodeShare, key: str) -> Iterator[PartnerEvent]:
    stop = threading.Event()
    _follow(session, threading.Event())
    _follow_leader(key, stop)
    events = carried(work, lambda local: stream_share(local, _own_gpus(), share, stop, HEARTBEAT))
    yield from _unless_preempted(events)


def _own_gpus() -> tuple[str, ...]:
    return tuple(gpu.uuid if (gpu := find_gpu(str(each))) else str(each) for each in ray.get_gpu_ids())


def _unless_preempted(events: Iterable[Any]) -> Iterator[Any]:
    preempted = preemption.watch()
    for event in events:
        yield event
        if preempted.is_set():  # the engine ends with this process; a regular stop would take too long
            raise Preempted("the machine is about to be taken away (preemption notice of Google Cloud)")


def _sparing(events: Iterable[Event]) -> Iterator[Event]:
    """Drop progress events within a HEARTBEAT of the previous event, since each costs the driver 1 ms of CPU time."""
    due = 0.0
    for event in events:
        if isinstance(event, Measuring):
            if time.monotonic() < due:
                continue
            due = time.monotonic() + HEARTBEAT
        yield event


def _follow(session: str, draining: threading.Event) -> None:
    """Watch raylet and driver in two threads, since a call to an unreachable head may never return.

    When the driver is gone, this process ends itself and with it its lease on the engine, however busy the process is.
    """
    raylet = os.getppid()
    last_beat = time.monotonic()

    def listen() -> None:
        nonlocal last_beat
        last = None
        while True:
            beat = internal_kv._internal_kv_get(session, namespace=NAMESPACE)
            if beat != last:
                last_beat, last = time.monotonic(), beat
            if beat is not None and beat.startswith(b"drain"):
                draining.set()
            time.sleep(HEARTBEAT / 4)

    def watch() -> None:
        while os.getppid() == raylet and time.monotonic() - last_beat < HEARTBEAT_TIMEOUT:
            time.sleep(0.5)
        os._exit(1)

    for function in (listen, watch):
        threading.Thread(target=function, name=function.__name__, daemon=True).start()


def _follow_leader(key: str, stop: threading.Event) -> None:
    """Set `stop` once the leader has put something under this key of Ray's head. If it dies, Ray ends this process."""

    def listen() -> None:
        while not internal_kv._internal_kv_get(key, namespace=NAMESPACE):
            time.sleep(LEADER_POLL)
        stop.set()

    threading.Thread(target=listen, name="leader", daemon=True).start()


class _Group(NamedTuple):
    """The nodes of a launch whose replicas are divided, in Ray's terms: one bundle of resources for each."""

    placement: Any
    addresses: tuple[str, ...]
    cpus: tuple[float, ...]
    gpus: int  # on each node

    def task(self, function: Callable[..., Any], index: int, name: str) -> Any:
        """Return the remote function on the node with this index."""
        strategy = PlacementGroupSchedulingStrategy(self.placement, placement_group_bundle_index=index)
        return _streaming(function, self.gpus, self.cpus[index], strategy, name)


class _RayPartner:
    """A partner's task, started by the leader's."""

    def __init__(self, work: Work, session: str, group: _Group, index: int, share: NodeShare) -> None:
        self.address, self.key = share.address, f"{session}/{uuid.uuid4().hex}"
        self.within = work.deployment.backend.stop_grace + CLEANUP_TIMEOUT
        name = f"{work.deployment.describe()}, replicas from {share.replicas[0] + 1}"
        task = group.task(_hold_share, index, name)
        self.stream, self.ended = task.remote(work, session, share, self.key), threading.Event()

    def events(self) -> Iterator[PartnerEvent]:
        within = START_TIMEOUT
        try:
            while ray.wait([self.stream], timeout=within, fetch_local=False)[0]:
                yield ray.get(next(self.stream), timeout=HEARTBEAT_TIMEOUT)
                within = HEARTBEAT_TIMEOUT
            raise NodeLost(self.address, f"no heartbeat for {within:.0f} s")
        except StopIteration:
            return
        except RayTaskError as error:
            if isinstance(error.cause, DiskFull | Preempted):
                raise NodeLost(self.address, str(error.cause)) from None
            raise
        except RayError as error:
            raise NodeLost(self.address, first_line(error)) from None
        finally:
            self.ended.set()

    def stop(self) -> None:
        internal_kv._internal_kv_put(self.key, "stop", namespace=NAMESPACE)
        if not self.ended.wait(self.within):
            ray.cancel(self.stream, force=True)


_call: Any = ray.remote(num_cpus=0, max_calls=1, max_retries=0)(lambda function, *arguments: function(*arguments))


_clean_up: Any = ray.remote(num_cpus=0, max_calls=1, max_retries=0)(clear_engines)


_hold_place: Any = ray.remote(max_calls=1, max_retries=0)(lambda: None)  # an autoscaler adds a node to schedule it


def _streaming(function: Callable[..., Any], gpus: int, cpus: float, strategy: Any, name: str) -> Any:
    options = {"num_returns": "streaming", "num_cpus": cpus, "scheduling_strategy": strategy, "name": name}
    return _remote(function, gpus).options(**options)


@functools.cache
def _remote(function: Callable[..., Any], gpus: int) -> Any:
    """Return the remote function. GPUs are in the decorator: with .options, Ray would reuse the worker and its GPUs."""
    resources = {"num_gpus": gpus, "num_cpus": 1} if gpus else {}
    return ray.remote(**resources, max_calls=1, max_retries=0)(function)


# In the driver -------------------------------------------------------------------------------------------------------


@functools.cache
def _gauges() -> tuple[metrics.Counter, metrics.Gauge]:
    trials = metrics.Counter("sweep_trials", "Trials that have ended", TRIALS_TAGS)
    description = "Output tokens per second of the last trial"
    return trials, metrics.Gauge("sweep_output_throughput", description, THROUGHPUT_TAGS)


def _has_room(folder: str) -> bool:
    """Return whether FREE_PROBE_BYTES can be written to the folder; the free space does not reveal a quota."""
    with suppress(OSError), tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(FREE_PROBE_BYTES))
        os.fsync(file.fileno())
        return True
    return False


class _RunningTask(NamedTuple):
    """A submitted Ray task that has not ended."""

    work: Work
    place: Placed | None
    last_event: float  # monotonic
    node: Node  # of the leader, if there are partners
    partners: tuple[Node, ...] = ()
    placement: Any = None


class RayExecutor:
    """Runs deployments as Ray tasks, each on the node that the driver chose."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.tasks: dict[Any, _RunningTask] = {}  # by stream of events
        self.backoff_until: dict[str, float] = {}  # by node id, on the monotonic clock
        self.cleanups: list[Any] = []
        self.draining = threading.Event()
        self.closed = threading.Event()
        self.session = ""
        self.nodes: list[Node] = []  # the living nodes
        self.all_nodes: dict[str, Node] = {}  # by id, including dead nodes
        self.ports: dict[str, int] = {}  # of the nodes' raylets, by node id
        self.full: set[str] = set()  # ids of nodes whose own disk is full
        self.autoscaling = False
        self.placeholders: dict[tuple[int, str | None], list[Any]] = {}  # tasks that make an autoscaler start nodes
        self.requested_at = 0.0  # when the placeholders were last updated, on the monotonic clock
        self.head_seen = self.had_nodes = time.monotonic()  # when Ray's head last answered
        self.ticked = time.monotonic()  # when this process last ran: it, or its machine, may be suspended
        self.home, self.home_alive = "", True  # the driver's own node

    def __enter__(self) -> Self:
        join_cluster(self.cluster)
        self.session = f"{ray.get_runtime_context().get_job_id()}-{os.getpid()}-{time.time_ns()}"
        self.home = ray.get_runtime_context().get_node_id()
        self._refresh_nodes()
        self.autoscaling = bool(startable_nodes(self.cluster))
        threading.Thread(target=self._beat, name="beat", daemon=True).start()
        threading.Thread(target=self._watch_clock, name="clock", daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.closed.set()
        self.cancel()
        ray.shutdown()

    def _refresh_nodes(self) -> None:
        self.nodes = nodes(self.cluster)
        self.all_nodes |= {node.node_id: node for node in self.nodes}
        listed = ray.nodes()
        self.ports |= {node["NodeID"]: node["NodeManagerPort"] for node in listed}
        self.home_alive = any(node["Alive"] and node["NodeID"] == self.home for node in listed)
        self.head_seen = time.monotonic()

    def _beat(self) -> None:
        """Update the list of nodes, and send the tasks a heartbeat, which also tells them when to drain."""
        count = 0
        while not self.closed.is_set():
            count += 1
            order = "drain" if self.draining.is_set() else "run"
            with suppress(RayError, RuntimeError, OSError, AttributeError):  # `events` halts if `head_seen` is old
                internal_kv._internal_kv_put(self.session, f"{order} {count}", namespace=NAMESPACE)
                self._refresh_nodes()
            self.draining.wait(HEARTBEAT) if order == "run" else self.closed.wait(HEARTBEAT)

    def _watch_clock(self) -> None:
        while not self.closed.wait(CLOCK_POLL):
            self._tick()

    def _tick(self) -> None:
        """Record that this process runs. After a suspension, Ray's head is queried again before it is declared lost."""
        now = time.monotonic()
        if now - self.ticked > HEARTBEAT:
            self.head_seen = min(now, self.head_seen + now - self.ticked)
        self.ticked = now

    @property
    def schedulable_nodes(self) -> list[Node]:
        """The nodes on which a deployment may be started now: their disk is not full, and they are not in backoff.

        After a loss a node is avoided for a while, since Ray may not have noticed yet that it is dead.
        """
        now = time.monotonic()
        excluded = self.full | {node_id for node_id, until in self.backoff_until.items() if now < until}
        return [node for node in self.nodes if node.node_id not in excluded]

    @_halting()
    def request_capacity(self, needs: Sequence[Need], left: Sequence[Node]) -> None:
        """Ask an autoscaler for nodes, with placeholder tasks that can run only on nodes that do not exist yet.

        Of a launch on several nodes, only the shares that fit on no existing node (`left`: its unused GPUs) count.
        Unlike `request_resources`, placeholders end with this driver, however it ends: nobody pays for unused nodes.
        """
        if time.monotonic() - self.requested_at < HEARTBEAT or not self.autoscaling:
            return
        self.requested_at = time.monotonic()
        requested: Counter[tuple[int, str | None]] = Counter()
        startable = [*startable_nodes(self.cluster), *self.nodes]
        for need in needs:
            parts = need.parts(startable)
            share = need.gpus // parts
            here = [node for node in left if parts > 1 and can_run(node, need, parts)][:parts]
            left = [node._replace(gpus=node.gpus - share) if node in here else node for node in left]
            requested[share, need.accelerator] += parts - len(here)
        for kind in {**requested, **self.placeholders}:  # in the order of the needs
            tasks = self.placeholders.get(kind, [])
            if tasks:
                _, tasks = ray.wait(tasks, num_returns=len(tasks), timeout=0)
            for task in tasks[requested[kind] :]:
                ray.cancel(task, force=True)
            more = [self._placeholder(*kind) for _ in range(requested[kind] - len(tasks))]
            self.placeholders[kind] = tasks[: requested[kind]] + more

    def _placeholder(self, gpus: int, accelerator: str | None) -> Any:
        existing = ",".join(sorted(node.node_id for node in self.nodes))
        labels = self.cluster.labels | ({NODE_ID: f"!in({existing})"} if existing else {})
        return _hold_place.options(
            num_gpus=gpus, num_cpus=1, name="request a node", accelerator_type=accelerator, label_selector=labels
        ).remote()

    def export_metrics(self, row: Mapping[str, Any]) -> None:
        """Export a trial to Ray's dashboard and Prometheus endpoint: sweep_trials, and the last throughput."""
        trials, throughput = _gauges()
        trials.inc(tags={name: str(row[name]) for name in TRIALS_TAGS})
        if row.get("output_throughput") is not None:
            throughput.set(row["output_throughput"], tags={name: str(row[name]) for name in THROUGHPUT_TAGS})

    def clean_up(self, marker: str) -> None:
        """Kill engines with this marker on all nodes, and tasks that own them: earlier drivers may have left them."""
        self._clean_up_nodes([node.node_id for node in self.nodes], marker)
        ray.wait(self.cleanups, num_returns=len(self.cleanups), timeout=CLEANUP_TIMEOUT)

    @_halting()
    def _clean_up_nodes(self, node_ids: list[str], marker: str) -> None:
        for node_id in node_ids:
            affinity = NodeAffinitySchedulingStrategy(node_id, soft=False)  # soft: any node could be cleaned instead
            task = _clean_up.options(scheduling_strategy=affinity, name="clear engines")
            self.cleanups.append(task.remote(marker))

    def has_nodes_besides(self, node_ids: set[str]) -> bool:
        """Return whether the cluster has further nodes, including nodes in backoff."""
        return bool({node.node_id for node in self.nodes} - node_ids - self.full)

    @_halting()
    def submit(self, work: Work, node_id: str, partners: Sequence[str] = ()) -> None:
        """Start a deployment on this node, and its further replicas on `partners`, with its share of their cores.

        The driver ensures that the GPUs are free.
        """
        deployment, chosen = work.deployment, [self.all_nodes[each] for each in (node_id, *partners)]
        node, gpus = chosen[0], deployment.gpu_count // len(chosen)
        shares = (each.cpus * gpus / each.gpus if gpus else each.cpus for each in chosen)
        cpus = tuple(int(share) if share >= 1 else round(share - 5e-5, 4) for share in shares)
        placement = None
        if partners:
            placement = placement_group(
                [{"GPU": gpus, "CPU": each} for each in cpus],
                strategy="STRICT_SPREAD",
                name=deployment.describe(),
                bundle_label_selector=[{NODE_ID: each.node_id} for each in chosen],
            )
            group = _Group(placement, tuple(each.address for each in chosen), cpus, gpus)
            stream = group.task(_deploy, 0, deployment.describe()).remote(work, self.session, group)
        else:
            strategy = NodeAffinitySchedulingStrategy(node_id, soft=False)
            task = _streaming(_deploy, gpus, cpus[0], strategy, deployment.describe())
            stream = task.remote(work, self.session)
        self.tasks[stream] = _RunningTask(work, None, time.monotonic(), node, tuple(chosen[1:]), placement)

    def events(self) -> Iterator[tuple[Work, Event | End]]:
        """Yield the events since the last call, Ends last. Raises Halted if Ray is gone or a disk is full."""
        self._check()
        if not self.tasks:
            time.sleep(RESULT_POLL)
            return
        streams = list(self.tasks)
        ray.wait(streams, num_returns=1, timeout=RESULT_POLL, fetch_local=False)
        ready, _ = ray.wait(streams, num_returns=len(streams), timeout=0, fetch_local=False)
        polled = time.monotonic()  # time that the driver spends on an event is not silence
        for stream in ready:
            yield from self._next(stream)
        for stream in set(streams) - set(ready):
            if end := self._timeout(self.tasks[stream], polled):
                yield self._end(stream, end)

    def _timeout(self, task: _RunningTask, polled: float) -> Lost | NotStarted | None:
        node, silence = task.node, polled - task.last_event
        living = {each.node_id for each in self.nodes}
        if task.place is None and (dead := [each for each in (node, *task.partners) if each.node_id not in living]):
            return Lost(f"node {dead[0].address} died before starting the deployment")
        queued = silence >= HEARTBEAT_TIMEOUT and task.place is None and self._is_reachable(node)
        if silence < (START_TIMEOUT if queued else HEARTBEAT_TIMEOUT):
            return None
        self.backoff_until[node.node_id] = time.monotonic() + SILENT_NODE_BACKOFF
        if queued:
            return NotStarted(f"node {node.address} started no deployment within {silence:.0f} s: busy with other jobs")
        return Lost(f"no heartbeat from {node.address} for {silence:.0f} s")

    def _is_reachable(self, node: Node) -> bool:
        """Return whether a node's raylet accepts a connection: Ray takes over a minute to notice a dead one."""
        with suppress(OSError):
            socket.create_connection((node.address, self.ports[node.node_id]), timeout=CONNECT_TIMEOUT).close()
            return True
        return False

    def _next(self, stream: Any) -> Iterator[tuple[Work, Event | End]]:
        task = self.tasks[stream]
        try:
            event = ray.get(next(stream), timeout=HEARTBEAT_TIMEOUT)
        except StopIteration:
            yield self._end(stream, Completed())
        except RayTaskError as error:
            yield self._end(stream, self._failed_task(task, error))
        except RayError as error:
            if isinstance(error, NodeDiedError):  # Ray still lists the node for about ten seconds
                self.backoff_until[task.node.node_id] = time.monotonic() + SILENT_NODE_BACKOFF
            yield self._end(stream, Lost(first_line(error)))
        else:
            place = event if isinstance(event, Placed) else task.place
            self.tasks[stream] = task._replace(place=place, last_event=time.monotonic())
            if not isinstance(event, Beat):
                yield task.work, event

    def _failed_task(self, task: _RunningTask, error: RayTaskError) -> Lost:
        match error.cause:
            case DiskFull():  # its own disk, or that of the results
                self.full.add(task.node.node_id)
                problem = f"{error.cause} (on node {task.node.address})"
                if not _has_room(task.work.out) or not self.has_nodes_besides(set()):
                    raise Halted(problem)
                return Lost(f"{problem}: nothing more is started there in this run")
            case Preempted():
                self.backoff_until[task.node.node_id] = time.monotonic() + SILENT_NODE_BACKOFF
                return Lost(f"node {task.node.address}: {error.cause}")
            case NodeLost():
                gone = (node.node_id for node in task.partners if node.address == error.cause.address)
                self.backoff_until |= dict.fromkeys(gone, time.monotonic() + SILENT_NODE_BACKOFF)
                return Lost(str(error.cause))
        return Lost(f"{type(error.cause).__name__}: {error.cause}", str(error))

    def _end(self, stream: Any, end: End) -> tuple[Work, End]:
        """End a task. If its nodes are alive, kill engines that a lost task may have left running there."""
        task = self.tasks.pop(stream)
        if task.placement is not None:
            remove_placement_group(task.placement)  # Ray kills tasks that are still in it
        if not isinstance(end, Completed):
            ray.cancel(stream, force=True)
            until = time.monotonic() + LOSS_BACKOFF
            self.backoff_until[task.node.node_id] = max(until, self.backoff_until.get(task.node.node_id, 0.0))
            if task.place:
                partners = [node.node_id for node in task.partners]
                self._clean_up_nodes([task.place.node_id, *partners], task.work.marker)
        return task.work, end

    def _check(self) -> None:
        now = time.monotonic()
        frozen = now - self.ticked > HEARTBEAT  # until now, so that nobody listened
        if now - self.head_seen > HEARTBEAT_TIMEOUT and not frozen:
            raise Halted(f"Ray's head has not answered for {HEARTBEAT_TIMEOUT:.0f} s; {REMEDY}")
        if not self.home_alive:
            raise Halted(f"Ray on this host has died; {REMEDY}")
        if self.has_nodes_besides(set()):
            self.had_nodes = now
        elif now - self.had_nodes > self.cluster.wait_for_nodes:
            problem = "no node in the cluster" + (" whose disk is not full" if self.nodes else "")
            raise Halted(f"{problem} for {self.cluster.wait_for_nodes / 60:.0f} min; {REMEDY}")

    @_halting()
    def drain(self) -> None:
        """Finish the running trials and start no more."""
        self.draining.set()
        for stream, task in self.tasks.items():
            if task.place is None:
                ray.cancel(stream, force=True)

    @_halting()
    def cancel(self) -> None:
        """Kill the running tasks; engines end with the worker that holds their lease."""
        for stream, task in self.tasks.items():
            ray.cancel(stream, force=True)
            if task.placement is not None:
                remove_placement_group(task.placement)
