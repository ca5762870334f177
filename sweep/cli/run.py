"""One run of the command, from its arguments to the report: compose, plan, check, run, report."""

import errno
import functools
import os
import shlex
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from analysis.answers.screen import is_stale, keeping, report_line
from backends.launch import gpus
from sweep.base.config import ISSUE_AGAIN, ConfigError, Halted, Settings, content_hash, first_line, shortened
from sweep.base.exits import Outage
from sweep.base.masking import masked_here
from sweep.base.options import ConfigPath
from sweep.base.records import Outcome
from sweep.base.wording import count
from sweep.cli.output import make_console
from sweep.cli.searches.ask import REPEATS, PlannedAsk, ask_line, check_ask, expected_launches, grid_of
from sweep.cli.searches.asked_capacity import AskedCapacity
from sweep.cli.searches.capacity import PlannedCapacity, check_search, search_line
from sweep.cli.searches.race import PlannedRace, race_lines, race_of
from sweep.cli.tracebacks import traced
from sweep.cluster.inline_executor import InlineExecutor
from sweep.cluster.replay_executor import MeasuredTable, ReplayExecutor
from sweep.disk import object_store
from sweep.disk.compaction import compact
from sweep.disk.folder_lock import sole_driver
from sweep.disk.ledger import Ledger
from sweep.disk.run_files import RunPaths, all_claim_lines, write_plan
from sweep.drive.driver import Driver, Executor, RunResult
from sweep.drive.endpoint_model import check_schemes, with_dialect, with_model, written_out
from sweep.drive.monitor.progress import Display
from sweep.drive.output_folder import check_out, ledger_to_read, move_aside, results_folder
from sweep.drive.planning_outages import plan_patiently
from sweep.drive.policy import DISK_FULL, FAILED
from sweep.drive.preflight import (
    assume_machine,
    check_disk,
    check_ports,
    drivers_of,
    fetch_obstacle,
    find_hardware,
    find_nodes,
    ray_schedule,
    surroundings,
)
from sweep.drive.run_locks import keep_locks, kept_locks
from sweep.plan.compose import Composition, compose_run
from sweep.plan.estimate import Expected, History, expect
from sweep.plan.packing import Node
from sweep.plan.pending import PendingWork, assumed_durations, check_resolved, find_pending
from sweep.plan.plan import Deployment, Plan
from sweep.plan.planning import Surroundings, make_plan
from sweep.plan.point_details import point_details
from sweep.plan.show import PIPE_WIDTH, print_plan

READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
STUDIED = {  # experiments with a study's findings, listed since importing `analysis` takes a second
    *("completion_batches", "latency_bound", "throughput_bound", "batch_size", "sequence_length", "request_count"),
    "serving_ladder",
}
LONGEST_TMPDIR = 107 - len("/ray/session_2026-11-25_08-00-00_000000_4194304/sockets/plasma_store")  # bytes


def run(
    arguments: Sequence[str], config_dirs: Sequence[str] = (), settled: bool = False, command: str | None = None
) -> int:
    """Run the command line; return the exit status. `config_dirs` are folders with a user's options.

    `settled` arguments have what their endpoint needs, which is not queried again. `command` is the command line as
    typed, if it is not made of these arguments.

    Raises ConfigError for bad input, before anything is launched; Halted for an outage that lasts; Unforeseen for an
    internal error while planning.
    """
    with traced(arguments):
        options = ConfigPath.of_user(config_dirs)
        typed = written_out(arguments)
        arguments, answered, planned = plan_patiently(
            functools.partial(_planned_for_endpoint, arguments, config_dirs, settled),
            lambda: compose_run(typed, lambda cluster: "cpu", options).settings,  # queries no other machine
        )
    if answered:
        make_console(PIPE_WIDTH).print(f"endpoint: {masked_here(answered)}", markup=False, soft_wrap=True)
    folders = [part for folder in config_dirs for part in ("--config-dir", folder)]
    return execute_plan(planned, command or shlex.join(["sweep", *folders, *arguments]))


