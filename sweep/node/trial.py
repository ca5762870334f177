"""One trial: sends a workload to an engine under a load, and records the results.

The client process measures (`client`). This module builds requests before the clock starts, runs the telemetry, and
writes the files. A trial's folder is complete when its trial.parquet exists.
"""

import math
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from backends.launch.server import Engine
from sweep.base import code_version
from sweep.base.exits import Blame, Cause, Exit, exit_of
from sweep.base.records import UNKNOWN, Outcome, Request, Sample, TrialProgress
from sweep.base.wording import duration_text
from sweep.client import measurement, wire
from sweep.disk import run_files
from sweep.disk.row import EngineFacts, Observation, TrialRow, Verdict
from sweep.gateway.served import served_equal
from sweep.inputs.sessions.prefix_hits import shared_prefix_share
from sweep.node import engine_timed
from sweep.node.machine.foreign_processes import Foreign, ForeignCpu, ForeignGpu
from sweep.node.machine.limits import CpuLimits
from sweep.node.machine.quiet import not_quiet, or_disturbed
from sweep.node.machine.sharing import sharing_name
from sweep.node.replay.certificate import or_uncertified, replay_inputs
from sweep.node.rows import coordinates, engine_facts, gpu_name, identity, trial_quantities
from sweep.node.spread.partners import RemoteEngine
from sweep.node.telemetry import EngineMetrics, Gpus, Processes, Sampler, Source
from sweep.node.verdict import ALL_FAILED, OVERLOADED, TIMED_OUT, has_fixed_length, judge, not_honoured
from sweep.node.work import RunningEngine, Work
from sweep.numbers.quantities.client import ANSWERS
from sweep.numbers.quantities.gateway import mark_gateway_answers
from sweep.numbers.quantities.memory import memory_of
from sweep.numbers.summarise import figures
from sweep.plan.plan import Trial

FIRST_FEW = 8  # failed requests, without a success, after which a trial may end early


def run_trial(
    work: Work,
    running: RunningEngine,
    trial: Trial,
    stop: threading.Event,
    *,
    caches_reset: bool | None = None,
    salt: str | None = None,
    notify: Callable[[str], None] = lambda message: None,
    on_progress: Callable[[TrialProgress], None] = lambda progress: None,
    is_hopeless: Callable[[TrialProgress], bool] = lambda progress: False,
) -> dict[str, Any]:
    """Measure one trial on a running engine, write its files and return its row.

    `caches_reset`, for the row: whether the engine's prompt cache was flushed; None if no flush was requested. `salt`
    changes the prompts' prefixes, for an engine whose cache may hold earlier prompts. `notify` gets messages to show
    during the trial, `on_progress` the progress of its requests. Once `is_hopeless` is true of it, the trial ends: its
    load is too high.

    If `stop` is set during the trial, the row's outcome is `cancelled` and nothing is written.

    Raises client.ClientDied if the measuring process ended without its results.
    """
    salt = salt if trial.workload.unique_header or trial.workload.replays else None
    inputs: dict[str, Any] = {name: running.facts.get(name) for name in ("cold_ttft", *ANSWERS)}
    inputs["startup_seconds"] = max(engine.startup_seconds for engine in running.engines)
    facts = engine_facts(running, caches_reset, salt)
    row = _cancelled(work, trial, running, facts, inputs)  # until there is another verdict
    if below := running.facts.get("below_gate"):  # not measured, since its answers differ from the model's
        return _unmeasured(row, Outcome.INVALID, below, Exit(Cause.BELOW_GATE))
    try:
        prompts = _build_requests(work, trial, salt or "")
    except ValueError as error:  # the tokenizer cannot make these prompts, which is not the engine's fault
        return _unmeasured(row, Outcome.INVALID, str(error), Exit(Cause.PROMPTS, words=exit_of(error).cause))
    if not trial.workload.unique_header and not trial.workload.replays:
        inputs["shared_prefix_share"] = shared_prefix_share(str(each.prompt) for part in prompts for each in part)
    if reason := _not_quiet(work, running, stop, notify):
        return _unmeasured(row, Outcome.DISTURBED, reason, Exit())
    watch = _watch(work, running)  # from now on: without processes that ended during the wait
    crowd = _Crowd(is_hopeless, on_progress, work.settings.max_failed)
    should_stop = _reason_to_stop(running, stop, work.settings.trial_timeout or math.inf, crowd)
    try:
        result = _measure(work, running, trial, prompts, watch.sampler, should_stop, notify, crowd.take)
    except measurement.TooFewFiles as error:
        return _unmeasured(row, Outcome.UNAVAILABLE, str(error), Exit(blames=Blame.USER))
    if stop.is_set():
        return row.flat()
    inputs |= _gateway_inputs(work, running, trial, prompts[1], ended=result.report.stopped is None)
    mark_gateway_answers(result.records, inputs.get("decisions") or ())
    inputs |= replay_inputs(work, trial, prompts[1], result.records, salt or "", running.facts)
    del prompts  # frees hundreds of megabytes after a long trial
    inputs |= watch.inputs(result)
    row = replace(row, engine=replace(facts, batch_form=result.report.batch_form))
    columns = _judged(work, running, trial, row, result, watch, inputs).flat()
    _write(work, trial, columns, result, inputs["samples"])
    return columns


