"""Ray: where deployments run. The only file that imports it, and it places Deployments, never requests.

A deployment is one task that takes its GPUs, or on a machine without GPUs the whole node, since engines beside each
other would measure each other. What happens in it comes back as a stream of events. Ray's own retries are off: which
attempt counts is the driver's decision. `ray_environment.prepare` comes before the import of this file.

Ray takes minutes to notice a silence. So driver and tasks each say every BEAT seconds that they are there, the driver
by a key in Ray's head, a task by a Beat in its stream; whoever has not heard the other for SILENCE seconds gives it
up: the driver tries the deployment elsewhere, the task ends itself, and with it goes its engine.
"""

import functools
import os
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import ray
import yaml
from ray.exceptions import NodeDiedError, RayError, RayTaskError
from ray.experimental import internal_kv
from ray.util import metrics
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sweep.config import ROOT, Cluster, ConfigError, Halted, first_line, import_path
from sweep.drive.transfer import carried
from sweep.node.deployment import Beat, DiskFull, Event, Lost, Placed, Work, clear_engines, stream_deployment
from sweep.plan.packing import Kind, Need, Node, Unbegun

RESULT_POLL = 0.5  # s
BEAT = 5.0  # s
SILENCE = 40.0  # s; a cut-off node is to be noticed, and free of engines, within 60 s
UNPLACED = 120.0  # s in which a node must have begun what it was given
REACH = 3.0  # s for a node to take a connection
ROOM = 16 << 20  # bytes for which there must be room where the results are
SHUNNED = 180.0  # s that nothing is started on a node that fell silent
BACK_OFF = 2 * BEAT  # s that nothing is started on a node after a loss
CLEAR_TIMEOUT = 30.0  # s for a node to clear what is left of engines
LAUNCHED = Path.home() / "ray_bootstrap_config.yaml"
NOT_CODE = ["results", ".git", ".venv", "wandb"]  # of the working directory, which every node is sent
NOT_CODE += ["deployments", "trials.parquet", "ledger.jsonl", "plan.jsonl"]  # what is large in any folder of results
NODE_ID = "ray.io/node-id"  # the label that Ray gives every node
NAMESPACE = b"sweep"


def _refuse_dead_address(cluster: Cluster) -> None:
    """Ray itself tries for minutes, with lines of its own, before it says that nothing is there."""
    address = cluster.address if cluster.kind == "ray" else None
    if address in (None, "auto"):
        address = os.environ.get("RAY_ADDRESS") if cluster.kind == "ray" else None
    host, _, port = (address or "").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise ConfigError(
            f"cluster.address={address}: nothing listens there ({error}); allowed: HOST:PORT of a Ray head, or auto"
        ) from None


def connect(cluster: Cluster) -> None:
    """Start a Ray in place, or join the one that is there.

    Raises:
        ConfigError: if there is none at cluster.address.
    """
    if ray.is_initialized():
        return
    _refuse_dead_address(cluster)
    try:
        if cluster.kind == "local":
            ray.init(
                address="local",  # else a cluster that once died on this host would be sought for minutes
                _node_ip_address="127.0.0.1",
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
                runtime_env={"env_vars": {"PYTHONPATH": import_path()}},
            )
        else:
            runtime = {"working_dir": str(ROOT), "excludes": NOT_CODE}
            inside_a_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
            ray.init(
                address=cluster.address or "auto",
                log_to_driver=False,
                logging_level="ERROR",
                runtime_env=None if inside_a_job else runtime,
            )
    except (ConnectionError, RayError, RuntimeError, ValueError) as error:
        where = f"cluster.address={cluster.address}" if cluster.kind == "ray" else f"cluster={cluster.name}"
        raise ConfigError(f"{where}: no Ray there ({first_line(error)})") from None