def execute_plan(planned: "Planned", command: str) -> int:
    """Run a plan, or print it in a dry run; return the exit status. `command` is the command line as typed.

    Raises ConfigError for a plan that cannot be run, before anything is launched; Outage if the results' object store
    does not answer.
    """
    plan, nodes, paths, assumption = planned.plan, planned.nodes, planned.paths, planned.assumption
    settings, console = plan.settings, make_console(PIPE_WIDTH)
    check_out(paths.out)
    if assumption:
        console.print(assumption, soft_wrap=True)
    if settings.capacity is not None and (settings.ask is None or settings.ask.of_capacity):
        check_search(plan)
    if settings.ask is not None:
        check_ask(plan, planned.composition.settings.relaunch)
        console.print(ask_line(plan), markup=False, soft_wrap=True)
    elif settings.capacity is not None:
        console.print(search_line(plan, nodes), markup=False, soft_wrap=True)
    for line in race_lines(plan) if settings.ask is None else ():
        console.print(line, markup=False, soft_wrap=True)
    if settings.dry_run:
        ledger = plan_patiently(lambda: ledger_to_read(settings, paths), lambda: settings)
        history = History.beside(paths.out)
        for message in [*ledger.describe_damage(), *history.describe_damage()]:
            console.print(message, markup=False, soft_wrap=True)
        race = race_of(plan, ledger, paths)
        pending = find_pending(plan, ledger, history, nodes, drivers_of(nodes), race.dropped if race else ())
        check_disk(settings, pending.runnable, nodes)
        print_plan(console, plan, _expected(planned, pending), nodes, details=True)
        _print_findings(console, plan)
        if settings.details:
            for line in point_details(plan):
                console.print(line, markup=False, soft_wrap=True)
        return 0
    if settings.details:
        raise ConfigError("details=true: prints every point of a plan; add dry_run=true")
    if settings.cluster.simulate is not None and settings.cluster.replay is None:
        problem = "a simulated cluster cannot run anything; add dry_run=true, or cluster.replay=FILE"
        raise ConfigError(f"cluster.simulate: {problem}")
    check_ports(plan)
    if settings.cluster.replay is None:
        check_schemes(deployment.backend for deployment in plan.deployments)
    if settings.fresh:
        check_disk(settings, [launch for launch in plan.launches if not launch.unavailable], nodes)
        move_aside(paths.out, console)
    with _halted_by_full_disk(paths.out), sole_driver(paths.out) as lock:
        if not object_store.is_url(settings.out):
            return _run_locked(planned, console, command, lock.check)
        with object_store.Mirror(object_store.ObjectStore(settings.out), paths.out, console.print) as mirror:

            def check() -> None:
                lock.check()
                mirror.lock.check()

            return _run_locked(planned, console, command, check, mirror)


