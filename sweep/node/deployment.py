"""One launch of a deployment on one node: prepares the node, launches the engine, runs the trials, reports events.

This module does not depend on Ray, other deployments or retries across runs: it gets Work and emits events. An engine
that dies during a trial is launched again for the remaining trials; if it cannot be launched, all trials end.
"""

import contextlib
import copy
import functools
import math
import os
import queue
import secrets
import signal
import socket
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import httpx

from backends.base import Backend, Launch, Progress
from backends.launch import server, supervisor, task
from backends.launch.control_client import ControlClient
from backends.launch.gpus import find_gpu
from backends.launch.host_facts import host
from backends.launch.replicas import replica_launches
from backends.launch.task import Stopped
from backends.prepare import checkpoints, fit
from backends.prepare import environments as environments
from backends.prepare.retry import patiently
from backends.tables.log_causes import cause_table
from sweep.base.config import Hardware, first_line
from sweep.base.exits import Blame, Cause, Exit, Outage, exit_of
from sweep.base.records import Outcome, Request, TrialProgress
from sweep.base.wording import duration_text
from sweep.client.measurement import ClientDied, TooFewFiles, check_open_files, files_needed
from sweep.client.process_count import process_count
from sweep.drive import policy
from sweep.drive.policy import Failure
from sweep.gateway.process import GatewaySilent, running_gateway
from sweep.node import agreement
from sweep.node.cold_start import measure_cold_start
from sweep.node.events import (
    Beat,
    Claimed,
    Emit,
    Event,
    Finished,
    Measuring,
    Note,
    Prepared,
    Proposed,
    Stalled,
    State,
    Unprepared,
)
from sweep.node.machine import gpu_memory, lease
from sweep.node.machine.cores import split_cores
from sweep.node.machine.sharing import sharing_name
from sweep.node.rows import engine_facts, unmeasured_row
from sweep.node.spread.partners import NodeBusy, RemoteEngine, SpreadNodes, launched_elsewhere
from sweep.node.trial import run_trial
from sweep.node.work import PreparedNode, RunningEngine, Work
from sweep.plan.pending import unresolved
from sweep.plan.plan import Trial
from sweep.search.launch_search import OVERTIME, PROBE_TRIES, STOPPED, LaunchSearch

RESET_ATTEMPTS = 5  # a finished request's memory may be freed shortly after its last token
RESET_PAUSE = 0.2  # s between the attempts
LAUNCH_ID = 12  # characters


class DiskFull(Exception):
    """A disk is full: nothing more can be written."""


class Contradiction(Exception):
    """This node differs from the plan, so its results would be stored under the wrong id."""

    exit = Exit(Cause.CONTRADICTION)


PREPARATION_FAULTS = (Contradiction, environments.EnvironmentFailed, OSError, ValueError)  # Outage is a ValueError


def stream_deployment(
    work: Work, gpus: tuple[str, ...], draining: threading.Event, beat: float, spread: SpreadNodes | None = None
) -> Generator[Event, None, None]:
    """Run `run_deployment` as a generator of events, with a Beat after every `beat` seconds without an event.

    `draining` ends it after the running trial; closing it stops its current work.
    """
    stop = threading.Event()
    return streamed(work, beat, stop, lambda emit: run_deployment(work, gpus, emit, stop, draining, spread))


