"""One trial: send a workload to an engine under a load, and write down what happened.

The measuring itself is the client process's (`client`); here is what surrounds it: requests built before the clock
starts, telemetry beside it, and the verdict. A trial's folder is complete when its trial.parquet is there.
"""

import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from backends.base import Backend, Launch
from backends.launch.server import Engine
from backends.prepare.environments import Environment
from sweep import provenance
from sweep.client import measurement, wire
from sweep.config import POINT_GROUPS, Hardware, Settings, cache_directory
from sweep.disk import run_files
from sweep.disk.row import (
    EngineFacts,
    Identity,
    Observation,
    TrialRow,
    Verdict,
    percentiles_of,
    percentiles_text,
)
from sweep.disk.run_files import RunPaths
from sweep.node import engine_timed, validity
from sweep.node.telemetry import EngineMetrics, Gpus, Processes, Sampler, Source
from sweep.numbers.quantities.memory import memory_of
from sweep.numbers.quantities.throughput import cost_per_million_tokens
from sweep.numbers.quantity import Value, columns
from sweep.numbers.selection import Window
from sweep.numbers.steady import steady_window
from sweep.numbers.summarise import figures, summarise
from sweep.plan.plan import Deployment, Trial, config_text, elsewhere
from sweep.records import Outcome, Records, Request


@dataclass(frozen=True)
class Work:
    """The input of a task: a deployment with the trials still to run, and where its files go."""

    deployment: Deployment
    settings: Settings
    out: str  # absolute
    attempt: str
    axes: tuple[str, ...]
    run: str = "run"  # the run's own name, in the markers of its engines
    deadline: float | None = None  # s since the epoch: no trial starts that is not expected to end by then
    expected: Mapping[str, float] = field(default_factory=dict)  # trial id -> s, where earlier runs have measured it

    @property
    def paths(self) -> RunPaths:
        return RunPaths(Path(self.out))

    @property
    def folder(self) -> Path:
        """The folder of this attempt's files."""
        return self.paths.attempt(self.deployment.deployment_id, self.attempt)

    @property
    def cache(self) -> Path:
        """The folder on this node for environments, weights and conversions."""
        return cache_directory(self.settings.cache_dir)

    @property
    def marker(self) -> str:
        """The name by which everything of this attempt's engine can be found on its node."""
        return f"{self.run}/{self.deployment.deployment_id}/{self.attempt}"


@dataclass(frozen=True)
class PreparedNode:
    """A node that has all that the engine needs: its environment, its weights, and cores for it and for the client."""

    launch: Launch
    environment: Environment
    client_cpus: set[int]
    name: str


@dataclass(frozen=True)
class RunningEngine:
    """The engine that trials are measured on, and the node it runs on."""

    node: PreparedNode
    engine: Engine
    facts: Mapping[str, Any]  # as the engine reports them


def identity(work: Work, trial: Trial, accelerator: str | None = None) -> Identity:
    """The part of a row that is known before anything is measured; `accelerator` is the GPU by its own name."""
    deployment, hardware = work.deployment, work.settings.hardware
    if not elsewhere(deployment.backend, hardware):
        accelerator = hardware.accelerator or accelerator or hardware.name
    return Identity(
        trial_id=trial.trial_id,
        deployment_id=deployment.deployment_id,
        attempt=work.attempt,
        experiment=work.settings.name,
        label=_label(deployment, trial),
        backend=deployment.backend.name,
        model=deployment.model.name,
        workload=trial.workload.name,
        load=trial.load.name,
        **trial.load_columns(),
        replicate=trial.replicate,
        seed=trial.seed,
        price_per_hour=_price(deployment.backend, hardware),
        accelerator=accelerator,
        gpu_count=deployment.gpu_count,
        percentiles=percentiles_text(work.settings.percentiles),
        slo=slo_text(work.settings),
        config=config_text(trial.config),
        digests=None if deployment.unavailable else json.dumps({**deployment.content, **trial.content}),
        commit=provenance.commit(),
        started_at=provenance.now(),
    )


