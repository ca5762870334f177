"""Preflight checks: the hardware profile, the nodes with their GPUs and cores, and which engines cannot run on them.

Also whether the disk has room and whether fixed ports are free.
"""

import functools
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from backends.base import EnvironmentChoice, EnvironmentSpec, Host
from backends.launch import host_facts
from backends.launch.server import port_problem
from backends.prepare import fit, locks
from backends.prepare.environments import own_content, unusable
from sweep.base.config import Cluster, ConfigError, Settings, SimulatedNodes, build, cache_directory
from sweep.base.options import ConfigPath
from sweep.cluster import ray_environment
from sweep.cluster.replay_executor import open_table
from sweep.drive.output_folder import check_writable
from sweep.drive.run_locks import RunEnvironments
from sweep.plan.packing import Need, Node, infeasible
from sweep.plan.plan import Deployment, Plan
from sweep.plan.planning import Surroundings
from sweep.plan.show import little_disk

OURS = ConfigPath()  # only built-in options
CANNOT_FIT = 0.8  # share of the needed disk: estimates of sizes are rounded
NODE_POLL = 2.0  # s between queries for a cluster's first node
_empty_clusters: set[str | None] = set()  # addresses of clusters that a query has waited for


def find_hardware(cluster: Cluster, options: ConfigPath = OURS) -> str:
    """Return the profile for hardware=auto, according to the GPUs of this machine or the cluster."""
    if cluster.simulate is not None:
        if not cluster.simulate.gpus:
            return "cpu"
        return _profile((), [cluster.simulate.accelerator or ""], options) or "gpu"
    if cluster.kind == "ray":
        nodes = ray_schedule(cluster).state_facts(_cluster_nodes(cluster, cluster.wait_for_nodes), None)
        nodes = [node for node in nodes if node.gpus]
        names = sorted({name for node in nodes if node.facts for name in node.facts.gpus})
        accelerators = sorted({name for node in nodes for name in node.accelerators})
        return _profile(names, accelerators, options) or ("gpu" if nodes else "cpu")
    names = list(host_facts.gpu_names()[:1])
    return _profile(names, (), options) or ("gpu" if names else "cpu")


def _profile(names: Sequence[str], accelerators: Sequence[str], options: ConfigPath) -> str | None:
    """Return the profile for GPUs by their NVML names or, without NVML, by Ray's names; None if no profile fits.

    NVML names have priority, since Ray uses one name for the A100 with 40 GB and with 80 GB.
    """
    profiles = {name: options.load("hardware", name) for name in options.choices("hardware")}
    if names:
        return next((key for name in names for key in profiles if name in profiles[key].get("matches", ())), None)
    own = (name.lower() for name in accelerators if name.lower() in profiles)
    by_kind = (key for name in accelerators for key in profiles if profiles[key].get("accelerator") == name)
    return next(own, None) or next(by_kind, None)


def fetch_obstacle(group: str, option: Mapping[str, Any], cache_dir: str | None) -> str | None:
    """Return why a model or workload cannot be fetched, or None.

    Raises Outage if an index or a hub does not answer.
    """
    built: Any = build(option, group)
    reason: str | None = built.obstacle(cache_directory(cache_dir)) if hasattr(built, "obstacle") else None
    return reason


def _cluster_nodes(cluster: Cluster, wait: float) -> list[Node]:
    """Return the Ray cluster's nodes and nodes that its autoscaler could start; wait up to `wait` s for the first."""
    ray_executor = ray_schedule(cluster)
    ray_executor.join_cluster(cluster)
    wait = 0.0 if cluster.address in _empty_clusters else wait
    begin, reported = time.monotonic(), False
    while not (nodes := [*ray_executor.nodes(cluster), *ray_executor.startable_nodes(cluster)]):
        if time.monotonic() - begin >= wait:
            _empty_clusters.update([cluster.address] if wait else [])
            break
        if not reported:
            print(f"no node has joined the cluster yet: waiting up to {wait / 60:.0f} min", file=sys.stderr)
        reported = True
        time.sleep(NODE_POLL)
    return nodes


def assume_machine(settings: Settings) -> Settings:
    """Return the settings; in a dry run without the profile's GPU here, with one simulated machine that has it."""
    cluster, hardware = settings.cluster, settings.hardware
    if not settings.dry_run or cluster.kind == "ray" or cluster.simulate is not None or hardware.platform != "cuda":
        return settings
    names = host_facts.gpu_names()
    if set(names) & set(hardware.matches) or (names and not hardware.accelerator):
        return settings
    machine = SimulatedNodes(nodes=1, gpus=1, cpus=hardware.cpus or 64)
    return settings.model_copy(update={"cluster": cluster.model_copy(update={"simulate": machine})})