def streamed(
    work: Work, beat: float, stop: threading.Event, run_within: Callable[[Callable[[Any], None]], None]
) -> Generator[Any, None, None]:
    """Yield the events that `run_within` emits in a thread of the task, which ends when `stop` is set or on closing."""
    events: queue.Queue[Any] = queue.Queue()

    def emit(event: Any) -> None:
        events.put(event)
        if stop.is_set():
            raise Stopped

    def run() -> None:
        try:
            with task.cancel_scope(work.marker, stop):
                run_within(emit)
            events.put(None)
        except Stopped:
            events.put(None)
        except OSError as error:
            place = error.filename or "a disk of this node"
            full = DiskFull(f"{os.strerror(error.errno or 0)}: {place}") if error.errno in policy.DISK_FULL else None
            events.put(full or error)
        except BaseException as error:  # noqa: BLE001 - handed to the consumer, which raises it
            events.put(error)

    thread = threading.Thread(target=run, name=work.deployment.describe())
    thread.start()
    try:
        while True:
            try:
                event = events.get(timeout=beat)
            except queue.Empty:
                event = Beat()
            if event is None:
                return
            if isinstance(event, BaseException):
                raise event
            yield event
    finally:
        stop.set()
        thread.join()


def run_deployment(
    work: Work,
    gpus: tuple[str, ...],
    emit: Emit,
    stop: threading.Event,
    draining: threading.Event,
    spread: SpreadNodes | None = None,
) -> None:
    """Launch the engine as often as needed to give every trial a row.

    An engine that died, hung or answered nothing is launched again for the remaining trials. They all end after
    `settings.attempts` such failures without a successful trial in between, or after two launches that fail for the
    same reason. A launch waits while its endpoint is gone, or its port or GPU memory is in use. Raises NodeLost if
    another node of a `spread` launch is gone.
    """
    pending = _Pending(work, stop, draining)

    def prepared() -> PreparedNode | None:
        # Without GPUs, preparing would disturb other measurements here; with GPUs, a lease would keep them idle.
        with _lease(work, gpus, pending, emit) if not gpus else nullcontext(True) as leased:
            return prepare_node(work, gpus, emit) if leased and pending.next() else None

    try:
        node = patiently(prepared, work.patience, _outage_reporter(emit), pending.pause)
    except Outage as error:
        emit(Unprepared(str(error)))
        return
    except PREPARATION_FAULTS as error:
        if isinstance(error, OSError) and error.errno in policy.DISK_FULL:
            raise
        _end_all(work, pending.trials, preparation_failure(error), emit)
        return
    if node is None:
        return
    if work.deployment.backend.launches:
        emit(Prepared())
    _end_contradicted(work, pending.trials, emit)
    _end_without_files(work, node, pending.trials, emit)
    failures: list[Failure] = []

    def launch() -> Failure | None:
        while True:
            with suppress(NodeBusy), _lease(work, gpus, pending, emit) as leased:
                return _one_launch(work, node, pending, emit, spread) if leased else None

    while pending.next():
        try:
            failure = patiently(launch, work.patience, _outage_reporter(emit), pending.pause, (Outage,))
        except Outage as error:
            emit(Unprepared(str(error), postponed=True))
            return
        if failure is None or failure.good:
            failures.clear()
        if failure is not None:
            failures.append(failure)
            if not policy.launches_again(failures, work.settings.attempts):
                _end_all(work, pending.trials, failure, emit)


def preparation_failure(error: Exception) -> Failure:
    """Return the failure of a deployment whose node cannot be prepared."""
    outcome = Outcome.INVALID if isinstance(error, Contradiction) else Outcome.LAUNCH_FAILED
    if isinstance(error, environments.OptionalPartFailed):
        outcome = Outcome.UNAVAILABLE
    exit = exit_of(error)
    reason = "; ".join(filter(None, [str(error), exit.words and cause_table().find_remedy(exit.words)]))
    return Failure(outcome, reason, exit)


def _lease(
    work: Work, gpus: tuple[str, ...], pending: "_Pending", emit: Emit
) -> contextlib.AbstractContextManager[bool]:
    """Hold the lease on this deployment's GPUs or this machine's CPU; yield False if no trial can start any longer.

    An endpoint needs no lease.
    """
    if not work.deployment.backend.launches:
        return nullcontext(True)
    return lease.leased(
        gpus,
        work.settings.name,
        sharing_name(work.settings.cluster),
        report=lambda text: emit(State(text)),
        give_up=lambda: pending.next() is None,
    )


