"""`python -m sweep +experiment=throughput_bound`: compose, plan, check, run, report. See README.md."""

import os
import shlex
import shutil
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from backends.base import Host
from backends.env import fingerprint, resolve
from sweep import provenance, ray_environment, storage
from sweep.compose import compose_run, group_choices
from sweep.config import CONF, Cluster, ConfigError, Settings, cache_directory
from sweep.deployment import Halted
from sweep.driver import Driver, Executor, exit_status
from sweep.estimate import Assumed, History, estimate
from sweep.inline import InlineExecutor
from sweep.ledger import Ledger, sole_driver
from sweep.packing import Need, Node, infeasible
from sweep.plan import Deployment, Plan, Surroundings, make_plan
from sweep.progress import Display
from sweep.resume import reasons, todo
from sweep.store import RunPaths, write_plan

MIN_FREE_BYTES = 1 << 30
INSIDE_A_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray in the driver of a submitted job
SHOWN_TRIALS = 200  # beyond which the plan is shown by deployment
FEW_CORES = 4  # for each GPU (or deployment on a CPU): server, engine, client and what the system needs

USAGE = """\
usage: python -m sweep [+experiment=NAME] [key=value | key=v1,v2,... ]...

Runs an experiment, or without one the single configuration of backend, model, workload and load. A list of values makes
(or replaces) an axis. The same command again runs only what is not done.

  python -m sweep +experiment=throughput_bound
  python -m sweep +experiment=throughput_bound load.batch_size=1,8 backend=vllm dry_run=true
  python -m sweep backend=vllm model=tiny-llama workload=qa load=closed load.concurrency=4

experiments: {experiments}
backends:    {backends}
models:      {models}
workloads:   {workloads}
loads:       {loads}
hardware:    {hardware}

dry_run=true prints the plan and starts nothing; fresh=true moves old results aside; out=DIR says where they go.
Exit status: 0; 1 a trial failed; 2 bad input; 130 interrupted."""


def main(arguments: Sequence[str]) -> int:
    """Run the command line; its exit status."""
    if {"-h", "--help", "help"} & set(arguments):
        print(_usage())
        return 0
    try:
        return run(arguments)
    except ConfigError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped: nothing was running; the same command goes on from here", file=sys.stderr)
        return 130
    except Halted as error:
        print(f"stopped: {' '.join(str(error).split())}", file=sys.stderr)
        return 1


def run(arguments: Sequence[str]) -> int:
    """From the command line to the report.

    Raises:
        ConfigError: for bad input, before anything is launched.
    """
    composition = compose_run(arguments, find_hardware)
    settings = composition.settings
    nodes = _nodes(settings)
    plan = make_plan(composition, _surroundings(settings, nodes))
    paths = RunPaths(results_folder(settings))
    console = Console(highlight=False)
    check_out(paths.out)
    if settings.dry_run:
        print_plan(console, plan, _ledger_to_read(settings, paths), History.beside(paths.out), nodes, details=True)
        return 0
    if settings.cluster.simulate is not None:
        raise ConfigError("cluster.simulate: a simulated cluster runs nothing; allowed with dry_run=true")
    check_ports(plan)
    if settings.fresh:
        move_aside(paths.out, console)
    command = shlex.join(["python", "-m", "sweep", *arguments])
    with sole_driver(paths.out):
        if not storage.is_url(settings.out):
            return _run_locked(plan, paths, nodes, console, command)
        with storage.Mirror(storage.Store(settings.out), paths.out, console.print) as mirror:
            return _run_locked(plan, paths, nodes, console, command, mirror)


def results_folder(settings: Settings) -> Path:
    """Where results are written on this machine; those of an object store are copied there from a local folder.

    Raises:
        ConfigError: if they would be lost, or cannot be kept there.
    """
    if storage.is_url(settings.out):
        storage.Store(settings.out)
        if settings.fresh:
            raise ConfigError(f"fresh=true: objects cannot be renamed; give another out than {settings.out}")
        return storage.staging_folder(settings.out, cache_directory(settings.cache_dir))
    if INSIDE_A_JOB in os.environ and not Path(settings.out).is_absolute():
        raise ConfigError(
            f"out={settings.out}: a Ray job's folder is thrown away with it; allowed are an absolute path on a disk "
            "that stays, s3://bucket/path and gs://bucket/path"
        )
    return Path(settings.out).absolute()