def unmeasured_row(
    work: Work,
    trial: Trial,
    outcome: Outcome,
    reason: str | None,
    log_tail: str | None = None,
    engine: EngineFacts | None = None,
) -> dict[str, Any]:
    """The row of a trial that ended before it was measured."""
    verdict = Verdict(outcome=outcome, reason=reason, log_tail=log_tail, ended_at=provenance.now())
    axes = coordinates(trial, work.axes)
    return TrialRow(identity=identity(work, trial), verdict=verdict, axes=axes, engine=engine).flat()


def _label(deployment: Deployment, trial: Trial) -> str:
    return f"{deployment.describe()} {trial.describe()}"


def _price(backend: Backend, hardware: Hardware) -> float | None:
    return None if elsewhere(backend, hardware) else hardware.price_per_hour


def coordinates(trial: Trial, axes: Iterable[str]) -> dict[str, Any]:
    """The columns of the experiment's axes. Config groups are not among them: they have columns of their own."""
    return {axis: trial.coordinates.get(axis) for axis in axes if axis not in POINT_GROUPS}


def slo_text(settings: Settings) -> str | None:
    """The bounds for goodput as a row has them; None without any."""
    return json.dumps(settings.slo, sort_keys=True) if settings.slo else None


def present_row(
    row: Mapping[str, Any], deployment: Deployment, trial: Trial, settings: Settings, axes: Iterable[str]
) -> dict[str, Any]:
    """A row as the present plan has it: what is not in a trial's id may be another now than when it was measured."""
    price = _price(deployment.backend, settings.hardware)
    cost = cost_per_million_tokens(price, row.get("gpu_count") or 0, row.get("output_throughput"))
    columns = {"experiment": settings.name, "price_per_hour": price, "cost_per_million_tokens": cost}
    return {**row, **columns, "label": _label(deployment, trial), **coordinates(trial, axes)}


def is_current(row: Mapping[str, Any], settings: Settings) -> bool:
    """Return whether a row has the percentiles and the bounds for goodput that are set now."""
    return row.get("percentiles") == percentiles_text(settings.percentiles) and row.get("slo") == slo_text(settings)


def recomputed_row(row: Mapping[str, Any], trial: Trial, settings: Settings, paths: RunPaths) -> dict[str, Any] | None:
    """The row of a result with what is set now, from its stamps on disk; None where they are gone."""
    try:
        records = run_files.read_requests(paths.trial(row["deployment_id"], row["attempt"], row["trial_id"]).requests)
    except (FileNotFoundError, run_files.DamagedFile):
        return None
    series = {name for name, statistic in columns(percentiles_of([row])).items() if statistic.quantity.per is not None}
    measured = summarise(
        records,
        slo=settings.slo or {},
        discard_first_batch=getattr(trial.load, "discard_first", False),
        window=Window(row.get("steady_begin"), row.get("steady_end"), row.get("steady_method", "")),
        percentiles=settings.percentiles,
    )
    present = {"percentiles": percentiles_text(settings.percentiles), "slo": slo_text(settings)}
    return {name: value for name, value in row.items() if name not in series} | measured | present