def nodes(cluster: Cluster) -> list[Node]:
    """The living nodes of the cluster that deployments can run on: those with its labels."""
    return [
        Node(
            node["NodeManagerAddress"],
            int(node["Resources"].get("GPU", 0)),
            int(node["Resources"].get("CPU", 0)),
            _accelerators(node["Resources"]),
            node["NodeID"],
        )
        for node in ray.nodes()
        if node["Alive"]
        and node["Resources"].get("CPU")
        and all(_matches(node["Labels"].get(key), wanted) for key, wanted in cluster.labels.items())
    ]


def _matches(value: str | None, wanted: str) -> bool:
    """Ray's label selectors: x, !x, in(x,y), !in(x,y)."""
    plain = wanted.removeprefix("!")
    among = plain[3:-1].split(",") if plain.startswith("in(") else [plain]
    return (value in [name.strip() for name in among]) == (plain == wanted)


def startable_nodes(cluster: Cluster) -> list[Node]:
    """Nodes that an autoscaler could still start, one of each type; none without an autoscaler.

    Ray does not tell: it is what cluster.node_types says, else the file that Ray's launcher leaves on the head.
    """
    if cluster.node_types is not None:
        kinds = [(kind.gpus, kind.cpus, (kind.accelerator,) if kind.accelerator else ()) for kind in cluster.node_types]
        return [Node(f"autoscaler: node type {index}", *kind) for index, kind in enumerate(kinds)]
    try:
        types = yaml.safe_load(LAUNCHED.read_text()).get("available_node_types", {})
    except FileNotFoundError:
        return []
    found = {name: kind["resources"] for name, kind in types.items() if kind.get("max_workers", 1)}
    return [
        Node(f"autoscaler: {name}", int(has.get("GPU", 0)), int(has.get("CPU", 0)), _accelerators(has))
        for name, has in found.items()
    ]


def _accelerators(resources: Mapping[str, float]) -> tuple[str, ...]:
    prefix = "accelerator_type:"
    return tuple(name.removeprefix(prefix) for name in resources if name.startswith(prefix))


# In a task -----------------------------------------------------------------------------------------------------------


def _deploy(work: Work, session: str) -> Iterator[Event]:
    """The Ray task: a deployment on the GPUs that Ray gave it."""
    stop_soon = threading.Event()
    _follow(session, stop_soon)
    yield Placed(ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address())
    gpus = tuple(str(gpu) for gpu in ray.get_gpu_ids())
    yield from carried(work, lambda work: stream_deployment(work, gpus, stop_soon, BEAT))


def _follow(session: str, stop_soon: threading.Event) -> None:
    """Watch raylet and driver from two threads, since a question to a head that is cut off may hang for ever.

    When one of them is gone this process ends itself: its lease on the engine ends with it, however busy it is.
    """
    raylet = os.getppid()
    heard = time.monotonic()

    def listen() -> None:
        nonlocal heard
        last = None
        while True:
            word = internal_kv._internal_kv_get(session, namespace=NAMESPACE)
            if word != last:
                heard, last = time.monotonic(), word
            if word is not None and word.startswith(b"stop"):
                stop_soon.set()
            time.sleep(BEAT / 4)

    def watch() -> None:
        while os.getppid() == raylet and time.monotonic() - heard < SILENCE:
            time.sleep(0.5)
        os._exit(1)

    for function in (listen, watch):
        threading.Thread(target=function, name=function.__name__, daemon=True).start()


@functools.cache
def _clear_task() -> Any:
    return ray.remote(num_cpus=0, max_calls=1, max_retries=0)(clear_engines)


@functools.cache
def _claim_task() -> Any:
    return ray.remote(max_calls=1, max_retries=0)(_claimed)


def _claimed() -> None:
    """Nothing to do: that it can run is all it is for."""


@functools.cache
def _task(gpus: int) -> Any:
    """The remote function. GPUs in the decorator: given by .options, a worker would be used again, and they with it."""
    if gpus:
        return ray.remote(num_gpus=gpus, num_cpus=1, max_calls=1, max_retries=0)(_deploy)
    return ray.remote(max_calls=1, max_retries=0)(_deploy)


# In the driver -------------------------------------------------------------------------------------------------------


