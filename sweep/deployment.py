"""One deployment on one node: prepare what it needs, launch its engine, run its trials in order, say what happens.

Knows nothing of Ray, of other deployments or of retries over runs: it gets Work and emits events. An engine that dies
under a trial is launched again for the trials after it; an engine that cannot be launched ends them all.
"""

import os
import queue
import socket
import threading
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from backends import env as environments
from backends import server
from backends.base import Launch
from sweep.config import Settings, cache_directory
from sweep.plan import Deployment, Trial
from sweep.provenance import gpu_names, now
from sweep.records import Outcome
from sweep.store import RunPaths
from sweep.trial import Place, TrialRun, base_row, run_trial


@dataclass(frozen=True)
class Work:
    """What a task is given: a deployment with the trials still to run, and where its files go."""

    deployment: Deployment
    settings: Settings
    out: str  # absolute
    attempt: str
    axes: tuple[str, ...]


class State(NamedTuple):
    """What the deployment is doing now, in a few words."""

    text: str


class Finished(NamedTuple):
    """A trial has its row."""

    trial: Trial
    row: dict[str, Any]


class Lost(NamedTuple):
    """The deployment's task ended without finishing: lost with its node or worker, or failed by an error of ours."""

    reason: str  # one line
    error: str | None = None  # the traceback, where the task itself failed


Event = State | Finished
Emit = Callable[[Event], None]


class Stopped(Exception):
    """The driver wants no more trials of this deployment."""


def stream_deployment(work: Work, gpus: tuple[str, ...]) -> Generator[Event, None, None]:
    """`run_deployment` as a generator of events; closing it stops the deployment after what cannot be interrupted."""
    events: queue.Queue[Event | BaseException | None] = queue.Queue()
    stop = threading.Event()

    def emit(event: Event) -> None:
        events.put(event)
        if stop.is_set():
            raise Stopped

    def run() -> None:
        try:
            run_deployment(work, gpus, emit, stop)
            events.put(None)
        except Stopped:
            events.put(None)
        except BaseException as error:  # noqa: BLE001 - handed to the consumer, which raises it
            events.put(error)

    thread = threading.Thread(target=run, name=work.deployment.describe())
    thread.start()
    try:
        while (event := events.get()) is not None:
            if isinstance(event, BaseException):
                raise event
            yield event
    finally:
        stop.set()
        thread.join()


def run_deployment(work: Work, gpus: tuple[str, ...], emit: Emit, stop: threading.Event) -> None:
    """Launch the engine as often as it takes to give every trial a row, at most `settings.attempts` times."""
    pending = deque(work.deployment.trials)
    run = TrialRun(work.deployment, work.settings, RunPaths(Path(work.out)), work.attempt, work.axes)
    try:
        place = _prepare(work, gpus, emit)
    except (environments.EnvironmentFailed, OSError, ValueError) as error:
        _end_all(run, pending, Outcome.LAUNCH_FAILED, str(error), emit)
        return
    marker = f"{work.deployment.deployment_id}/{work.attempt}"
    for _ in range(work.settings.attempts):
        emit(State("launching the engine"))
        try:
            backend, versions = work.deployment.backend, place.environment.versions
            with server.running(backend, place.launch, marker=marker, versions=versions) as engine:
                _run_trials(run, replace(place, engine=engine, facts=engine.facts()), pending, emit, stop)
        except server.LaunchError as error:
            _end_all(run, pending, error.outcome, error.reason, emit, error.log_tail)
        if not pending or stop.is_set() or _told_to_stop(run):
            return
    _end_all(run, pending, Outcome.ENGINE_CRASHED, f"the engine died {work.settings.attempts} times", emit)