def _outage_reporter(emit: Emit) -> Callable[[str], None]:
    """Return a function that reports outages: the first as an event, later outages as the current state."""
    first = True

    def report(reason: str) -> None:
        nonlocal first
        if first:
            emit(Note(f"{reason}; retrying"))
        first = False
        emit(Stalled(reason))
        emit(State(f"waiting: {reason}"))

    return report


def other_gpus(gpus: tuple[str, ...], hardware: Hardware) -> str | None:
    """Return why this node's GPU is not the requested model (its results would get a wrong price); None if it is."""
    if not hardware.matches:
        return None
    unplanned = {gpu.name for gpu in filter(None, map(find_gpu, gpus))} - set(hardware.matches)
    if not unplanned:
        return None
    return f"hardware={hardware.name} means {hardware.matches[0]}, but this node has {min(unplanned)}"


def other_content(planned: Mapping[str, str], parts: Mapping[str, Callable[[], str]]) -> str | None:
    """Return how content on this node differs from the plan, or None; `parts` maps groups to digest functions."""
    for group, digest in parts.items():
        if group in planned:
            try:
                content = digest()
            except Outage:
                raise
            except (FileNotFoundError, PermissionError, ValueError) as error:
                content = str(error)
            if content != planned[group]:
                return f"the content of the {group} differs from the plan: {content}, not {planned[group]}"
    return None


class _Pending:
    """The trials of a deployment that have not run yet, in order."""

    def __init__(self, work: Work, stop: threading.Event, draining: threading.Event) -> None:
        self.trials = deque(work.deployment.trials)
        self.work, self.stop, self.draining = work, stop, draining
        self.searched = copy.deepcopy(work.deployment.searched)  # the driver may start the launch again

    def next(self) -> Trial | None:
        """Return the first trial expected to end before the deadline; None if no trial is, or after a stop."""
        if self.stop.is_set() or self.draining.is_set():
            return None
        remaining = math.inf if self.work.deadline is None else self.work.deadline - time.time()
        return next((trial for trial in self.trials if self.work.expected.get(trial.trial_id, 0.0) < remaining), None)

    def pause(self, seconds: float) -> None:
        """Sleep for `seconds`, or less if no trial can start any longer."""
        until = time.monotonic() + seconds
        while (remaining := until - time.monotonic()) > 0 and self.next():
            task.pause(min(remaining, 1.0))


def _one_launch(
    work: Work, node: PreparedNode, pending: _Pending, emit: Emit, spread: SpreadNodes | None = None
) -> Failure | None:
    """Launch the engine and run all pending trials on it; return the engine's failure, or None."""
    backend, versions = work.deployment.backend, node.environment.versions
    try:
        wait_for_gpu_memory(node, emit)
        expected = _reference(work, node, emit)
        wait_for_gpu_memory(node, emit)  # the reference's process frees memory too
        emit(State("launching the engine" if backend.launches else f"connecting to {backend.url}"))
        here = spread and spread.replicas(0, backend.replicas)
        launches = replica_launches(node.launch, backend.replicas, here)
        with (
            launched_elsewhere(work, node, spread, emit) as await_others,
            server.running_together(backend, launches, marker=work.marker, versions=versions) as engines_here,
        ):
            engines = (*engines_here, *await_others())
            emit(Prepared())
            facts = _first_facts(work, node, engines, expected, emit)
            if spread:
                reachable = f"{facts['reachable_by']}; from the other nodes, with this launch's token"
                facts |= {"nodes": [each for each in spread.addresses for _ in launches], "reachable_by": reachable}
            if not all(engine.shows_on_gpus() for engine in engines):  # some load at the first request
                reason = "it answers, but its GPUs show neither its process nor more memory: it runs on other hardware"
                return Failure(Outcome.INVALID, reason, Exit(Cause.CONTRADICTION), engines[0].log_tail())
            launch = uuid.uuid4().hex[:LAUNCH_ID] if backend.launches else None
            tokenizer = functools.partial(work.deployment.model.tokenizer_folder, work.cache)
            folder = node.launch.workdir / "gateway"
            with running_gateway(work.deployment.gateway, engines, folder, tokenizer, work.marker) as gateway:
                return _run_trials(work, RunningEngine(node, engines, facts, launch, gateway), pending, emit)
    except server.LaunchError as error:
        if policy.is_unavailable(error.exit):
            raise Outage(error.reason) from error
        emit(Prepared())
        return Failure(error.outcome, error.reason, error.exit, error.log_tail)


