"""`python -m sweep +experiment=throughput_bound`: compose, plan, check, run, report. See README.md."""

import shlex
import shutil
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from backends.base import Host
from backends.env import fingerprint, resolve
from sweep import provenance, ray_environment
from sweep.compose import compose_run, group_choices
from sweep.config import CONF, Cluster, ConfigError, Settings
from sweep.deployment import Halted
from sweep.driver import Driver, Executor, exit_status
from sweep.estimate import Estimate, History, estimate
from sweep.inline import InlineExecutor
from sweep.ledger import Ledger, sole_driver
from sweep.plan import Plan, Surroundings, make_plan
from sweep.progress import Display, duration
from sweep.resume import reasons, todo
from sweep.store import RunPaths, write_plan

MIN_FREE_BYTES = 1 << 30

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
    plan = make_plan(composition, _surroundings(settings))
    paths = RunPaths(Path(settings.out).absolute())
    console = Console(highlight=False)
    check_out(paths.out)
    if settings.dry_run:
        ledger = Ledger(paths.ledger, write=False)
        print_plan(console, plan, ledger, History.beside(paths.out), details=True)
        return 0
    check_ports(plan)
    if settings.fresh:
        move_aside(paths.out, console)
    with sole_driver(paths.out):
        return _run_locked(plan, paths, console, shlex.join(["python", "-m", "sweep", *arguments]))


def _run_locked(plan: Plan, paths: RunPaths, console: Console, command: str) -> int:
    ledger = Ledger(paths.ledger)
    history = History.beside(paths.out)
    paths.clear_staging()
    write_plan(paths, plan.entries(command))
    print_plan(console, plan, ledger, history, details=False)
    left = todo(plan, ledger)
    count = sum(len(deployment.trials) for deployment in left)
    expected = estimate(plan, left, history).seconds
    tracker = _tracker(plan.settings, paths) if left else None
    with Display(len(plan.trials), len(plan.trials) - count, expected, console) as display:
        if any(not deployment.unavailable for deployment in left):
            with _executor(plan.settings) as executor:
                driver = Driver(plan, paths, ledger, executor, display, tracker, history)
                driver.run()
        else:
            driver = Driver(plan, paths, ledger, InlineExecutor(), display, tracker)
            driver.run()
    if tracker is not None:
        tracker.close()
    _report(plan.settings, paths, console, rebuild=bool(left))
    ledger.close()
    return exit_status(plan, ledger, driver.interrupts > 0)


def _report(settings: Settings, paths: RunPaths, console: Console, rebuild: bool) -> None:
    """Tables, figures and report from what is on disk; they are not rebuilt when nothing has changed."""
    import analysis

    if rebuild or not paths.report.exists():
        analysis.write_all(paths.out)
    console.print(analysis.render_summary(paths.out))
    if settings.metrics == "vllm":
        for table in analysis.render_vllm_flavour(paths.out):
            console.print(table)
    console.print(f"report: {paths.report}", soft_wrap=True)


def _executor(settings: Settings) -> Executor:
    if settings.cluster.kind == "inline":
        return InlineExecutor([str(index) for index in range(len(provenance.gpu_names()))])
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
    if cluster.kind == "ray":
        schedule = _schedule(cluster)
        schedule.connect(cluster)
        accelerators = {name for node in schedule.nodes() for name in node.accelerators if node.gpus}
        profile = next(
            (name.lower() for name in sorted(accelerators) if name.lower() in group_choices("hardware")), None
        )
        return profile or ("gpu" if any(node.gpus for node in schedule.nodes()) else "cpu")
    names = provenance.gpu_names()
    if not names:
        return "cpu"
    for profile in group_choices("hardware"):
        if names[0] in yaml.safe_load((CONF / "hardware" / f"{profile}.yaml").read_text()).get("matches", []):
            return profile
    return "gpu"


def _surroundings(settings: Settings) -> Surroundings:
    """How the plan asks about this machine: the environments that engines would run in, and what cannot run."""
    host = _host(settings)

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
        if backend.launches:
            try:
                resolve(backend.env, "cuda" if platform == "cuda" else "cpu")
            except ValueError as error:
                return str(error)
        reason: str | None = backend.unavailable(host)
        return reason

    return Surroundings(locked_environment, unavailable)


def _host(settings: Settings) -> Host:
    if settings.cluster.kind != "ray":
        return provenance.host()
    schedule = _schedule(settings.cluster)
    schedule.connect(settings.cluster)
    gpus = tuple(name for node in schedule.nodes() for name in (node.accelerators or ("GPU",)) if node.gpus)
    return Host(gpus=gpus, cpus=max(node.cpus for node in schedule.nodes()))


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


def print_plan(console: Console, plan: Plan, ledger: Ledger, history: History, details: bool) -> None:
    """What will be run, what was replaced for lack of a GPU, what cannot run here and why, and what it will take."""
    left = todo(plan, ledger)
    count = sum(len(deployment.trials) for deployment in left)
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
        console.print(_plan_table(plan, reasons(plan, left, ledger)))
    for deployment in plan.deployments:
        if deployment.unavailable:
            console.print(
                f"unavailable: {deployment.describe()}: {deployment.unavailable}", markup=False, soft_wrap=True
            )
    if count:
        console.print(f"expected: {_words(estimate(plan, left, history))}")


def _plan_table(plan: Plan, to_run: Mapping[str, str]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("deployment", "trial", "engine and model", "workload and load", "seed", "state"):
        table.add_column(heading, overflow="fold")
    for deployment in plan.deployments:
        for trial in deployment.trials:
            state = "unavailable" if deployment.unavailable else to_run.get(trial.trial_id, "done")
            table.add_row(
                deployment.deployment_id,
                trial.trial_id,
                deployment.describe(),
                trial.describe(),
                str(trial.seed),
                state,
            )
    return table


def _words(expected: Estimate) -> str:
    if expected.seconds is None:
        return f"duration and cost unknown ({expected.unknown} trials of a kind that has not been run yet)"
    cost = "no price, no cost" if expected.cost is None else f"${expected.cost:.2f}"
    return f"{duration(expected.seconds)} of engine time, {cost}, from earlier runs"


def _usage() -> str:
    groups = ("experiment", "backend", "model", "workload", "load", "hardware")
    names = {f"{group}s" if group != "hardware" else group: ", ".join(group_choices(group)) for group in groups}
    return USAGE.format(**names)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