class _Watch(NamedTuple):
    """What is watched on the node while a trial is measured."""

    foreign: Foreign
    sampler: Sampler
    idle_memory: float | None  # bytes, before the first request
    logged: dict[Path, int]  # by engine log: its length at the beginning
    began: float

    def inputs(self, result: measurement.Measurement) -> dict[str, Any]:
        """Return what was observed during the measurement, as inputs of the quantities."""
        samples = self.sampler.samples(result.start_monotonic)
        seconds = time.monotonic() - self.began
        return {"samples": samples, "idle_memory": self.idle_memory, "client": result.report, "wall_seconds": seconds}


def _watch(work: Work, running: RunningEngine) -> _Watch:
    foreign = _foreign(work, running)
    sampler = Sampler(_sources(running, foreign), work.settings.telemetry_interval)
    idle = sum(value for _, value in memory_of(sampler.read_once())[1]) or None
    return _Watch(foreign, sampler, idle, {each.log: each.log_position() for each in running.engines}, time.monotonic())


def _judged(
    work: Work,
    running: RunningEngine,
    trial: Trial,
    row: TrialRow,
    result: measurement.Measurement,
    watch: _Watch,
    inputs: dict[str, Any],
) -> TrialRow:
    """Return the row with the trial's quantities, what was observed beside it, and the verdict on both."""
    measured = trial_quantities(work, trial, result.records, inputs)
    left_out = sum(engine.log_left_out() for engine in running.engines) or None
    stamp_source, described = result.report.stamp_source, watch.sampler.described
    observation = Observation(stamp_source, described, watch.foreign.describe(), left_out)
    verdict = judge(work, trial, running, result, watch.logged)
    verdict = or_disturbed(verdict, work.settings.quiet, measured, observation.foreign_processes)
    verdict = replace(or_uncertified(verdict, trial, measured, inputs), ended_at=code_version.now())
    return replace(row, verdict=verdict, observation=observation, measured=measured)


def _cancelled(
    work: Work, trial: Trial, running: RunningEngine, facts: EngineFacts, inputs: Mapping[str, Any]
) -> TrialRow:
    """Return the row of a trial that the user stopped."""
    return TrialRow(
        identity=identity(work, trial, gpu_name(running.node)),
        verdict=Verdict(outcome=Outcome.CANCELLED, reason="stopped by the user"),
        axes=coordinates(trial, work.axes),
        engine=facts,
        measured=figures(inputs),
    )


def _unmeasured(row: TrialRow, outcome: Outcome, reason: str, exit: Exit) -> dict[str, Any]:
    """Return the row of a trial that is not measured, for this reason."""
    return replace(row, verdict=Verdict(outcome=outcome, reason=reason, exit=exit, ended_at=code_version.now())).flat()


def _write(
    work: Work, trial: Trial, columns: dict[str, Any], result: measurement.Measurement, samples: list[Sample]
) -> None:
    """Write the trial's files; trial.parquet, which makes the folder complete, is written last."""
    files = work.paths.trial(work.deployment.deployment_id, work.attempt, trial.trial_id)
    run_files.write_requests(files, result.records)
    run_files.write_telemetry(files, samples)
    run_files.write_trial(files, columns)