def run_trial(
    work: Work, running: RunningEngine, trial: Trial, stop: threading.Event, caches_reset: bool | None
) -> dict[str, Any]:
    """Measure one trial on a running engine, write its files and return its row.

    `caches_reset`, for the row: whether the engine has forgotten earlier prompts; None if it was not asked to.

    The row's outcome is `cancelled`, and nothing is written, when `stop` was set meanwhile.

    Raises:
        client.ClientDied: if the measuring process ended without its results.
    """
    engine = running.engine
    inputs = {"startup_seconds": engine.startup_seconds, "agreement": running.facts.get("agreement")}
    row = TrialRow(
        identity=identity(work, trial, _gpu_name(running.node)),
        verdict=Verdict(outcome=Outcome.CANCELLED, reason="stopped by the user"),
        axes=coordinates(trial, work.axes),
        engine=engine_facts(running, caches_reset),
        measured=figures(inputs),
    )
    try:
        warmup, requests = _build_requests(work, trial)
    except ValueError as error:  # these prompts cannot be built with this tokenizer: no fault of the engine's
        verdict = Verdict(outcome=Outcome.INVALID, reason=str(error), ended_at=provenance.now())
        return replace(row, verdict=verdict).flat()
    sampler = Sampler(_sources(engine), work.settings.telemetry_interval)
    idle = sum(value for _, value in memory_of(sampler.read_once())[1]) or None
    deadline = time.monotonic() + work.settings.trial_timeout
    logged = engine.log_position()
    began = time.monotonic()
    measure = engine_timed.measure if work.deployment.backend.timed_inside else measurement.measure
    with sampler, tempfile.TemporaryDirectory(prefix="sweep-trial-") as job:
        result = measure(
            _target(trial, engine),
            warmup,
            requests,
            trial.load.mode(len(requests), trial.seed),
            folder=Path(job),
            cpus=running.node.client_cpus,
            processes=work.settings.client.processes,
            timeouts=work.settings.client.timeouts,
            on_start=sampler.begin,
            should_stop=_reason_to_stop(engine, stop, deadline),
        )
    del warmup, requests  # of a long trial, hundreds of megabytes
    if stop.is_set():
        return row.flat()
    samples = sampler.samples(result.start_monotonic)
    inputs |= {
        "samples": samples,
        "idle_memory": idle,
        "client": result.report,
        "wall_seconds": time.monotonic() - began,
    }
    verdict = _verdict(work, trial, engine, result, time.monotonic() > deadline, logged)
    columns = replace(
        row,
        verdict=replace(verdict, ended_at=provenance.now()),
        observation=Observation(client_stamp_source=result.report.stamp_source, telemetry_sources=sampler.described),
        measured=_measured(work, trial, result.records, inputs),
    ).flat()
    files = work.paths.trial(work.deployment.deployment_id, work.attempt, trial.trial_id)
    run_files.write_requests(files, result.records)
    run_files.write_telemetry(files, samples)
    run_files.write_trial(files, columns)
    return columns


def engine_facts(running: RunningEngine, caches_reset: bool | None) -> EngineFacts:
    """The row's columns on the engine besides its figures."""
    facts, node = running.facts, running.node
    return EngineFacts(
        engine_version=facts.get("engine_version"),
        dtype=facts.get("dtype"),
        agreement_reference=facts.get("agreement_reference"),
        versions=json.dumps({**provenance.own_versions(), **node.environment.versions}),
        hardware=json.dumps({"node": node.name, **provenance.hardware()}),
        driver=provenance.driver(),
        engine_facts=json.dumps({key: facts[key] for key in facts if key != "versions"}, default=str),
        caches_reset=caches_reset,
        batch_form=running.engine.backend.batch_form,
    )


def _gpu_name(node: PreparedNode) -> str | None:
    """The GPU by the name that it gives itself."""
    names = provenance.gpu_names()
    return next((names[int(gpu)] for gpu in node.launch.gpus if gpu.isdigit() and int(gpu) < len(names)), None)


def _build_requests(work: Work, trial: Trial) -> tuple[list[Request], list[Request]]:
    """Warm-up requests and measured ones: other prompts, both built before the clock starts."""
    tokenizer = work.deployment.model.load_tokenizer(work.cache)
    workload, count = trial.workload, trial.num_requests
    requests = workload.requests(tokenizer, count, trial.seed)
    warm = trial.load.count(workload.warmup_requests) if workload.warmup_requests else 0
    warmup = workload.requests(tokenizer, warm, trial.seed + 1, phase="warmup")
    return warmup, requests