def wait_for_gpu_memory(node: PreparedNode, emit: Emit) -> None:
    if node.launch.gpus:
        emit(State("waiting for GPU memory"))
        gpu_memory.wait_until_free(node.launch.gpus)


def _first_facts(
    work: Work, node: PreparedNode, engines: Sequence[server.Engine], expected: agreement.Reference | str, emit: Emit
) -> dict[str, Any]:
    """Return facts about the engine and its answers; for replicas, of the first engine, with the latest cold start."""
    first = [
        engine.cold_ttft
        if isinstance(engine, RemoteEngine)
        else measure_cold_start(engine, node.client_cpus, work.settings.stall_timeout)
        for engine in engines
    ]
    replicas: dict[str, Any] = {}
    if len(engines) > 1:
        commands = [engine.command for engine in engines]
        replicas = {"replicas": commands, "routing": work.deployment.gateway.routing}
    return {
        **engines[0].facts(),
        **replicas,
        "cold_ttft": None if None in first else max(each for each in first if each is not None),
        **agreement.compare_once(work, engines[0], expected, lambda text: emit(State(text))),
    }


def _reference(work: Work, node: PreparedNode, emit: Emit) -> agreement.Reference | str:
    """Return the reference answers, or why they are missing; during an outage, wait."""

    def reference() -> agreement.Reference | str:
        return agreement.reference(work, node.launch, lambda text: emit(State(text)))

    try:
        return patiently(reference, work.patience, _outage_reporter(emit))
    except Outage as error:
        return f"none: {first_line(error)}"


def prepare_node(work: Work, gpus: tuple[str, ...], emit: Emit) -> PreparedNode:
    """Prepare environment and weights on this node; return the node with its launch."""
    backend, model = work.deployment.backend, work.deployment.model
    if contradiction := other_gpus(gpus, work.settings.hardware):
        raise Contradiction(contradiction)

    def progress(text: str) -> None:
        emit(State(text))

    environment, spec = environments.Environment(""), None
    folder, draft = Path(), work.deployment.draft
    if backend.launches:
        _check_models(work)  # checked before an environment is built in vain
        spec = work.deployment.environment
        assert spec is not None, "planned for an engine that sweep launches"
        if other := environments.other_platform(spec):
            raise Contradiction(other)
        if unfit := fit.problem(spec, host()):  # checked before gigabytes are fetched
            problem = f"environment {spec.name} does not run on this node: {unfit}"
            raise environments.EnvironmentFailed(problem, Exit("unfit", blames=Blame.USER))
        environment = environments.prepare_or_plain(spec, work.cache, progress)
        folder = _weights(work, environment, progress)
        draft = draft and draft.prepare(work.cache, progress)
    engine_cpus, client_cpus = split_cores(gpus, work.settings.client.processes)
    work.folder.mkdir(parents=True, exist_ok=True)
    launch = Launch(
        model=folder,
        draft=draft,
        served_name=model.served_name or model.name,
        workdir=work.folder,
        python=environment.python,
        binary=environment.binary,
        image=environment.image,
        runtime=environment.runtime,
        cache=work.cache / "containers" / (spec.name if spec else "none"),
        image_cache=spec.cache if spec else None,
        shm_size=spec.shm_size if spec else "",
        environ=spec.environ if spec else {},
        gpus=gpus,
        threads=max(1, len(engine_cpus)),
        cpus=tuple(engine_cpus),
        dtype=model.dtype if backend.dtype == "auto" else backend.dtype,
        max_model_len=model.max_model_len,
    )
    return PreparedNode(launch, environment, client_cpus, socket.gethostname())