def _ledger_to_read(settings: Settings, paths: RunPaths) -> Ledger:
    if not storage.is_url(settings.out):
        return Ledger(paths.ledger, write=False)
    with tempfile.TemporaryDirectory() as folder:
        storage.copy(settings.out, Path(folder), only=lambda name: False)
        return Ledger(Path(folder) / paths.ledger.name, write=False)


def _run_locked(
    plan: Plan,
    paths: RunPaths,
    nodes: Sequence[Node],
    console: Console,
    command: str,
    mirror: storage.Mirror | None = None,
) -> int:
    ledger = Ledger(paths.ledger)
    history = History.beside(paths.out)
    paths.clear_staging()
    planned = paths.plan.read_bytes() if paths.plan.exists() else b""
    write_plan(paths, plan.entries(command))
    print_plan(console, plan, ledger, history, nodes, details=False)
    left = todo(plan, ledger)
    count = sum(len(deployment.trials) for deployment in left)
    expected = estimate(plan, left, history, nodes).seconds
    tracker = _tracker(plan.settings, paths) if left else None
    with Display(len(plan.trials), len(plan.trials) - count, expected, console) as display:
        if any(not deployment.unavailable for deployment in left):
            with _executor(plan.settings, nodes) as executor:
                driver = Driver(plan, paths, ledger, executor, display, tracker, history)
                driver.run()
        else:
            driver = Driver(plan, paths, ledger, InlineExecutor(), display, tracker)
            driver.run()
    if tracker is not None:
        tracker.close()
    if mirror is not None:
        mirror.fetch_trials()
    changed = driver.rewritten or paths.plan.read_bytes() != planned
    _report(plan.settings, paths, console, rebuild=changed or _is_stale(paths))
    if driver.interrupts:
        done = sum(1 for trial in plan.trials if trial.trial_id in ledger.rows)
        console.print(
            f"interrupted: {done} of {len(plan.trials)} trials have a row; the same command goes on from here"
        )
    ledger.close()
    return exit_status(plan, ledger, driver.interrupts > 0)


def _is_stale(paths: RunPaths) -> bool:
    """Whether a run was killed between its last trial and its report."""
    return not paths.report.exists() or paths.report.stat().st_mtime_ns < paths.trials.stat().st_mtime_ns


def _report(settings: Settings, paths: RunPaths, console: Console, rebuild: bool) -> None:
    """Tables, figures and report from what is on disk; they are not rebuilt when nothing has changed."""
    import analysis

    if rebuild:
        analysis.write_all(paths.out)
    console.print(analysis.render_summary(paths.out))
    if settings.metrics == "vllm":
        for table in analysis.render_vllm_flavour(paths.out):
            console.print(table)
    console.print(f"report: {paths.report}", soft_wrap=True)


def _executor(settings: Settings, nodes: Sequence[Node]) -> Executor:
    if settings.cluster.kind == "inline":
        return InlineExecutor([str(index) for index in range(nodes[0].gpus)], nodes[0].accelerators)
    executor: Executor = _schedule(settings.cluster).RayExecutor(settings.cluster)
    return executor


def _schedule(cluster: Cluster) -> Any:
    """The module that imports Ray, imported where it is needed: it takes a second, and reads its environment then."""
    ray_environment.prepare(cluster)
    from sweep import schedule

    return schedule


def _tracker(settings: Settings, paths: RunPaths) -> Any:
    if settings.tracking.kind == "none":
        return None
    from analysis.tracking import Tracker

    return Tracker(settings.tracking, settings.name, paths.tracking)


def find_hardware(cluster: Cluster) -> str:
    """The profile of conf/hardware for hardware=auto: by the GPUs of this machine, or of the cluster that is joined."""
    if cluster.simulate is not None:
        named = (cluster.simulate.accelerator or "gpu").lower() if cluster.simulate.gpus else "cpu"
        return named if named in group_choices("hardware") else "gpu"
    if cluster.kind == "ray":
        nodes = _cluster_nodes(cluster)
        accelerators = {name for node in nodes for name in node.accelerators if node.gpus}
        profile = next(
            (name.lower() for name in sorted(accelerators) if name.lower() in group_choices("hardware")), None
        )
        return profile or ("gpu" if any(node.gpus for node in nodes) else "cpu")
    names = provenance.gpu_names()
    if not names:
        return "cpu"
    for profile in group_choices("hardware"):
        if names[0] in yaml.safe_load((CONF / "hardware" / f"{profile}.yaml").read_text()).get("matches", []):
            return profile
    return "gpu"