def _measure(
    work: Work,
    running: RunningEngine,
    trial: Trial,
    prompts: tuple[list[Request], list[Request]],
    sampler: Sampler,
    should_stop: Callable[[], str | None],
    notify: Callable[[str], None],
    on_progress: Callable[[TrialProgress], None],
) -> measurement.Measurement:
    """Send the warm-up and the measured requests while the sampler runs; the job's folder is then removed."""
    warmup, requests = prompts

    def on_warm(warm_up: measurement.WarmUp) -> None:
        reason = not_honoured(warm_up.answers, warm_up.output_tokens, warm_up.asked_output_tokens)
        if has_fixed_length(work, trial) and reason:
            notify(f"warm-up: {reason}")
        if running.gateway is not None:
            running.gateway.reset()  # the cache must not answer measured requests with the warm-up's answers

    starts = [number for number, request in enumerate(requests) if request.parent == UNKNOWN]
    measure = engine_timed.measure if work.deployment.backend.traits.timed_inside else measurement.measure
    with sampler, tempfile.TemporaryDirectory(prefix="sweep-trial-") as job:
        return measure(
            target(running.engine, trial.workload.ignore_eos, running.url, trial.workload.temperature),
            warmup,
            requests,
            trial.load.mode(len(requests), trial.seed, starts),
            folder=Path(job),
            cpus=running.node.client_cpus,
            processes=work.settings.client.processes,
            timeouts=work.settings.client.timeouts,
            stall_timeout=work.settings.stall_timeout,
            on_start=sampler.begin,
            on_warm=on_warm,
            on_progress=on_progress,
            should_stop=should_stop,
            count_tokens=_count_tokens(work),
        )


def _gateway_inputs(
    work: Work, running: RunningEngine, trial: Trial, requests: list[Request], ended: bool
) -> dict[str, Any]:
    """Return the gateway's effect on the measured requests, as inputs of the quantities; empty if there is no gateway.

    Requests left unsent at the end of the load's duration are excluded. Unless the trial ended by itself, the engine is
    no longer queried: it is dead, or would delay each comparison.
    """
    if running.gateway is None:
        return {}
    report = running.gateway.report()
    requests = [request for request in requests if request.request_id in report.decisions]
    meanings = trial.workload.fetched(work.cache).meanings()
    own = target(running.engine, trial.workload.ignore_eos)
    tokenizer = work.deployment.model.load_tokenizer(work.cache)
    return {
        "decisions": [report.decisions[request.request_id] for request in requests],
        "meanings": {each.request_id: meanings[str(each.prompt)] for each in requests if each.prompt in meanings},
        "loop_lag": report.loop_lag_p99,
        "served_equal": served_equal(report.decisions, requests, own, running.url, tokenizer) if ended else None,
    }


def _build_requests(work: Work, trial: Trial, salt: str) -> tuple[list[Request], list[Request]]:
    """Return warm-up and measured requests with different prompts, both built before the clock starts."""
    tokenizer = work.deployment.model.load_tokenizer(work.cache)
    workload, count = trial.workload.fetched(work.cache), trial.num_requests
    requests = workload.requests(tokenizer, count, trial.seed, salt=salt)
    warm = trial.load.warmup(workload.warmup_requests)
    warmup = workload.requests(tokenizer, warm, trial.seed + 1, phase="warmup", salt=salt)
    return warmup + workload.priming(tokenizer, count, trial.seed, salt), requests