@functools.cache
def _gauges() -> tuple[metrics.Counter, metrics.Gauge]:
    names = ("experiment", "backend", "model")
    trials = metrics.Counter("sweep_trials", "Trials that have ended", tag_keys=(*names, "outcome"))
    words = "Output tokens per second of the last trial"
    return trials, metrics.Gauge("sweep_output_throughput", words, tag_keys=(*names, "workload", "load"))


def _has_room(folder: str) -> bool:
    """Whether ROOM bytes more can be written there; free space alone would not tell of a quota."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(ROOM))
            os.fsync(file.fileno())
    except OSError:
        return False
    return True


class _Stream(NamedTuple):
    """A task in flight."""

    work: Work
    place: Placed | None
    heard: float  # monotonic
    node: Node


class RayExecutor:
    """Runs deployments as Ray tasks, each on the node that it is told."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.streams: dict[Any, _Stream] = {}
        self.shunned: dict[str, float] = {}  # node id -> until when, monotonic
        self.clearing: list[Any] = []
        self.stopping = threading.Event()
        self.closed = threading.Event()
        self.session = ""
        self.nodes: list[Node] = []  # the living
        self.known: dict[str, Node] = {}  # all that there have been, by id
        self.ports: dict[str, int] = {}  # of their raylets
        self.full: set[str] = set()  # ids of those whose own disk is full
        self.autoscaling = False
        self.claims: dict[Kind, list[Any]] = {}  # tasks that make an autoscaler start nodes, by kind
        self.wanted = 0.0  # when they were last looked after, monotonic
        self.seen = self.had_nodes = time.monotonic()  # when Ray's head last answered
        self.home, self.home_alive = "", True  # the node of the driver itself

    def __enter__(self) -> Self:
        connect(self.cluster)
        self.session = f"{ray.get_runtime_context().get_job_id()}-{os.getpid()}-{time.time_ns()}"
        self.home = ray.get_runtime_context().get_node_id()
        self._look()
        self.autoscaling = bool(startable_nodes(self.cluster))
        threading.Thread(target=self._beat, name="beat", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closed.set()
        for stream in self.streams:
            ray.cancel(stream, force=True)
        ray.shutdown()

    def _look(self) -> None:
        self.nodes = nodes(self.cluster)
        self.known |= {node.node_id: node for node in self.nodes}
        listed = ray.nodes()
        self.ports |= {node["NodeID"]: node["NodeManagerPort"] for node in listed}
        self.home_alive = any(node["Alive"] and node["NodeID"] == self.home for node in listed)
        self.seen = time.monotonic()

    def _beat(self) -> None:
        """Tell the tasks that the driver is there and whether to stop, and see which nodes are."""
        count = 0
        while not self.closed.is_set():
            count += 1
            word = "stop" if self.stopping.is_set() else "go"
            try:
                internal_kv._internal_kv_put(self.session, f"{word} {count}", namespace=NAMESPACE)
                self._look()
            except (RayError, RuntimeError, OSError, AttributeError):
                pass  # `seen` grows old, and `events` says so
            self.stopping.wait(BEAT) if word == "go" else self.closed.wait(BEAT)

    @property
    def usable(self) -> list[Node]:
        """The nodes on which a deployment may be started now."""
        shunned = self._shunned()
        return [node for node in self.nodes if node.node_id not in shunned]

    def want(self, needs: Sequence[Need]) -> None:
        """Tell an autoscaler what waits for a place, by tasks that can only run on a node that is not there yet.

        Unlike `request_resources` they end with this driver, however it ends: nobody pays for nodes that none uses.
        """
        if time.monotonic() - self.wanted < BEAT or not self.autoscaling:
            return
        self.wanted = time.monotonic()
        wanted = Counter(need.kind for need in needs)
        for kind in {**wanted, **self.claims}:  # the needs' own order: what comes first is asked for first
            claims = self.claims.get(kind, [])
            if claims:
                _, claims = ray.wait(claims, num_returns=len(claims), timeout=0)
            for claim in claims[wanted[kind] :]:
                ray.cancel(claim, force=True)
            more = [self._claim(*kind) for _ in range(wanted[kind] - len(claims))]
            self.claims[kind] = claims[: wanted[kind]] + more

    def _claim(self, gpus: int, accelerator: str | None) -> Any:
        known = ",".join(sorted(node.node_id for node in self.nodes))
        options: dict[str, Any] = {"num_gpus": gpus, "num_cpus": 1, "name": "wanted: a node"}
        options |= {"accelerator_type": accelerator} if accelerator else {}
        options["label_selector"] = {**self.cluster.labels, **({NODE_ID: f"!in({known})"} if known else {})}
        return _claim_task().options(**options).remote()

    def observe(self, row: Mapping[str, Any]) -> None:
        """Show a trial in Ray's dashboard and at its Prometheus endpoint: sweep_trials, and the last throughput."""
        trials, throughput = _gauges()
        trials.inc(tags={name: str(row[name]) for name in ("experiment", "backend", "model", "outcome")})
        if row.get("output_throughput") is not None:
            tags = {name: str(row[name]) for name in ("experiment", "backend", "model", "workload", "load")}
            throughput.set(row["output_throughput"], tags=tags)

    def clear(self, marker: str) -> None:
        """Kill what earlier drivers' tasks may have left on any node: engines of this marker, and who launched them."""
        self._clear_on([node.node_id for node in self.nodes], marker)
        ray.wait(self.clearing, num_returns=len(self.clearing), timeout=CLEAR_TIMEOUT)

    def _clear_on(self, node_ids: list[str], marker: str) -> None:
        for node_id in node_ids:
            affinity = NodeAffinitySchedulingStrategy(node_id, soft=False)  # soft: any node would be cleared instead
            self.clearing.append(
                _clear_task().options(scheduling_strategy=affinity, name="clear engines").remote(marker)
            )

    def spare(self, node_ids: set[str]) -> bool:
        """Whether there would be a node left without these; one that is shunned for a while still counts."""
        return bool({node.node_id for node in self.nodes} - node_ids - self.full)

    def submit(self, work: Work, node_id: str) -> None:
        """Start it on this node, with its share of the cores: what it needs is free there, as far as we know."""
        deployment = work.deployment
        node = self.known[node_id]
        share = node.cpus * deployment.gpu_count / node.gpus if deployment.gpu_count else node.cpus
        stream = (
            _task(deployment.gpu_count)
            .options(
                num_returns="streaming",
                name=deployment.describe(),
                num_cpus=int(share) if share >= 1 else round(share - 5e-5, 4),
                scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
            )
            .remote(work, self.session)
        )
        self.streams[stream] = _Stream(work, None, time.monotonic(), node)

    def _shunned(self) -> set[str]:
        """Nodes that are full, and for a while those where something was lost: Ray may not have noticed its end."""
        now = time.monotonic()
        return self.full | {node_id for node_id, until in self.shunned.items() if now < until}

    def events(self) -> Iterator[tuple[Work, Event | Lost | Unbegun | None]]:
        """What has happened since the last call: events, then None when a deployment ended, or Lost, or Unbegun.

        Raises:
            Halted: when Ray is gone, or a disk is full.
        """
        self._check()
        if not self.streams:
            time.sleep(RESULT_POLL)
            return
        streams = list(self.streams)
        ready, _ = ray.wait(streams, num_returns=1, timeout=RESULT_POLL, fetch_local=False)
        if ready:
            ready, _ = ray.wait(streams, num_returns=len(streams), timeout=0, fetch_local=False)
        listened = time.monotonic()  # what the driver does with an event may take it long: that is no node's silence
        for stream in ready:
            yield from self._next(stream)
        for stream in set(streams) - set(ready):
            if loss := self._overdue(self.streams[stream], listened):
                yield self._end(stream, loss)

    def _overdue(self, state: _Stream, listened: float) -> Lost | Unbegun | None:
        """Whether a task must be given up that had said nothing when the driver last `listened`, and why."""
        node, silence = state.node, listened - state.heard
        if state.place is None and node.node_id not in {living.node_id for living in self.nodes}:
            return Lost(f"node {node.address} died before it began")
        waits = silence >= SILENCE and state.place is None and self._answers(node)
        if silence < (UNPLACED if waits else SILENCE):
            return None
        self.shunned[node.node_id] = time.monotonic() + SHUNNED
        if waits:
            return Unbegun(f"node {node.address} has not begun it within {silence:.0f} s: other jobs keep it busy")
        return Lost(f"not a word from {node.address} for {silence:.0f} s")

    def _answers(self, node: Node) -> bool:
        """Whether its raylet can be reached: Ray itself takes more than a minute to see that it cannot."""
        try:
            socket.create_connection((node.address, self.ports[node.node_id]), timeout=REACH).close()
        except OSError:
            return False
        return True

    def _next(self, stream: Any) -> Iterator[tuple[Work, Event | Lost | Unbegun | None]]:
        """The event that is there, if it is one for the driver."""
        state = self.streams[stream]
        try:
            event = ray.get(next(stream), timeout=SILENCE)
        except StopIteration:
            yield self._end(stream, None)
        except RayTaskError as error:
            if isinstance(error.cause, DiskFull):
                yield self._end(stream, self._disk_full(state, error.cause))
                return
            yield self._end(stream, Lost(f"{type(error.cause).__name__}: {error.cause}", str(error)))
        except RayError as error:
            if isinstance(error, NodeDiedError):  # Ray goes on listing it for some ten seconds
                self.shunned[state.node.node_id] = time.monotonic() + SHUNNED
            yield self._end(stream, Lost(first_line(error)))
        else:
            place = event if isinstance(event, Placed) else state.place
            self.streams[stream] = state._replace(place=place, heard=time.monotonic())
            if not isinstance(event, Beat):
                yield state.work, event

    def _disk_full(self, state: _Stream, error: DiskFull) -> Lost:
        """Nothing more is started on a node whose own disk is full.

        Raises:
            Halted: if it is the results' disk, or no other node is left.
        """
        self.full.add(state.node.node_id)
        words = f"{error} (on node {state.node.address})"
        if not _has_room(state.work.out) or not self.spare(set()):
            raise Halted(words)
        return Lost(f"{words}: nothing more is started there in this run")

    def _end(self, stream: Any, end: Lost | Unbegun | None) -> tuple[Work, Lost | Unbegun | None]:
        """A task is over. What may be left of a lost one is killed, should its node live."""
        state = self.streams.pop(stream)
        if end is not None:
            ray.cancel(stream, force=True)
            until = time.monotonic() + BACK_OFF
            self.shunned[state.node.node_id] = max(until, self.shunned.get(state.node.node_id, 0.0))
            if state.place:
                self._clear_on([state.place.node_id], state.work.marker)
        return state.work, end

    def _check(self) -> None:
        """Whether there is a Ray to run on.

        Raises:
            Halted: if there is none.
        """
        now = time.monotonic()
        again = "run the same command again when it is back: it goes on where it stopped"
        if now - self.seen > SILENCE:
            raise Halted(f"Ray's head has not answered for {SILENCE:.0f} s; {again}")
        if not self.home_alive:
            raise Halted(f"Ray on this host has died; {again}")
        if self.spare(set()):
            self.had_nodes = now
        elif now - self.had_nodes > self.cluster.wait_for_nodes:
            words = "no node in the cluster" + (" whose disk is not full" if self.nodes else "")
            raise Halted(f"{words} for {self.cluster.wait_for_nodes / 60:.0f} min; {again}")

    def stop_soon(self) -> None:
        """Let the trials that run end, and start no other."""
        self.stopping.set()
        for stream, state in self.streams.items():
            if state.place is None:
                ray.cancel(stream, force=True)

    def stop_now(self) -> None:
        """Kill what runs; engines end with the worker that holds their lease."""
        for stream in self.streams:
            ray.cancel(stream, force=True)
