"""One run of the command, from its arguments to the report: compose, plan, check, run, report."""

import shlex
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from sweep.config import ConfigError, Settings
from sweep.disk import object_store
from sweep.disk.ledger import Ledger, sole_driver
from sweep.disk.run_files import RunPaths, write_plan
from sweep.drive.driver import Driver, Executor, exit_status
from sweep.drive.inline_executor import InlineExecutor
from sweep.drive.output_folder import check_out, ledger_to_read, move_aside, results_folder
from sweep.drive.preflight import check_ports, find_hardware, find_nodes, ray_schedule, surroundings
from sweep.drive.progress import Display
from sweep.plan.compose import compose_run
from sweep.plan.estimate import History, estimate
from sweep.plan.packing import Node
from sweep.plan.pending import todo
from sweep.plan.plan import Plan
from sweep.plan.planning import make_plan
from sweep.plan.show import make_console, print_details, print_plan
from sweep.wording import count


def run(arguments: Sequence[str]) -> int:
    """From the command line to the report.

    Raises:
        ConfigError: for bad input, before anything is launched.
    """
    composition = compose_run(arguments, find_hardware)
    settings = composition.settings
    nodes = find_nodes(settings)
    plan = make_plan(composition, surroundings(settings, nodes))
    paths = RunPaths(results_folder(settings))
    console = make_console()
    check_out(paths.out)
    if settings.dry_run:
        print_plan(console, plan, ledger_to_read(settings, paths), History.beside(paths.out), nodes, details=True)
        if settings.details:
            print_details(console, plan)
        return 0
    if settings.details:
        raise ConfigError("details=true: prints every point of a plan; allowed with dry_run=true")
    if settings.cluster.simulate is not None:
        raise ConfigError("cluster.simulate: a simulated cluster runs nothing; allowed with dry_run=true")
    check_ports(plan)
    if settings.fresh:
        move_aside(paths.out, console)
    command = shlex.join(["python", "-m", "sweep", *arguments])
    with sole_driver(paths.out):
        if not object_store.is_url(settings.out):
            return _run_locked(plan, paths, nodes, console, command)
        with object_store.Mirror(object_store.ObjectStore(settings.out), paths.out, console.print) as mirror:
            return _run_locked(plan, paths, nodes, console, command, mirror)


def _run_locked(
    plan: Plan,
    paths: RunPaths,
    nodes: Sequence[Node],
    console: Console,
    command: str,
    mirror: object_store.Mirror | None = None,
) -> int:
    ledger = Ledger(paths.ledger)
    history = History.beside(paths.out)
    paths.clear_staging()
    planned = paths.plan.read_bytes() if paths.plan.exists() else b""
    print_plan(console, plan, ledger, history, nodes, details=False)  # this may refuse it
    write_plan(paths, plan.entries(command))
    driver = _drive(plan, paths, ledger, history, nodes, console)
    if mirror is not None:
        mirror.fetch_trials()
    changed = driver.rewritten or paths.plan.read_bytes() != planned
    _report(plan.settings, paths, console, rebuild=changed or _is_stale(paths))
    if driver.interrupts:
        done = sum(1 for trial in plan.trials if trial.trial_id in ledger.rows)
        console.print(
            f"interrupted: {done} of {len(plan.trials)} trials have a row; the same command goes on from here"
        )
    elif driver.left:
        console.print(f"deadline: {count(driver.left, 'trial')} left; the same command goes on from here")
    ledger.close()
    return exit_status(plan, ledger, interrupted=driver.interrupts > 0, left=driver.left)


def _drive(
    plan: Plan, paths: RunPaths, ledger: Ledger, history: History, nodes: Sequence[Node], console: Console
) -> Driver:
    """Run what is left of a plan; the driver, for how it ended."""
    left = todo(plan, ledger)
    done = len(plan.trials) - sum(len(deployment.trials) for deployment in left)
    expected = estimate(plan, left, history, nodes).seconds
    anything_runs = any(not deployment.unavailable for deployment in left)
    tracker = _tracker(plan.settings, paths) if left else None
    try:
        with (
            Display(len(plan.trials), done, expected, console) as display,
            _executor(plan.settings, nodes) if anything_runs else InlineExecutor() as executor,
        ):
            driver = Driver(plan, paths, ledger, executor, display, tracker, history)
            driver.run()
    finally:
        if tracker is not None:
            tracker.close()
    return driver


def _is_stale(paths: RunPaths) -> bool:
    """Whether a run was killed between its last trial and its report."""
    return not paths.report.exists() or paths.report.stat().st_mtime_ns < paths.trials.stat().st_mtime_ns


def _report(settings: Settings, paths: RunPaths, console: Console, rebuild: bool) -> None:
    """Tables, figures and report from what is on disk; they are not rebuilt when nothing has changed."""
    import analysis

    results = analysis.open_results(paths.out)
    if rebuild:
        analysis.write_all(results)
    console.print(analysis.Summary(results))
    if settings.metrics == "vllm":
        for table in analysis.render_vllm_flavour(results):
            console.print(table)
    console.print(f"report: {paths.report}", soft_wrap=True)


def _executor(settings: Settings, nodes: Sequence[Node]) -> Executor:
    if settings.cluster.kind == "inline":
        return InlineExecutor([str(index) for index in range(nodes[0].gpus)], nodes[0].accelerators)
    executor: Executor = ray_schedule(settings.cluster).RayExecutor(settings.cluster)
    return executor


def _tracker(settings: Settings, paths: RunPaths) -> Any:
    if settings.tracking.kind == "none":
        return None
    from analysis.tracking.tracker import Tracker

    return Tracker(settings.tracking, settings.name, paths.tracking)