@contextmanager
def _halted_by_full_disk(out: Path) -> Iterator[None]:
    """Raise Halted if the disk is full before the first trial or after the last."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise Halted(f"{os.strerror(error.errno)}: {error.filename or out}") from error


def _print_findings(console: Console, plan: Plan) -> None:
    """Print how many findings of its study the plan can decide."""
    if plan.settings.name not in STUDIED:
        return
    from analysis.studies.decidable import decidable_findings  # imports pandas, which a command may not need

    configurations = [
        [deployment.facts(trial) for trial, *_ in deployment.points()]
        for deployment in plan.deployments
        if not deployment.unavailable
    ]
    settings = plan.settings
    findings = decidable_findings(settings.name, settings.hardware.name, settings.replicates, configurations)
    if findings:
        console.print(findings, markup=False, soft_wrap=True)


class Planned(NamedTuple):
    """A plan with the nodes and the results folder for it, and what it was made from."""

    plan: Plan
    nodes: Sequence[Node]
    paths: RunPaths
    composition: Composition
    facts: Surroundings
    assumption: str | None = None  # a note about the machine that the plan assumes


def _planned_for_endpoint(
    arguments: Sequence[str], config_dirs: Sequence[str], settled: bool
) -> tuple[Sequence[str], str | None, Planned]:
    """Plan a command line with what its endpoint needs; return both, and a line on how the endpoint answered.

    Raises Outage if the endpoint is unreachable, unless a trial planned without it has a row already: then its settings
    are known to need no change.
    """
    if settled:
        return arguments, None, _planned(arguments, config_dirs)
    arguments = with_model(arguments, ConfigPath.of_user(config_dirs))
    try:
        arguments, answered = with_dialect(arguments, ConfigPath.of_user(config_dirs))
    except Outage:
        planned = _planned(arguments, config_dirs)
        known = ledger_to_read(planned.plan.settings, planned.paths).rows
        if not any(trial.trial_id in known for trial in planned.plan.trials):
            raise
        return arguments, None, planned
    return arguments, answered, _planned(arguments, config_dirs)


def _planned(arguments: Sequence[str], config_dirs: Sequence[str]) -> Planned:
    """Compose and plan a command line."""
    options = ConfigPath.of_user(config_dirs)
    composition = compose_run(arguments, functools.partial(find_hardware, options=options), options, fetch_obstacle)
    settings, assumption = assume_machine(composition.settings), None
    if settings is not composition.settings:
        hardware = settings.hardware
        machine = f"1 {hardware.accelerator or 'GPU'}" + (f" and {hardware.cpus} cores" if hardware.cpus else "")
        here = f"no {hardware.accelerator or 'GPU'} here"
        assumption = f"{here}: planned for one machine with {machine}, as described in conf/hardware"
    nodes = find_nodes(settings)
    if settings.relock and settings.dry_run:
        raise ConfigError("relock=true: queries the package index, which a dry run never does; set dry_run=false")
    paths = RunPaths(results_folder(settings))
    facts = surroundings(settings, nodes, options, kept_locks(settings, paths))
    composition = replace(composition, settings=settings)
    if settings.capacity is not None:  # each replicate is a launch
        composition = grid_of(composition, settings.replicates)
    plan = make_plan(composition if settings.ask is None else grid_of(composition), facts)
    check_resolved(plan)
    return Planned(plan, nodes, paths, composition, facts, assumption)


def _run_locked(
    planned: Planned,
    console: Console,
    command: str,
    guard: Callable[[], None],
    mirror: object_store.Mirror | None = None,
) -> int:
    plan, nodes, paths = planned.plan, planned.nodes, planned.paths
    ledger, history = Ledger(paths.ledger, compact=mirror is None, guard=guard), History.beside(paths.out)
    for message in [*ledger.describe_damage(), *history.describe_damage()]:
        console.print(message, markup=False, soft_wrap=True)
    race = race_of(plan, ledger, paths)
    pending = find_pending(plan, ledger, history, nodes, drivers_of(nodes), race.dropped if race else ())
    search = _search_of(planned, ledger, history, command)
    check_disk(plan.settings, pending.runnable, nodes)
    paths.clear_staging()
    keep_locks(plan, paths)
    old_plan = paths.plan.read_bytes() if paths.plan.exists() else b""
    if plan.settings.capacity is None or plan.settings.ask is not None:
        print_plan(console, plan, _expected(planned, pending), nodes, details=False)
        if pending.launches:
            _print_findings(console, plan)
    paths.asked.unlink(missing_ok=True)
    if search is not None:
        plan, pending = search.plan, search.pending(pending, nodes)
    write_plan(paths, plan.entries(command))
    result, claims, tracker = _drive(planned, plan, pending, ledger, console, race, search)
    if mirror is not None:
        mirror.fetch_trials()
    ledger.close()
    changed = result.table_changed or paths.plan.read_bytes() != old_plan
    moved = _put_together(paths, console, mirror)  # before the report, so that its links stay valid
    rebuild = plan.settings.report and (changed or moved or is_stale(paths.out))
    ending = all_claim_lines(claims) if len(claims) == 1 else []  # the screen has a table of several
    remedy = "run the same command again to continue"
    if result.interrupted:
        ends = Counter(ledger.rows[trial.trial_id]["outcome"] for trial in plan.trials if trial.trial_id in ledger.rows)
        lost = ends.total() - ends[Outcome.OK]
        without = f", {lost} ended without one" if lost else ""
        results = f"{ends[Outcome.OK]} of {count(len(plan.trials), 'trial')} have a result{without}"
        ending.append(f"interrupted: {results}; {remedy}")
    elif result.unfinished:
        ending.append(f"{count(result.unfinished, 'trial')} not finished; {remedy}")
    if rebuild or changed or (pending.launches and plan.settings.capacity is None):
        print_report(paths.out, console, plan.settings.metrics, rebuild, below=[*ending, *([""] if tracker else [])])
    else:
        console.print(f"nothing to do; sweep summary {paths.out}", markup=False, soft_wrap=True)
        console.print(report_line(paths.out), markup=False, soft_wrap=True)
    for line in [*(tracker.publish(paths.out) if tracker is not None else ()), *ending]:
        console.print(line, markup=False, soft_wrap=True)
    return exit_status(plan, ledger, result.interrupted, result.unfinished)


def _search_of(planned: Planned, ledger: Ledger, history: History, command: str) -> PlannedAsk | PlannedCapacity | None:
    """Return the search that a plan asks for, with what the rows so far say."""
    plan, facts, composition = planned.plan, planned.facts, planned.composition
    assumed, settings = assumed_durations(plan.settings), plan.settings

    def durations(launches: list[Deployment]) -> Expected:
        return expect(launches, history, settings.hardware, assumed, settings.seed)

    if settings.ask is None:
        if settings.capacity is None:
            return None
        return PlannedCapacity(plan, composition, ledger, planned.paths, command, durations)
    most = min(REPEATS, facts.replayed.replicates) if facts.replayed else REPEATS
    full = make_plan(grid_of(composition, most), facts)
    whole = len(plan.launches) * composition.settings.replicates
    if settings.capacity is None:
        return PlannedAsk(full, plan, whole, ledger, planned.paths, command, durations)
    available = [deployment for deployment in full.deployments if not deployment.unavailable]
    each_launch = replace(full, deployments=available)
    searches = PlannedCapacity(each_launch, composition, ledger, planned.paths, command, durations)
    return AskedCapacity(searches, each_launch, plan, whole)


def _expected(planned: Planned, pending: PendingWork) -> PendingWork:
    """Return pending work with the estimate of a plan's question; a capacity has a line of its own instead."""
    settings = planned.plan.settings
    if settings.ask is None:
        if settings.capacity is None:
            return pending
        return replace(pending, estimate=pending.estimate._replace(messages=[]))
    lines = expected_launches(planned.plan, planned.composition.settings.replicates, pending, planned.nodes)
    return replace(pending, estimate=pending.estimate._replace(messages=lines))