def _cluster_nodes(cluster: Cluster) -> list[Node]:
    """The nodes of the Ray cluster that is joined, and those that its autoscaler could still start."""
    schedule = _schedule(cluster)
    schedule.connect(cluster)
    return [*schedule.nodes(cluster), *schedule.startable_nodes(cluster)]


def _nodes(settings: Settings) -> list[Node]:
    """What there is, or can be had from an autoscaler, to run deployments on; or what is to be simulated."""
    hardware, simulated = settings.hardware, settings.cluster.simulate
    if simulated is not None:
        accelerators = tuple(name for name in (simulated.accelerator or hardware.accelerator,) if name)
        names = [f"simulated-{index}" for index in range(simulated.nodes)]
        return [Node(name, simulated.gpus, simulated.cpus, accelerators, name) for name in names]
    if settings.cluster.kind == "ray":
        return _cluster_nodes(settings.cluster)
    gpus = provenance.gpu_names()
    known = (hardware.accelerator,) if hardware.accelerator and set(gpus) & set(hardware.matches) else ()
    return [Node("this machine", len(gpus), len(os.sched_getaffinity(0)), (*known, *sorted(set(gpus))))]


def _surroundings(settings: Settings, nodes: Sequence[Node]) -> Surroundings:
    """How the plan asks about this machine: the environments that engines would run in, and what cannot run."""
    host = _host(settings, nodes)

    def locked_environment(backend: Any, platform: str) -> str:
        if not backend.launches:
            return ""
        try:
            return fingerprint(resolve(backend.env, "cuda" if platform == "cuda" else "cpu"))
        except ValueError as error:
            return f"none: {error}"

    def unavailable(backend: Any, platform: str) -> str | None:
        if platform == "cuda" and not host.gpus:
            return "no GPU here: run it on a machine or cluster that has one, or drop hardware= for the CPU form"
        reason: str | None = backend.unavailable(host)  # in the engine's own words first: they have the remedy
        if reason is None and backend.launches:
            try:
                resolve(backend.env, "cuda" if platform == "cuda" else "cpu")
            except ValueError as error:
                return str(error)
        if reason is None and platform == "cuda":
            reason = infeasible(Need(backend.name, backend.gpus, settings.hardware.accelerator, 0.0), nodes)
        return reason

    return Surroundings(locked_environment, unavailable)


def _host(settings: Settings, nodes: Sequence[Node]) -> Host:
    if settings.cluster.kind != "ray" and settings.cluster.simulate is None:
        return provenance.host()
    gpus = tuple(name for node in nodes for name in (node.accelerators or ("GPU",)) if node.gpus)
    # What is on a node's PATH is not known from here: taken to be there, and a launch says it if not.
    executables = frozenset(provenance.WANTED_EXECUTABLES)
    return Host(gpus=gpus, cpus=max((node.cpus for node in nodes), default=1), executables=executables)


def check_out(out: Path) -> None:
    """Whether results can be written there.

    Raises:
        ConfigError: if not, or if the disk is all but full.
    """
    existing = next(path for path in [out, *out.parents] if path.exists())
    if not existing.is_dir():
        raise ConfigError(f"out={out}: {existing} is not a folder")
    probe = existing / f".sweep-probe-{socket.gethostname()}-{time.monotonic_ns()}"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"out={out}: cannot be written ({error.strerror})") from None
    free = shutil.disk_usage(existing).free
    if free < MIN_FREE_BYTES:
        raise ConfigError(f"out={out}: {free >> 20} MiB free on its disk; needed are {MIN_FREE_BYTES >> 20} MiB")


def check_ports(plan: Plan) -> None:
    """Whether every fixed port is free.

    Raises:
        ConfigError: naming the first that is taken.
    """
    for deployment in plan.deployments:
        port = deployment.backend.port
        if port is not None and deployment.backend.launches and not deployment.unavailable:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError as error:
                    raise ConfigError(
                        f"backend.port={port}: taken ({error.strerror}); allowed: a free port, or null for any"
                    ) from None


