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
import threading
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, NamedTuple, Self

import ray
from ray.exceptions import RayError, RayTaskError
from ray.experimental import internal_kv
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sweep.config import ROOT, Cluster, ConfigError
from sweep.deployment import Beat, DiskFull, Event, Halted, Lost, Placed, Work, clear_engines, stream_deployment
from sweep.packing import Node

RESULT_POLL = 0.5  # s
BEAT = 5.0  # s
SILENCE = 40.0  # s; a cut-off node is to be noticed, and free of engines, within 60 s
SHUNNED = 180.0  # s
WAIT_FOR_NODES = 900.0  # s
CLEAR_TIMEOUT = 30.0  # s for a node to clear what is left of engines
NODE_ID = "ray.io/node-id"  # the label that Ray gives every node
NAMESPACE = b"sweep"


def connect(cluster: Cluster) -> None:
    """Start a Ray in place, or join the one that is there.

    Raises:
        ConfigError: if there is none at cluster.address.
    """
    if ray.is_initialized():
        return
    try:
        if cluster.kind == "local":
            ray.init(
                address="local",  # else a cluster that once died on this host would be sought for minutes
                _node_ip_address="127.0.0.1",
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
            )
        else:
            runtime = {"working_dir": str(ROOT), "excludes": ["results", ".git", ".venv", "wandb"]}
            inside_a_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
            ray.init(
                address=cluster.address or "auto",
                log_to_driver=False,
                logging_level="ERROR",
                runtime_env=None if inside_a_job else runtime,
            )
    except (ConnectionError, RayError, RuntimeError, ValueError) as error:
        where = f"cluster.address={cluster.address}" if cluster.kind == "ray" else f"cluster={cluster.name}"
        raise ConfigError(f"{where}: no Ray there ({str(error).strip().splitlines()[0]})") from None


def nodes() -> list[Node]:
    """The living nodes of the cluster that deployments can run on."""
    return [
        Node(
            node["NodeManagerAddress"],
            int(node["Resources"].get("GPU", 0)),
            int(node["Resources"].get("CPU", 0)),
            _accelerators(node["Resources"]),
            node["NodeID"],
        )
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("CPU")
    ]


def startable_nodes() -> list[Node]:
    """Nodes that an autoscaler could still start, one of each type; none without an autoscaler."""
    config = ray._private.state.state.get_cluster_config()
    types = [group for group in config.node_group_configs if group.max_count] if config else []
    return [
        Node(
            f"autoscaler: {group.name}",
            int(group.resources.get("GPU", 0)),
            int(group.resources.get("CPU", 0)),
            _accelerators(group.resources),
        )
        for group in types
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
    yield from stream_deployment(work, tuple(str(gpu) for gpu in ray.get_gpu_ids()), stop_soon, BEAT)


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
def _task(gpus: int) -> Any:
    """The remote function. GPUs in the decorator: given by .options, a worker would be used again, and they with it."""
    if gpus:
        return ray.remote(num_gpus=gpus, num_cpus=1, max_calls=1, max_retries=0)(_deploy)
    return ray.remote(max_calls=1, max_retries=0)(_deploy)


# In the driver -------------------------------------------------------------------------------------------------------


class _Stream(NamedTuple):
    """A task in flight."""

    work: Work
    place: Placed | None
    heard: float  # monotonic


class RayExecutor:
    """Runs deployments as Ray tasks; `capacity` is how many it is worth having in flight."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.streams: dict[Any, _Stream] = {}
        self.avoided: set[str] = set()  # node ids
        self.silent: dict[str, float] = {}  # node id -> since when, monotonic
        self.clearing: list[Any] = []
        self.stopping = threading.Event()
        self.closed = threading.Event()
        self.session = ""
        self.nodes: list[Node] = []
        self.seen = self.had_nodes = time.monotonic()  # when Ray's head last answered
        self.home, self.home_alive = "", True  # the node of the driver itself

    def __enter__(self) -> Self:
        connect(self.cluster)
        self.session = f"{ray.get_runtime_context().get_job_id()}-{os.getpid()}-{time.time_ns()}"
        self.home = ray.get_runtime_context().get_node_id()
        self._look()
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
        self.nodes = nodes()
        self.home_alive = any(node["Alive"] and node["NodeID"] == self.home for node in ray.nodes())
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
    def capacity(self) -> int:
        shunned = self._shunned()
        usable = [node for node in self.nodes if node.node_id not in shunned]
        gpus = sum(node.gpus for node in usable)
        return 2 * gpus if gpus else len(usable)

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

    def avoid(self, node_ids: set[str]) -> None:
        """Place nothing more on these nodes."""
        self.avoided = set(node_ids)

    def spare(self, node_ids: set[str]) -> bool:
        """Whether there would be a node left without these."""
        return bool({node.node_id for node in self.nodes} - node_ids - self._shunned())

    def submit(self, work: Work) -> None:
        deployment = work.deployment
        options: dict[str, Any] = {"num_returns": "streaming", "name": deployment.describe()}
        if not deployment.gpu_count:
            options["num_cpus"] = min((node.cpus for node in self.nodes if not node.gpus), default=1)
        elif deployment.accelerator:
            options["accelerator_type"] = deployment.accelerator
        if shunned := self._shunned():
            options["label_selector"] = {NODE_ID: f"!in({','.join(sorted(shunned))})"}
        stream = _task(deployment.gpu_count).options(**options).remote(work, self.session)
        self.streams[stream] = _Stream(work, None, time.monotonic())

    def _shunned(self) -> set[str]:
        """Nodes that are avoided, and those that fell silent a short while ago: Ray has not noticed it yet."""
        now = time.monotonic()
        return self.avoided | {node_id for node_id, since in self.silent.items() if now - since < SHUNNED}

    def events(self) -> Iterator[tuple[Work, Event | Lost | None]]:
        """What has happened since the last call: events, then None when a deployment ended, or Lost.

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
        for stream in ready:
            yield from self._next(stream)
        for stream in set(streams) - set(ready):
            state = self.streams[stream]
            if state.place and time.monotonic() - state.heard > SILENCE:
                self.silent[state.place.node_id] = time.monotonic()
                yield self._end(stream, Lost(f"not a word from {state.place.address} for {SILENCE:.0f} s"))

    def _next(self, stream: Any) -> Iterator[tuple[Work, Event | Lost | None]]:
        """The event that is there, if it is one for the driver."""
        state = self.streams[stream]
        try:
            event = ray.get(next(stream), timeout=SILENCE)
        except StopIteration:
            yield self._end(stream, None)
        except RayTaskError as error:
            if isinstance(error.cause, DiskFull):
                raise Halted(str(error.cause)) from None
            yield self._end(stream, Lost(f"{type(error.cause).__name__}: {error.cause}", str(error)))
        except RayError as error:
            yield self._end(stream, Lost(str(error).strip().splitlines()[0]))
        else:
            place = event if isinstance(event, Placed) else state.place
            self.streams[stream] = _Stream(state.work, place, time.monotonic())
            if not isinstance(event, Beat):
                yield state.work, event

    def _end(self, stream: Any, end: Lost | None) -> tuple[Work, Lost | None]:
        """A task is over. What may be left of a lost one is killed, should its node live."""
        state = self.streams.pop(stream)
        if end is not None:
            ray.cancel(stream, force=True)
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
        if self.nodes:
            self.had_nodes = now
        elif now - self.had_nodes > WAIT_FOR_NODES:
            raise Halted(f"no node in the cluster for {WAIT_FOR_NODES / 60:.0f} min; {again}")

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