def _put_together(paths: RunPaths, console: Console, mirror: object_store.Mirror | None) -> bool:
    """Combine the run's small files into larger ones; return whether any may have moved. On failure, no row is lost."""
    if mirror is not None and not mirror.settle():
        return False
    try:
        return compact(paths) > 0
    except Exception as error:  # noqa: BLE001 - e.g. the disk is full: the run has its results, and gets its report
        problem = f"{type(error).__name__}: {shortened(first_line(error))}"
        console.print(f"small files were not combined ({problem})", markup=False, soft_wrap=True)
        return True


def _drive(
    planned: Planned,
    plan: Plan,
    pending: PendingWork,
    ledger: Ledger,
    console: Console,
    race: PlannedRace | None,
    search: PlannedAsk | PlannedCapacity | None,
) -> tuple[RunResult, dict[str, dict[str, Any]], Any]:
    """Run the pending trials or a search; return how the run ended, the claims, and the tracker.

    The tracker and the executor start only if a trial is due: a repeated search may need none.
    """
    paths, launches = planned.paths, pending.launches or (search is not None and not search.done)
    with ExitStack() as ending:
        tracker = _tracker(plan.settings, paths) if launches else None
        ending.callback(lambda: tracker and tracker.close())
        due = pending.runnable or (search is not None and launches)
        executor = _executor(plan.settings, planned.nodes, planned.facts.replayed) if due else InlineExecutor()
        ending.enter_context(executor)
        try:
            with Display(len(plan.trials), pending.finished_trials, pending.estimate.seconds, console) as display:
                result = Driver(plan, pending, paths, ledger, executor, display, tracker, race, search).run()
                if isinstance(executor, ReplayExecutor):
                    display.log(executor.describe())
        finally:
            claims = search.write() if search is not None else {}
        return result, claims, tracker