def _target(trial: Trial, engine: Engine) -> wire.Target:
    """Return what the client must know of the engine: what its backend says under the same names, and three more."""
    backend = engine.backend
    shared = {each.name for each in fields(wire.Target)} & set(Backend.model_fields) - {"url"}
    return wire.Target(
        url=engine.url,
        model=engine.launch.served_name,
        ignore_eos=trial.workload.ignore_eos and backend.ignores_eos,
        **{name: getattr(backend, name) for name in shared},
    )


def _sources(engine: Engine) -> list[Source]:
    """Return what is sampled beside the measurement."""
    backend, gpus = engine.backend, engine.launch.gpus
    sources: list[Source] = []
    if backend.metrics_path:
        sources.append(EngineMetrics(engine.url + backend.metrics_path, backend.metric_names, backend.verify_tls))
    if gpus:
        sources.append(Gpus(gpus))
    if backend.launches:
        sources.append(Processes(engine.processes))
    return sources


def _reason_to_stop(engine: Engine, stop: threading.Event, deadline: float) -> Callable[[], str | None]:
    def reason() -> str | None:
        if not engine.alive():
            return "the engine died"
        if time.monotonic() > deadline:
            return "trial_timeout"
        return "stopped by the user" if stop.is_set() else None

    return reason


def _measured(work: Work, trial: Trial, records: Records, inputs: Mapping[str, Any]) -> dict[str, Value]:
    """Every quantity of the trial."""
    discard_first, backend = getattr(trial.load, "discard_first", False), work.deployment.backend
    return summarise(
        records,
        slo=work.settings.slo or {},
        discard_first_batch=discard_first,
        window=steady_window(records, discard_first),
        percentiles=work.settings.percentiles,
        price_per_hour=_price(backend, work.settings.hardware),
        gpu_count=work.deployment.gpu_count,
        reserves_memory=backend.reserves_memory,
        **inputs,
    )


def _verdict(
    work: Work, trial: Trial, engine: Engine, result: measurement.Measurement, timed_out: bool, logged: int
) -> Verdict:
    """The outcome: the engine's death first, then time, then the requests, then the client.

    `logged` is how far the engine's log went before the trial: what it said of memory earlier is no part of this one.
    """
    log = engine.log_tail()
    if not engine.alive():
        outcome = Outcome.OOM_RUN if engine.ran_out_of_memory(since=logged) else Outcome.ENGINE_CRASHED
        return Verdict(outcome=outcome, reason=engine.exit_reason(), log_tail=log)
    if timed_out:
        return Verdict(outcome=Outcome.HUNG, reason=f"not done in {work.settings.trial_timeout} s", log_tail=log)
    missing = trial.num_requests - result.records.phase.count("measured")
    if missing > 0 and trial.load.duration is None:
        # Part of a trial is none, even if what was sent went well; a duration is the one reason to send less.
        stopped = result.report.stopped
        partial = Outcome.ENGINE_CRASHED if stopped else Outcome.INVALID
        unsent = f"{missing} of {trial.num_requests} requests were never sent; {stopped or 'the reason is unknown'}"
        return Verdict(outcome=partial, reason=unsent, log_tail=log)
    outcome, reason = validity.outcome_of(result.records, max_failed=work.settings.max_failed)
    if outcome is not Outcome.OK:
        if engine.ran_out_of_memory(since=logged):
            outcome = Outcome.OOM_RUN
        elif validity.only_timeouts(result.records):
            outcome = Outcome.HUNG
        return Verdict(outcome=outcome, reason=reason, log_tail=log)
    steps = result.report.clock_steps
    if steps and result.report.stamp_source in ("kernel", "mixed"):  # the client's own stamps are monotonic
        stepped = f"the host's clock was set ({steps} times): timestamps of the second before may be off by as much"
        return Verdict(outcome=Outcome.INVALID, reason=stepped)
    limited = validity.limited(result.report, result.records)
    if limited:
        return Verdict(outcome=Outcome.CLIENT_LIMITED, reason=limited)
    return Verdict(outcome=Outcome.OK)
