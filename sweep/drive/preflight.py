"""What there is to run on: the hardware profile, the nodes with their GPUs and cores, and what cannot run there."""

import functools
import os
import shutil
import sys
import time
from collections.abc import Sequence
from typing import Any

from backends.base import EnvironmentChoice, EnvironmentSpec, Host
from backends.launch.server import port_problem
from backends.prepare.environments import fingerprint, resolve
from sweep import provenance
from sweep.config import Cluster, ConfigError, Settings, cache_directory
from sweep.drive import ray_environment
from sweep.drive.output_folder import check_writable
from sweep.options import ConfigPath
from sweep.plan.packing import Need, Node, infeasible
from sweep.plan.plan import Plan
from sweep.plan.planning import Surroundings

OURS = ConfigPath()  # the project's options alone
POLL = 2.0  # s between looks for a cluster's first node
_waited_in_vain: set[str | None] = set()  # addresses of clusters: each is waited for once


def find_hardware(cluster: Cluster, options: ConfigPath = OURS) -> str:
    """The profile for hardware=auto: by the GPUs of this machine, or of the cluster that is joined."""
    profiles = options.choices("hardware")
    if cluster.simulate is not None:
        named = (cluster.simulate.accelerator or "gpu").lower() if cluster.simulate.gpus else "cpu"
        return named if named in profiles else "gpu"
    if cluster.kind == "ray":
        nodes = _cluster_nodes(cluster, cluster.wait_for_nodes)
        accelerators = {name for node in nodes for name in node.accelerators if node.gpus}
        known = next((name.lower() for name in sorted(accelerators) if name.lower() in profiles), None)
        return known or ("gpu" if any(node.gpus for node in nodes) else "cpu")
    names = provenance.gpu_names()
    if not names:
        return "cpu"
    matching = (name for name in profiles if names[0] in options.load("hardware", name).get("matches", []))
    return next(matching, "gpu")


def _cluster_nodes(cluster: Cluster, wait: float) -> list[Node]:
    """The nodes of the Ray cluster that is joined, and those that its autoscaler could still start.

    As long as there is none they may be about to join the head: `wait` s at most.
    """
    ray_executor = ray_schedule(cluster)
    ray_executor.connect(cluster)
    wait = 0.0 if cluster.address in _waited_in_vain else wait
    begin, said = time.monotonic(), False
    while not (found := [*ray_executor.nodes(cluster), *ray_executor.startable_nodes(cluster)]):
        if time.monotonic() - begin >= wait:
            _waited_in_vain.update([cluster.address] if wait else [])
            break
        if not said:
            print(f"no node has joined the cluster yet: waiting for one, {wait / 60:.0f} min at most", file=sys.stderr)
        said = True
        time.sleep(POLL)
    return found


def find_nodes(settings: Settings) -> list[Node]:
    """What there is, or can be had from an autoscaler, to run deployments on; or what is to be simulated."""
    hardware, simulated = settings.hardware, settings.cluster.simulate
    if simulated is not None:
        accelerators = tuple(name for name in (simulated.accelerator or hardware.accelerator,) if name)
        names = [f"simulated-{index}" for index in range(simulated.nodes)]
        return [Node(name, simulated.gpus, simulated.cpus, accelerators, name) for name in names]
    if settings.cluster.kind == "ray":
        return _cluster_nodes(settings.cluster, 0.0 if settings.dry_run else settings.cluster.wait_for_nodes)
    gpus = provenance.gpu_names()
    known = (hardware.accelerator,) if hardware.accelerator and set(gpus) & set(hardware.matches) else ()
    return [Node("this machine", len(gpus), len(os.sched_getaffinity(0)), (*known, *sorted(set(gpus))))]


def surroundings(settings: Settings, nodes: Sequence[Node], options: ConfigPath = OURS) -> Surroundings:
    """How the plan asks about this machine: the environments that engines would run in, and what cannot run.

    A run on a cluster waits for a node that is not there yet, as the driver does; only a dry run says that it is not.
    What an engine needs of this machine's disk is looked at only where it would run here: a node has a disk of its own.
    """
    here = settings.cluster.kind != "ray" and settings.cluster.simulate is None
    waits = settings.cluster.kind == "ray" and not settings.dry_run
    host = _host(settings, nodes, waits)

    @functools.cache  # thousands of deployments share a few
    def spec_of(choice: EnvironmentChoice, platform: str) -> tuple[EnvironmentSpec | None, str]:
        """The environment and its fingerprint, or None and why there is none."""
        try:
            spec = resolve(choice, "cuda" if platform == "cuda" else "cpu", options)
        except ValueError as error:
            return None, f"none: {error}"
        return spec, fingerprint(spec)

    def environment(backend: Any, platform: str) -> EnvironmentSpec | None:
        return spec_of(backend.env, platform)[0] if backend.launches else None

    def locked_environment(backend: Any, platform: str) -> str:
        return spec_of(backend.env, platform)[1] if backend.launches else ""

    def unavailable(backend: Any, platform: str) -> str | None:
        if platform == "cuda" and not host.gpus:
            return "no GPU here: run it on a machine or cluster that has one, or drop hardware= for the CPU form"
        reason: str | None = backend.unavailable(host)  # in the engine's own words first: they have the remedy
        if reason is None and backend.launches:
            spec, why = spec_of(backend.env, platform)
            if spec is None:
                return why.removeprefix("none: ")
        if reason is None and platform == "cuda" and not waits:
            reason = infeasible(Need(backend.name, backend.gpus, settings.hardware.accelerator, 0.0), nodes)
        if reason is None and backend.launches and here:
            check_own_programs(backend.env)
            check_cache()
        return reason

    @functools.cache
    def check_cache() -> None:
        check_writable("cache_dir", cache_directory(settings.cache_dir))

    return Surroundings(locked_environment, unavailable, environment)


def check_own_programs(choice: EnvironmentChoice) -> None:
    """Whether the interpreter and the binary that the user names are there.

    Raises:
        ConfigError: naming the first that is not.
    """
    for key, named in (("python", choice.python), ("binary", choice.binary)):
        if named and shutil.which(named) is None:
            raise ConfigError(
                f"backend.env.{key}={named}: not an executable file; allowed: the path of one, or its name on PATH"
            )


def _host(settings: Settings, nodes: Sequence[Node], waits: bool) -> Host:
    if settings.cluster.kind != "ray" and settings.cluster.simulate is None:
        return provenance.host()
    gpus = tuple(name for node in nodes for name in (node.accelerators or ("GPU",)) if node.gpus)
    if waits and settings.hardware.platform == "cuda" and not gpus:
        gpus = (settings.hardware.accelerator or "GPU",)
    # What is on a node's PATH is not known from here: taken to be there, and a launch says it if not.
    executables = frozenset(provenance.WANTED_EXECUTABLES)
    return Host(gpus=gpus, executables=executables)


def check_ports(plan: Plan) -> None:
    """Whether every fixed port is free.

    Raises:
        ConfigError: naming the first that is taken.
    """
    for deployment in plan.deployments:
        port = deployment.backend.port
        needed = deployment.backend.launches and not deployment.unavailable
        if port is not None and needed and (problem := port_problem(port)):
            raise ConfigError(problem)


def ray_schedule(cluster: Cluster) -> Any:
    """The module that imports Ray, imported where it is needed: it takes a second, and reads its environment then."""
    ray_environment.prepare(cluster)
    from sweep.drive import ray_executor

    return ray_executor