def exit_status(plan: Plan, ledger: Ledger, interrupted: bool, unfinished: int = 0) -> int:
    """Return 0; 1 if a trial failed; ISSUE_AGAIN if the deadline left trials pending; 130 if interrupted."""
    if interrupted:
        return 130
    if unfinished:
        return ISSUE_AGAIN
    outcomes = [ledger.rows[trial.trial_id]["outcome"] for trial in plan.trials if trial.trial_id in ledger.rows]
    return 1 if not FAILED.isdisjoint(outcomes) else 0


def print_report(
    folder: Path,
    console: Console,
    metrics: str = "sweep",
    rebuild: bool = True,
    all_rows: bool = False,
    below: Sequence[str] = (),
) -> None:
    """Print the summary of the results in a folder, after rebuilding tables, charts and report.

    If the folder is read-only, the report is written to a folder within the current one. The screen leaves room for
    the lines that are printed `below`.
    """
    import analysis  # imports pandas and scipy, which a command with nothing to do does not need

    paths = RunPaths(folder)
    try:
        with keeping(folder) as screens:
            results = analysis.open_results(folder, all_rows)
            if rebuild:
                try:
                    analysis.write_all(results)
                except OSError as error:
                    if error.errno not in READ_ONLY:
                        raise
                    full = folder.resolve()  # no other run's report has the folder
                    paths = RunPaths(Path.cwd() / f"{full.name}-report-{content_hash(str(full), 6)}")
                    analysis.write_all(results, paths)
                    moved = f"{folder} is read-only: its report is written to {paths.out}"
                    console.print(moved, markup=False, soft_wrap=True)
            screen = analysis.screen_of(results)
            screens += [] if all_rows else [screen]
    except (analysis.RunNotFound, analysis.DamagedFile) as error:
        raise ConfigError(str(error)) from None
    console.print(screen.above(below, console.width))
    for table in analysis.render_vllm_flavour(results) if metrics == "vllm" else ():
        console.print(table)
    console.print(f"report: {paths.report}" if rebuild else report_line(paths.out), markup=False, soft_wrap=True)


def _executor(settings: Settings, nodes: Sequence[Node], table: MeasuredTable | None) -> Executor:
    if table is not None:
        return ReplayExecutor(table, nodes)
    if settings.cluster.kind == "inline":
        return InlineExecutor([gpu.uuid for gpu in gpus.visible()][: nodes[0].gpus], nodes[0].accelerators)
    folder = tempfile.gettempdir()
    if settings.cluster.kind == "local" and len(os.fsencode(folder)) > LONGEST_TMPDIR:
        problem = "Ray puts its sockets in this folder, and a socket's path can be at most 107 bytes long"
        raise ConfigError(f"TMPDIR={shortened(folder)}: {problem}; expected at most {LONGEST_TMPDIR}, e.g. TMPDIR=/tmp")
    executor: Executor = ray_schedule(settings.cluster).RayExecutor(settings.cluster)
    return executor


def _tracker(settings: Settings, paths: RunPaths) -> Any:
    if settings.tracking.kind == "none":
        return None
    from analysis.tracking.tracker import Tracker

    return Tracker(settings.tracking, settings.name, paths.tracking)