def find_nodes(settings: Settings) -> list[Node]:
    """Return the nodes for deployments: this machine, the cluster's nodes (autoscaler included), or simulated nodes."""
    hardware, simulated = settings.hardware, settings.cluster.simulate
    if simulated is not None:
        accelerators = tuple(name for name in (simulated.accelerator or hardware.accelerator,) if name)
        names = [f"simulated-{index}" for index in range(simulated.nodes)]
        facts = Host(driver=simulated.driver, capability=simulated.capability)
        return [Node(name, simulated.gpus, simulated.cpus, accelerators, name, facts) for name in names]
    if settings.cluster.kind == "ray":
        nodes = _cluster_nodes(settings.cluster, 0.0 if settings.dry_run else settings.cluster.wait_for_nodes)
        stated: list[Node] = ray_schedule(settings.cluster).state_facts(nodes, settings.cache_dir)
        if hardware.platform == "cuda":
            _check_drivers(stated)
        return stated
    gpus = host_facts.gpu_names()
    profile = (hardware.accelerator,) if hardware.accelerator and set(gpus) & set(hardware.matches) else ()
    accelerators, cores = (*profile, *sorted(set(gpus))), len(os.sched_getaffinity(0))
    return [Node("this machine", len(gpus), cores, accelerators, facts=host_facts.stated(settings.cache_dir))]


def _check_drivers(nodes: Sequence[Node]) -> None:
    """Raise ConfigError for a node with a broken driver if no other node has a GPU; otherwise the plan warns."""
    broken = {node.address: node.facts.broken_driver for node in nodes if node.facts and node.facts.broken_driver}
    if broken and not any(node.gpus for node in nodes if node.address not in broken):
        address, problem = next(iter(broken.items()))
        raise ConfigError(f"node {address}: {problem}")


def drivers_of(nodes: Sequence[Node]) -> set[str] | None:
    """Return the GPU driver versions that nodes have reported; None if no node has reported one."""
    stated = [node.facts for node in nodes if node.facts and node.facts.machine]  # no node type, no simulated node
    return {facts.driver for facts in stated if facts.driver} or None


def surroundings(
    settings: Settings,
    nodes: Sequence[Node],
    options: ConfigPath = OURS,
    kept_locks: Mapping[str, str] | None = None,
    pinned: bool = False,
) -> Surroundings:
    """Return the planner's view of the machines: the environments of engines, and why some are unavailable.

    An environment uses the lockfile in the results (`kept_locks`, by file name), else the committed one, else the one
    cached on this machine. Without any it is resolved, except in a dry run. `pinned`: the results' lockfiles are used
    even if the requirements have changed since. In a dry run, a deployment that needs a node that has not joined yet is
    unavailable; otherwise the driver waits for the node. Programs and the cache folder are checked only for engines
    that run on this machine.
    """
    waits = settings.cluster.kind == "ray" and not settings.dry_run
    host = _host(settings, nodes, waits)
    digest_programs = functools.partial(_digest_programs, settings.cluster, nodes)
    environments = RunEnvironments(settings, options, kept_locks or {}, host, digest_programs, pinned)

    def unavailable(backend: Any, platform: str) -> str | None:
        if platform == "cuda" and not host.gpus:
            return "no GPU here: run it on a machine or cluster that has one, or drop hardware= for the CPU form"
        reason: str | None = backend.unavailable(host)  # the engine's reason first, since it has the remedy
        if reason is None and backend.launches:
            reason = _environment_obstacle(environments, backend, platform, host, nodes, options)
        if reason is None and platform == "cuda" and not waits:
            accelerator, keys = settings.hardware.accelerator, backend.gpu_keys
            need = Need(backend.name, backend.gpu_count, accelerator, 0.0, gpu_keys=keys, replicas=backend.replicas)
            reason = infeasible(need, nodes)
        if reason is None and backend.launches and settings.cluster.kind != "ray" and not settings.cluster.simulate:
            _check_own_programs(backend.env)
            check_cache()
        if reason is None and backend.launches and isinstance(problem := environments.lock(backend, platform), str):
            return problem
        return reason

    @functools.cache
    def check_cache() -> None:
        check_writable("cache_dir", cache_directory(settings.cache_dir))

    def environment(backend: Any, platform: str) -> EnvironmentSpec | str:
        if not environments.settled(backend, platform):
            unavailable(backend, platform)  # locks the environment if the engine can run
        return environments.compose(backend, platform)

    def fingerprint(backend: Any, platform: str) -> str:
        if not backend.launches:
            return ""
        environment(backend, platform)
        return environments.fingerprint(backend, platform)

    def spec(backend: Any, platform: str) -> EnvironmentSpec | None:
        composed = environment(backend, platform) if backend.launches else ""
        return None if isinstance(composed, str) else composed

    table = None if settings.cluster.replay is None else open_table(settings.cluster.replay)
    return Surroundings(fingerprint, unavailable, spec, host.capability, table)