def _weights(work: Work, environment: environments.Environment, progress: Progress) -> Path:
    """Return the folder that the engine loads: the model, or a conversion of it.

    Conversions for an image use this project's interpreter, since the image's cannot run on this machine.
    """
    backend: Backend = work.deployment.backend
    folder: Path = work.deployment.model.prepare(work.cache, progress)
    if not environment.image:
        return backend.weights(folder, environment.python, work.cache, progress)
    # The plan reports this too, if it knows how the model is stored.
    if problem := backend.conversion_obstacle(functools.partial(checkpoints.is_quantised, folder)):
        raise environments.EnvironmentFailed(problem)
    return backend.weights(folder, sys.executable, work.cache, progress)


def _check_models(work: Work) -> None:
    """Raise an error if this node cannot get a model, or if the model or this project's code differs from the plan."""
    backend, planned = work.deployment.backend, dict(work.deployment.content)
    models = {"model": work.deployment.model, "draft": work.deployment.draft}
    content: dict[str, Callable[[], str]] = {}
    for group, model in models.items():
        if model is None:
            continue
        model.reach(work.cache)
        content[group] = functools.partial(model.digest, work.cache)
        if unresolved(planned.get(group, "")):
            del planned[group]  # the driver reached no hub to resolve the commit, but this node may
    if other := other_content(planned, {**content, "backend": lambda: backend.digest()}):
        raise Contradiction(other)


def clear_engines(marker: str) -> int:
    """Kill every engine on this node whose marker begins with `marker`, and the process that launched it.

    That process is the task of a driver that is dead or has abandoned it, and would launch a new engine. Returns the
    number of engines.
    """

    def stale(other: str) -> bool:
        return other == marker or other.startswith(f"{marker}/")

    for pid in supervisor.marked(lambda environ: stale(environ[supervisor.MARKER])):
        owner = supervisor.living_owner(supervisor.process_environment(pid))
        if owner and owner != os.getpid():
            supervisor.send([owner], signal.SIGKILL)
    return len(server.clear_leftovers(stale))


def _run_trials(work: Work, running: RunningEngine, pending: _Pending, emit: Emit) -> Failure | None:
    """Run trials in order until all have run, the engine has failed or the driver stops them."""
    total, good, fresh = len(pending.trials), False, True
    while trial := pending.next():
        if trial.trial_id in work.deployment.searched:
            row = _search(work, running, trial, pending, emit, fresh=fresh)
        else:
            emit(State(f"trial {total - len(pending.trials) + 1} of {total}: {trial.describe()}"))
            row = _measure(work, running, trial, pending, emit, fresh=fresh)
        fresh = False
        if row["outcome"] == Outcome.CANCELLED:
            return None  # not measured: the next run of the command runs it
        pending.trials.remove(trial)
        if trial.trial_id not in work.deployment.searched:
            emit(Finished(trial, row))
        if row["outcome"] == Outcome.OOM_RUN:
            for other, reason in policy.censored(pending.trials, [trial]):
                pending.trials.remove(other)
                emit(Finished(other, unmeasured_row(work, other, Outcome.CENSORED, reason)))
        elif failure := _failure(row, good):
            return failure
        if not running.alive() or policy.was_interrupted(row):
            return None
        good = good or row["outcome"] == Outcome.OK
    return None