def _count_tokens(work: Work) -> measurement.CountTokens | None:
    """Return a function that counts answers' tokens with the model's tokenizer; None if the tokenizer is unknown."""
    tokenizer = work.deployment.model.load_tokenizer(work.cache)
    if tokenizer is None:
        return None
    return lambda texts: [len(e.ids) for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def target(engine: Engine, ignore_eos: bool, url: str | None = None, temperature: float = 0) -> wire.Target:
    """Return the client's Target: the backend's fields of the same names, completed for this trial.

    `url` is the address of a gateway in front of the engine. With ignore_eos, answers include special tokens as text,
    so that the client's count includes them.
    """
    backend = engine.backend
    shared = {each.name for each in fields(wire.Target)} & set(type(backend).model_fields) - {"url", "extra_body"}
    own = {name: getattr(backend, name) for name in shared}
    direct = url in (None, engine.url)
    return wire.Target(
        url=backend.url or engine.url if direct else str(url),
        model=engine.launch.served_name,
        temperature=temperature,
        ignore_eos=ignore_eos and backend.ignores_eos,
        extra_body={**(backend.wire.show_special if ignore_eos else {}), **backend.extra_body},
        **(own if direct else {**own, "path": None}),  # a gateway has its own paths
    )


def _foreign(work: Work, running: RunningEngine) -> Foreign:
    """Return watchers for other processes: on the engine's cores (if the client has separate ones), and on its GPUs."""
    gpus = [gpu for engine in running.engines for gpu in engine.launch.gpus]
    sharing = sharing_name(work.settings.cluster)
    cores = _cores(running) if work.deployment.backend.launches else set()
    apart = cores and not cores & running.node.client_cpus and running.processes_known()
    return Foreign(
        ForeignCpu(cores, sharing, running.processes) if apart else None,
        ForeignGpu(gpus, sharing, running.processes) if gpus else None,
    )


def _cores(running: RunningEngine) -> set[int]:
    return {core for engine in running.engines for core in engine.launch.cpus}


def _not_quiet(work: Work, running: RunningEngine, stop: threading.Event, notify: Callable[[str], None]) -> str | None:
    """Return why this node is still not quiet after the wait; None if no quiet node was requested."""
    if work.settings.quiet is None:
        return None
    cores = _cores(running) | running.node.client_cpus
    sharing, known = sharing_name(work.settings.cluster), running.processes_known()
    if not known:
        notify("quiet.foreign_cpu cannot be checked, since the engine's container runs as another user")
    everywhere = ForeignCpu(cores, sharing, running.processes) if known else None
    return not_quiet(work.settings.quiet, Foreign(everywhere, _foreign(work, running).gpu), stop, notify)


def _sources(running: RunningEngine, foreign: Foreign) -> list[Source]:
    """Return the sources that are sampled during the measurement."""
    engines = running.engines
    backend, proxy = engines[0].backend, engines[0].proxy
    gpus = [gpu for engine in engines for gpu in engine.launch.gpus]
    sources: list[Source] = []
    if backend.metrics_path:
        pages = [engine.url + backend.metrics_path for engine in engines]
        names, headers = backend.metric_names, engines[-1].headers  # of a replica on another node, if there is one
        sources.append(EngineMetrics(pages, names, backend.verify_tls, proxy and proxy.url, headers))
    if gpus:
        partners = {engine.partner for engine in engines if isinstance(engine, RemoteEngine)}
        sources.append(Gpus(gpus, foreign.gpu, partners))
    if backend.launches:
        if running.processes_known():  # else this would be the container client's process
            sources.append(Processes(running.engine_processes, foreign.cpu))
        sources.append(CpuLimits([core for engine in engines for core in engine.launch.cpus]))
    return sources


@dataclass
class _Crowd:
    """Watches the requests: the trial ends if too many are in flight, or if too many failed and none succeeded."""

    is_hopeless: Callable[[TrialProgress], bool]
    report: Callable[[TrialProgress], None]
    max_failed: float
    problem: str = ""  # why the trial ends

    def take(self, progress: TrialProgress) -> None:
        unsent = f"{progress.total - progress.sent:,} of {progress.total:,} were not sent"
        if self.is_hopeless(progress):
            in_flight = f"{progress.in_flight:,} requests in flight after {duration_text(progress.seconds)}"
            self.problem = f"{OVERLOADED}: {in_flight}; {unsent}"
        elif progress.done == progress.failed > max(FIRST_FEW, self.max_failed * progress.total):
            self.problem = f"{ALL_FAILED}; {unsent}"
        self.report(progress)


def _reason_to_stop(
    running: RunningEngine, stop: threading.Event, timeout: float, crowd: _Crowd
) -> Callable[[], str | None]:
    deadline = time.monotonic() + timeout

    def reason() -> str | None:
        if not running.alive():
            if running.gateway is not None and not running.gateway.alive():
                return "the gateway died"
            return "the engine died" if running.engine.backend.launches else "the endpoint refuses connections"
        if time.monotonic() > deadline:
            return TIMED_OUT
        return "stopped by the user" if stop.is_set() else crowd.problem or None

    return reason
