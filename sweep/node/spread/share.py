"""A partner's work: it launches its share of a launch's replicas and holds them until the leader is done."""

import random
import threading
import time
from collections.abc import Callable, Generator

from backends.launch import relay, server, task
from backends.launch.replicas import replica_launches
from sweep.base.exits import Cause, Exit
from sweep.base.records import Outcome
from sweep.base.time_factor import scaled
from sweep.drive import policy
from sweep.drive.policy import Failure
from sweep.node import deployment
from sweep.node.cold_start import measure_cold_start
from sweep.node.events import EngineEnd, Held, HeldEngine, Leased, PartnerEvent, State
from sweep.node.machine import lease
from sweep.node.machine.foreign_processes import ForeignGpu
from sweep.node.machine.sharing import sharing_name
from sweep.node.spread.partners import NodeShare
from sweep.node.telemetry import Gpus, Sampler
from sweep.node.work import PreparedNode, Work

EmitHeld = Callable[[PartnerEvent], None]
REPORT_EVERY = 1.0  # s
LEASE_WITHIN = scaled(60.0)  # s; two launches that hold a node each and wait for the other's must give up


def stream_share(
    work: Work, gpus: tuple[str, ...], share: NodeShare, stop: threading.Event, beat: float
) -> Generator[PartnerEvent, None, None]:
    """Launch a share and hold it until `stop` is set; yield a Held every second, and at last a Failure if it failed."""
    return deployment.streamed(work, beat, stop, lambda emit: _hold(work, gpus, share, emit))


def _hold(work: Work, gpus: tuple[str, ...], share: NodeShare, emit: EmitHeld) -> None:
    name, sharing = work.settings.name, sharing_name(work.settings.cluster)
    try:
        node = deployment.prepare_node(work, gpus, emit)
        until = time.monotonic() + LEASE_WITHIN * random.uniform(0.8, 1.2)
        with lease.leased(gpus, name, sharing, lambda text: emit(State(text)), lambda: time.monotonic() > until) as own:
            if own:
                emit(Leased())
                _launch(work, node, share, emit)
            reason = f"GPUs of node {share.address} are leased by another sweep"
            emit(Failure(Outcome.LAUNCH_FAILED, reason, Exit(Cause.LEASED)))
    except server.LaunchError as error:
        emit(Failure(error.outcome, error.reason, error.exit, error.log_tail))
    except deployment.PREPARATION_FAULTS as error:
        if isinstance(error, OSError) and error.errno in policy.DISK_FULL:
            raise
        failure = deployment.preparation_failure(error)
        exit = Exit(Cause.UNREACHABLE) if policy.is_waited_for(error) else failure.exit
        emit(failure._replace(reason=f"on node {share.address}: {failure.reason}", exit=exit))


def _launch(work: Work, node: PreparedNode, share: NodeShare, emit: EmitHeld) -> None:
    """Launch the engines and report on them until the task is stopped. Raises LaunchError."""
    backend, gpus = work.deployment.backend, node.launch.gpus
    deployment.wait_for_gpu_memory(node, emit)
    launches = replica_launches(node.launch, backend.replicas, share.replicas)
    marker = f"{work.marker}/from-{share.replicas[0] + 1}"
    with (
        server.running_together(backend, launches, marker=marker, versions=node.environment.versions) as engines,
        relay.relaying([engine.url for engine in engines], share.address, share.token) as urls,
    ):
        reports = [
            _Report(engine, url, measure_cold_start(engine, node.client_cpus, work.settings.stall_timeout))
            for engine, url in zip(engines, urls, strict=True)
        ]
        foreign = ForeignGpu(
            gpus, sharing_name(work.settings.cluster), lambda: [p for e in engines for p in e.processes()]
        )
        sampler = Sampler([Gpus(gpus, foreign)] if gpus else [], REPORT_EVERY)
        while True:
            readings = tuple((sample.series, sample.device, sample.value) for sample in sampler.read_once())
            emit(Held(tuple(report.now() for report in reports), readings))
            task.pause(REPORT_EVERY)


class _Report:
    """What is reported about an engine."""

    def __init__(self, engine: server.Engine, url: str, cold_ttft: float | None) -> None:
        self.engine = engine
        self.last = HeldEngine(url, engine.command, engine.startup_seconds, cold_ttft, engine.shows_on_gpus())
        self.searched = [engine.log_position()] * 2  # up to where the log was searched, in the last two reports

    def now(self) -> HeldEngine:
        engine, position, last = self.engine, self.engine.log_position(), self.last
        found = engine.ran_out_of_memory(self.searched[0])  # from the report before last: a message may be cut in two
        ended = last.ended
        if ended is None and not engine.alive():
            ended = EngineEnd(engine.exit_reason(), engine.exit(), engine.log_tail())
        self.searched = [self.searched[1], position]
        self.last = last._replace(
            log_position=position,
            log_left_out=engine.log_left_out(),
            out_of_memory_at=position if found else last.out_of_memory_at,
            ended=ended,
        )
        return self.last