def _prepare(work: Work, gpus: tuple[str, ...], emit: Emit) -> Place:
    """Environment and weights on this node, and the launch that they make possible."""
    backend, model = work.deployment.backend, work.deployment.model
    cache = cache_directory(work.settings.cache_dir)
    environment = environments.Environment("")
    folder = Path()
    if backend.launches:
        spec = environments.resolve(backend.env, work.settings.hardware.platform)
        environment = environments.prepare(spec, cache, lambda text: emit(State(text)))
        folder = model.prepare(cache, lambda text: emit(State(text)))
        folder = backend.weights(folder, environment.python, cache, lambda text: emit(State(text)))
    engine_cpus, client_cpus = split_cores(gpus)
    workdir = RunPaths(Path(work.out)).attempt(work.deployment.deployment_id, work.attempt)
    workdir.mkdir(parents=True, exist_ok=True)
    launch = Launch(
        model=folder,
        served_name=model.served_name or model.name,
        workdir=workdir,
        python=environment.python,
        binary=environment.binary,
        gpus=gpus,
        threads=max(1, len(engine_cpus)),
        cpus=tuple(engine_cpus),
        dtype=model.dtype if backend.dtype == "auto" else backend.dtype,
        max_model_len=model.max_model_len,
    )
    return Place(launch, environment, client_cpus, socket.gethostname())


def split_cores(gpus: tuple[str, ...]) -> tuple[list[int], set[int]]:
    """The cores of the engine and of the measuring client, apart where there are two or more.

    With GPUs the node may hold other deployments beside this one: its cores are dealt out by GPU.
    """
    cores = sorted(os.sched_getaffinity(0))
    if gpus and all(gpu.isdigit() for gpu in gpus):
        total = max(len(gpu_names()), max(int(gpu) for gpu in gpus) + 1)
        share = len(cores) // total
        if share >= 2:
            cores = [core for gpu in gpus for core in cores[int(gpu) * share : (int(gpu) + 1) * share]]
    if len(cores) < 2:
        return cores, set(cores)
    return cores[:-1], {cores[-1]}


def _run_trials(run: TrialRun, place: Place, pending: deque[Trial], emit: Emit, stop: threading.Event) -> None:
    """Trials in order until they are through, the engine is dead or the driver wants no more."""
    total = len(pending)
    while pending and not stop.is_set() and not _told_to_stop(run):
        trial = pending[0]
        emit(State(f"trial {total - len(pending) + 1} of {total}: {trial.describe()}"))
        row = run_trial(run, place, trial, stop)
        if row["outcome"] == Outcome.CANCELLED:
            return  # it was not measured: the trial is left for the next run
        pending.popleft()
        emit(Finished(trial, row))
        if row["outcome"] == Outcome.OOM_RUN:
            _censor_larger(run, trial, pending, emit)
        assert place.engine is not None
        if not place.engine.alive():
            return


def _censor_larger(run: TrialRun, trial: Trial, pending: deque[Trial], emit: Emit) -> None:
    """A batch ran out of memory: larger ones of the same workload will too, and are not tried."""
    size = trial.load.size
    for other in [t for t in pending if t.workload == trial.workload and t.load.size and size and t.load.size > size]:
        pending.remove(other)
        reason = f"{trial.load.describe()} already ran out of memory"
        emit(Finished(other, base_row(run, other) | {"outcome": Outcome.CENSORED.value, "reason": reason}))


def _end_all(
    run: TrialRun, pending: deque[Trial], outcome: Outcome, reason: str, emit: Emit, log_tail: str | None = None
) -> None:
    """Give every trial left the same row: the engine's failure is data."""
    ended = {"outcome": outcome.value, "reason": reason, "log_tail": log_tail, "ended_at": now()}
    while pending:
        trial = pending.popleft()
        emit(Finished(trial, base_row(run, trial) | ended))


def stop_file(paths: RunPaths, deployment_id: str, attempt: str) -> Path:
    """The file by which the driver asks a deployment to end after its present trial."""
    return paths.attempt(deployment_id, attempt) / "stop"


def _told_to_stop(run: TrialRun) -> bool:
    return stop_file(run.paths, run.deployment.deployment_id, run.attempt).exists()