def _environment_obstacle(
    environments: RunEnvironments,
    backend: Any,
    platform: str,
    host: Host,
    nodes: Sequence[Node],
    options: ConfigPath,
) -> str | None:
    """Return why an engine has no environment on these nodes, in one line; None if it has one."""
    composed = environments.compose(backend, platform)
    if isinstance(composed, str):
        return composed
    reason = unusable(composed, host, options)
    if reason is None and locks.is_installed(composed):
        target = functools.partial(environments.target, backend, platform)
        reason = unlike_nodes(target, (node for node in nodes if node.gpus or platform == "cpu"))
    return reason


def unlike_nodes(target: Callable[[Host], str], nodes: Iterable[Node]) -> str | None:
    """Return why one lockfile does not fit all nodes, with the remedy, in one line; None if it fits.

    `target` returns the platform of the lockfile that a node needs.
    """
    addresses: dict[str, str] = {}
    for node in nodes:
        if node.facts and node.facts.machine:
            addresses.setdefault(target(node.facts), node.address)
    if len(addresses) < 2:
        return None
    (first, address), (second, other) = list(addresses.items())[:2]
    return (
        f"an environment is locked for nodes of one kind: {address} is {first}, {other} is {second}; "
        "select nodes of one kind with cluster.labels"
    )


def _digest_programs(cluster: Cluster, nodes: Sequence[Node], spec: EnvironmentSpec) -> dict[str, str]:
    """Return the digests of the user's programs (backend.env), which must be equal on all nodes of a cluster.

    Raises ValueError, in one line, if the nodes differ.
    """
    if cluster.kind != "ray" or cluster.simulate is not None:
        return own_content(spec)
    answers: dict[str, dict[str, str]] = ray_schedule(cluster).ask_nodes(own_content, nodes, spec)
    stated = {node: digests for node, digests in answers.items() if digests}
    if not stated:
        return own_content(spec)
    first, digests = next(iter(stated.items()))
    for node, others in stated.items():
        for key in digests:
            if others.get(key) != digests[key]:
                program = f"backend.env.{key}={getattr(spec, key)}"
                raise ValueError(f"{program} differs between nodes {first} and {node}: install the same on both")
    return digests


def _check_own_programs(choice: EnvironmentChoice) -> None:
    """Check that the interpreter and the binary named by the user exist."""
    for key, program in (("python", choice.python), ("binary", choice.binary)):
        if program and shutil.which(program) is None:
            allowed = "the path of an executable, or its name on PATH"
            raise ConfigError(f"backend.env.{key}={program}: not an executable file; expected: {allowed}")


def _host(settings: Settings, nodes: Sequence[Node], waits: bool) -> Host:
    if settings.cluster.kind != "ray" and settings.cluster.simulate is None:
        return host_facts.host()
    gpus = tuple(name for node in nodes for name in (node.accelerators or ("GPU",)) if node.gpus)
    if waits and settings.hardware.platform == "cuda" and not gpus:
        gpus = (settings.hardware.accelerator or "GPU",)
    facts = [node.facts for node in nodes if node.facts and (node.gpus or settings.hardware.platform == "cpu")]
    first = next((each for each in facts if each.machine), Host())  # nodes that need another lock are rejected
    # A node's PATH is unknown here: programs are assumed to exist; if not, a launch fails with the reason.
    return Host(
        gpus=gpus,
        executables=frozenset(host_facts.EXECUTABLES),
        # An engine is planned the same for all nodes, so the oldest GPU decides.
        driver=fit.oldest(each.driver for each in facts),
        capability=fit.oldest(each.capability for each in facts),
        nvcc=fit.oldest(each.nvcc for each in facts),
        glibc=fit.oldest(each.glibc for each in facts),
        machine=first.machine,
        python=first.python,
    )


def check_disk(settings: Settings, runnable: Sequence[Deployment], nodes: Sequence[Node]) -> None:
    """Raise ConfigError if the only node, whose cache is on this machine, lacks room for what launches must write."""
    problems, cluster = little_disk(settings, runnable, nodes, CANNOT_FIT), settings.cluster
    if problems and len(nodes) == 1 and cluster.kind != "ray" and cluster.simulate is None:
        raise ConfigError(f"cache_dir={cache_directory(settings.cache_dir)}: {problems[0]}")


def check_ports(plan: Plan) -> None:
    """Raise ConfigError if a fixed port is taken, naming the first such port."""
    for deployment in plan.deployments:
        port = deployment.backend.port
        needed = deployment.backend.launches and not deployment.unavailable
        if port is not None and needed and (problem := port_problem(port)):
            raise ConfigError(problem)


def ray_schedule(cluster: Cluster) -> Any:
    """Return the module that imports Ray; imported only when needed: it takes a second and reads its environment."""
    ray_environment.prepare_ray(cluster)
    from sweep.cluster import ray_executor

    return ray_executor