def move_aside(out: Path, console: Console) -> None:
    """fresh=true: the old results keep everything, under another name."""
    if out.exists() and any(out.iterdir()):
        with sole_driver(out):
            aside = out.with_name(f"{out.name}.{time.strftime('%Y%m%d-%H%M%S')}")
            out.rename(aside)
        console.print(f"old results moved to {aside}", soft_wrap=True)


def print_plan(
    console: Console, plan: Plan, ledger: Ledger, history: History, nodes: Sequence[Node], details: bool
) -> None:
    """What will be run, what was replaced for lack of a GPU, what cannot run here and why, and what it will take."""
    left = todo(plan, ledger)
    count = sum(len(deployment.trials) for deployment in left)
    why = reasons(plan, left, ledger) if ledger.rows else {}
    for text in plan.replaced:
        console.print(f"no GPU here: {text}", markup=False, soft_wrap=True)
    hardware = plan.settings.hardware
    price = f"${hardware.price_per_hour}/h" if hardware.price_per_hour else "no price set"
    console.print(
        f"plan {plan.settings.name}: {len(plan.deployments)} deployments, {len(plan.trials)} trials, "
        f"{count} to run, on {hardware.name} ({price}); results in {plan.settings.out}",
        markup=False,
        soft_wrap=True,
    )
    if details:
        console.print(_plan_table(plan, left, why))
    for reason, number in Counter(why.values()).most_common():
        console.print(f"to run: {number} trials: {reason}", markup=False, soft_wrap=True)
    for deployment in plan.deployments:
        if deployment.unavailable:
            console.print(
                f"unavailable: {deployment.describe()}: {deployment.unavailable}", markup=False, soft_wrap=True
            )
    for text in few_cores(plan, nodes):
        console.print(f"warning: {text}", markup=False, soft_wrap=True)
    simulated = plan.settings.cluster.simulate
    assumed = None
    if simulated is not None and simulated.seconds_per_trial is not None:
        assumed = Assumed(simulated.seconds_per_trial, simulated.seconds_per_launch)
    for text in estimate(plan, left, history, nodes, assumed).words if count else []:
        console.print(f"expected: {text}", markup=False, soft_wrap=True)


def few_cores(plan: Plan, nodes: Sequence[Node]) -> list[str]:
    """Nodes on which engine and measuring client would be in each other's way."""
    cuda = plan.settings.hardware.platform == "cuda"
    used = [node for node in nodes if node.gpus or not cuda]
    poor = {node.address: node.cpus / max(1, node.gpus if cuda else 1) for node in used}
    return [
        f"{address}: {cores:g} cores for each {'GPU' if cuda else 'deployment'}, one of them the measuring client's; "
        f"an engine short of cores is measured slow (wanted: {FEW_CORES} or more)"
        for address, cores in poor.items()
        if cores < FEW_CORES
    ]


def _plan_table(plan: Plan, left: Sequence[Deployment], why: Mapping[str, str]) -> Table:
    to_run = {trial.trial_id for deployment in left for trial in deployment.trials}
    """A line for each trial, or of a large plan for each deployment."""
    whole = len(plan.trials) <= SHOWN_TRIALS
    table = Table(box=None, header_style="bold", pad_edge=False)
    by_trial = ("trial", "engine and model", "workload and load", "seed", "state")
    for heading in ("deployment", *(by_trial if whole else ("engine and model", "trials", "to run"))):
        table.add_column(heading, overflow="fold")
    for deployment in plan.deployments:
        name, what = deployment.deployment_id, deployment.describe()
        if not whole:
            count = sum(trial.trial_id in to_run for trial in deployment.trials)
            table.add_row(
                name, what, str(len(deployment.trials)), "unavailable" if deployment.unavailable else str(count)
            )
            continue
        for trial in deployment.trials:
            state = why.get(trial.trial_id, "to run") if trial.trial_id in to_run else "done"
            state = "unavailable" if deployment.unavailable else state
            table.add_row(name, trial.trial_id, what, trial.describe(), str(trial.seed), state)
    return table


def _usage() -> str:
    groups = ("experiment", "backend", "model", "workload", "load", "hardware")
    names = {f"{group}s" if group != "hardware" else group: ", ".join(group_choices(group)) for group in groups}
    return USAGE.format(**names)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