def _search(
    work: Work, running: RunningEngine, first: Trial, pending: _Pending, emit: Emit, *, fresh: bool
) -> dict[str, Any]:
    """Search a capacity on this launch, beginning with its `first` probe; return the last probe's row.

    The engine keeps running while its probes follow one another and the next one is computed here. The search ends by
    its evidence or its budget, with the engine, or when the driver stops it.
    """
    search: LaunchSearch = pending.searched[first.trial_id]
    search.paths = work.paths
    began, ended, row = time.monotonic(), "", {"outcome": Outcome.CANCELLED}
    repeated = (Outcome.DISTURBED, Outcome.CLIENT_LIMITED, *(() if running.launch else (Outcome.HUNG,)))
    while not ended and (trial := search.next()):
        if not pending.next():
            ended = STOPPED
        elif time.monotonic() - began + search.due_seconds > OVERTIME * search.budget:
            ended = f"{OVERTIME:g} times its budget has passed"
        else:
            searches = [pending.searched.get(each.trial_id) for each in pending.trials]
            emit(Proposed(trial, sum(each.seconds_left for each in searches if each is not None)))
            left = f"{duration_text(search.seconds_left)} of the search left"
            emit(State(f"probe {len(search.rows) + 1}: {trial.describe()}; {left}"))
            for _ in range(PROBE_TRIES):
                row = _measure(work, running, trial, pending, emit, fresh=fresh, is_hopeless=search.is_hopeless)
                fresh = False
                if row["outcome"] not in repeated or time.monotonic() - began > OVERTIME * search.budget:
                    break
            if row["outcome"] == Outcome.CANCELLED:
                return row
            measured = search.read(row)  # before its files may be moved
            emit(Finished(trial, row))
            search.cut_off += policy.was_interrupted(row)
            if policy.was_interrupted(row) and not running.launch and search.cut_off < PROBE_TRIES:
                return {"outcome": Outcome.CANCELLED}  # the search goes on once the endpoint is back
            if news := search.tell(row, measured):
                emit(Note(news))
    emit(Claimed(search.point.name, search.record(ended)))
    return row


def _measure(
    work: Work,
    running: RunningEngine,
    trial: Trial,
    pending: _Pending,
    emit: Emit,
    *,
    fresh: bool,
    is_hopeless: Callable[[TrialProgress], bool] = lambda progress: False,
) -> dict[str, Any]:
    """Return the trial's row. If a measuring process dies, or a gateway does not answer, the trial is measured again,
    since the engine is not at fault.

    Before each measurement the engine's prompt cache is flushed, unless the engine is `fresh` from its launch: a retry
    sends the same prompts and would find them in the cache. If the cache cannot be flushed, prompts get new prefixes.
    Once `is_hopeless` is true of the progress, the measurement ends.
    """
    caches: bool | None = None  # for the row: the result of the last attempt
    empty = fresh and running.engine.backend.launches
    for attempt in range(work.settings.attempts):
        if attempt or not fresh:
            caches = _reset_caches(running.engines, emit)
        salt = None if caches or (empty and not attempt) else secrets.token_hex(4)
        try:
            notify = functools.partial(_note, running.engine, emit)
            return run_trial(
                work,
                running,
                trial,
                pending.stop,
                notify=notify,
                on_progress=lambda progress: emit(Measuring(progress)),
                caches_reset=caches,
                salt=salt,
                is_hopeless=is_hopeless,
            )
        except (ClientDied, GatewaySilent) as error:
            reason, exit = str(error), exit_of(error)
    facts = engine_facts(running, caches)
    return unmeasured_row(work, trial, Outcome.INVALID, reason, engine=facts, exit=exit)


def _failure(row: Mapping[str, Any], good: bool) -> Failure | None:
    """Return the engine's failure shown by a trial's row: it died, hung, or answered no request."""
    reason = f"the engine failed repeatedly, most recently: {row['reason']}"
    exit = Exit.restored(row["exit"]) if row.get("exit") else Exit()
    failure = Failure(Outcome(row["outcome"]), reason, exit, row.get("log_tail"), good)
    return failure if policy.engine_failed(row) else None


