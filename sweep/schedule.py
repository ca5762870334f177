"""Ray: where deployments run. The only file that imports it, and it places Deployments, never requests.

A deployment is one task that takes its GPUs, or on a machine without GPUs the whole node, since engines beside each
other would measure each other. What happens in it comes back as a stream of events. Ray's own retries are off: which
attempt counts is the driver's decision. `ray_environment.prepare` comes before the import of this file.
"""

import os
from collections.abc import Iterator
from types import TracebackType
from typing import Any, NamedTuple, Self

import ray
from ray.exceptions import RayError, RayTaskError

from sweep.config import ROOT, Cluster, ConfigError
from sweep.deployment import Event, Lost, Work, stream_deployment

RESULT_POLL = 0.5  # s


class Node(NamedTuple):
    """What a node of the cluster offers."""

    address: str
    gpus: int
    cpus: int
    accelerators: tuple[str, ...]


def connect(cluster: Cluster) -> None:
    """Start a Ray in place, or join the one that is there.

    Raises:
        ConfigError: if there is none at cluster.address.
    """
    if ray.is_initialized():
        return
    try:
        if cluster.kind == "local":
            ray.init(_node_ip_address="127.0.0.1", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
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
    """The living nodes of the cluster."""
    return [
        Node(
            node["NodeManagerAddress"],
            int(node["Resources"].get("GPU", 0)),
            int(node["Resources"].get("CPU", 1)),
            tuple(
                name.removeprefix("accelerator_type:")
                for name in node["Resources"]
                if name.startswith("accelerator_type:")
            ),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def _deploy(work: Work) -> Iterator[Event]:
    """The Ray task: a deployment on the GPUs that Ray gave it."""
    yield from stream_deployment(work, tuple(str(gpu) for gpu in ray.get_gpu_ids()))


class RayExecutor:
    """Runs deployments as Ray tasks; `capacity` is how many it is worth having in flight."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.streams: dict[Any, Work] = {}

    def __enter__(self) -> Self:
        connect(self.cluster)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stream in self.streams:
            ray.cancel(stream, force=False)
        ray.shutdown()

    @property
    def capacity(self) -> int:
        living = nodes()
        gpus = sum(node.gpus for node in living)
        return 2 * gpus if gpus else len(living)

    def submit(self, work: Work) -> None:
        deployment = work.deployment
        # The decorator's form of num_gpus: with .options a worker would be used again, and its engine's GPU with it.
        options: dict[str, Any] = {"max_calls": 1, "max_retries": 0, "num_returns": "streaming"}
        if deployment.gpu_count:
            options |= {"num_gpus": deployment.gpu_count, "num_cpus": 1}
            if deployment.accelerator:
                options["accelerator_type"] = deployment.accelerator
        else:
            options["num_cpus"] = min((node.cpus for node in nodes() if not node.gpus), default=1)
        task = ray.remote(**options)(_deploy)
        self.streams[task.options(name=deployment.describe()).remote(work)] = work

    def events(self) -> Iterator[tuple[Work, Event | Lost | None]]:
        """What has happened since the last call: events, then None when a deployment ended, or Lost."""
        if not self.streams:
            return
        streams = list(self.streams)
        ready, _ = ray.wait(streams, num_returns=1, timeout=RESULT_POLL, fetch_local=False)
        if ready:
            ready, _ = ray.wait(streams, num_returns=len(streams), timeout=0, fetch_local=False)
        for stream in ready:
            work = self.streams[stream]
            try:
                yield work, ray.get(next(stream))
            except StopIteration:
                del self.streams[stream]
                yield work, None
            except RayTaskError as error:
                del self.streams[stream]
                yield work, Lost(f"{type(error.cause).__name__}: {error.cause}", str(error))
            except RayError as error:
                del self.streams[stream]
                yield work, Lost(str(error).strip().splitlines()[0])

    def stop_now(self) -> None:
        """Kill what runs; engines end with the worker that holds their lease."""
        for stream in self.streams:
            ray.cancel(stream, force=True)