def _reset_caches(engines: Sequence[server.Engine], emit: Emit) -> bool | None:
    """Flush every engine's prompt cache; return whether all succeeded, None if engines do not support it.

    Failures are reported. Also return None for an endpoint: other users may rely on its cache.
    """
    backend, reset = engines[0].backend, True
    if not backend.launches or not backend.resets:
        return None
    for engine in engines:
        problems = [
            f"{path}: {problem}" for path in backend.resets if (problem := _reset(engine.url + path, engine.headers))
        ]
        if problems:
            reset = False
            _note(engine, emit, f"caches not reset before the trial: {'; '.join(problems)}")
    return reset


def _note(engine: server.Engine, emit: Emit, message: str) -> None:
    """Report a message now, and also in the engine's log if it has one."""
    emit(Note(message))
    if engine.backend.launches:
        with engine.log.open("a") as log:
            log.write(f"sweep: {message}\n")


def _reset(url: str, headers: Mapping[str, str]) -> str | None:
    """Ask an engine to reset a cache. Return the reason if it failed, else None."""
    problem = ""
    for attempt in range(RESET_ATTEMPTS):
        time.sleep(RESET_PAUSE if attempt else 0.0)
        try:
            with ControlClient(timeout=30) as client:
                answer = client.post(url, headers=headers)
        except httpx.HTTPError as error:
            return f"{type(error).__name__}: {error}"
        problem = f"status {answer.status_code}: {' '.join(answer.text.split())[:200]}"
        if answer.status_code == 404:
            break
        # vLLM always answers 200; newer versions report success in the body.
        if answer.is_success and '"success":false' not in answer.text.replace(" ", ""):
            return None
    return problem


def _end_contradicted(work: Work, pending: deque[Trial], emit: Emit) -> None:
    """Record rows for trials whose prompts or arrivals come from files that differ on this node."""

    @functools.cache  # a file may be large, and trials share a few files
    def problem(group: str, identity: int) -> str | None:
        return other_content({group: planned[identity]}, {group: lambda: parts[identity].digest(work.cache)})

    parts = {id(part): part for trial in pending for part in (trial.workload, trial.load)}
    planned = {id(getattr(trial, group)): digest for trial in pending for group, digest in trial.content.items()}
    for trial in list(pending):
        problems = (problem(group, id(getattr(trial, group))) for group in trial.content)
        if reason := next(filter(None, problems), None):
            pending.remove(trial)
            row = unmeasured_row(work, trial, Outcome.INVALID, reason, exit=Exit(Cause.CONTRADICTION))
            emit(Finished(trial, row))


def _end_without_files(work: Work, node: PreparedNode, pending: deque[Trial], emit: Emit) -> None:
    """Record rows for trials of users or batches whose connections need more open files than this machine allows.

    A timed load's need depends on its requests, and is checked when they are made.
    """
    if work.deployment.backend.traits.timed_inside:
        return
    for trial in list(pending):
        mode, requests = trial.mode(), [Request("", "", 0)] * trial.workload.num_requests
        if mode.last_arrival() is not None:
            continue
        parts = process_count(work.settings.client.processes, mode, requests, node.client_cpus)
        try:
            check_open_files(files_needed(mode, len(requests), parts))
        except TooFewFiles as error:
            pending.remove(trial)
            row = unmeasured_row(work, trial, Outcome.UNAVAILABLE, str(error), exit=Exit(blames=Blame.USER))
            emit(Finished(trial, row))


def _end_all(work: Work, trials: deque[Trial], failure: Failure, emit: Emit) -> None:
    """Record the engine's failure as the row of each of these trials."""
    while trials:
        trial = trials.popleft()
        row = unmeasured_row(work, trial, failure.outcome, failure.reason, failure.log_tail, exit=failure.exit)
        emit(Finished(trial, row))
