"""The row of a trial: typed parts, and the function that turns them into the stored columns.

In addition, a row has the measured quantities (`sweep.numbers`) and the experiment's axes under dotted keys.
"""

import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

from sweep.base.config import PERCENTILES
from sweep.base.exits import Exit
from sweep.base.masking import masked_here
from sweep.base.records import Fault, Outcome
from sweep.drive.policy import fault_of
from sweep.numbers.quantity import OLD_PERCENTILES, PERFORMANCE, Value, columns
from sweep.numbers.warnings import warning_codes


@dataclass(frozen=True, kw_only=True)
class Identity:
    """The trial's identity. `load_columns` hold the size of the load; at most one of them is not null."""

    trial_id: str  # hash of everything that could change its result
    deployment_id: str  # id of the deployment: engine, model and settings, launched as one
    attempt: str  # number of the launch that measured it, and the name of its folder under the deployment's folder
    experiment: str  # name of the experiment that the trial was measured for
    label: str  # settings that distinguish it from the other trials of its plan
    backend: str  # name of the engine's adapter
    model: str  # name of the model
    workload: str  # name of the prompts
    load: str  # name of the load, i.e. of the timing of the requests
    batch_size: int | None  # requests of a lockstep batch; null for other loads
    concurrency: int | None  # users of a closed loop; null for other loads
    rate: float | None  # requested rate of an open loop; null for other loads
    replicate: int  # number of this repetition of the point, from 0
    seed: int  # random seed of prompts and arrivals
    price_per_hour: float | None  # price of a GPU, or of the machine or endpoint; null if unknown, or charged by token
    accelerator: str | None  # the GPU that the trial ran on, or the hardware profile's name
    gpu_count: int  # GPUs of the deployment; 0 on a CPU
    replicas: int  # engines behind one URL
    percentiles: str  # percentiles that are computed for its series
    slo: str | None  # limits that a request must meet for goodput, JSON
    config: str  # resolved configuration, JSON
    settings: str  # run settings that can change a result and differ from their defaults, JSON
    digests: str | None  # digests of the configuration's files and of the environment's lock, JSON
    commit: str | None  # commit of this program; with + if it had uncommitted changes
    protocol: int  # version of the measuring rules: results of different versions are not comparable
    started_at: str  # time of day, with its zone


@dataclass(frozen=True, kw_only=True)
class EngineFacts:
    """Facts that a launched engine reports, and the node where it ran."""

    launch: str | None  # id of the launch: replicates of one launch are not independent
    engine_version: str | None  # version that the engine reports
    dtype: str | None  # number format that the engine computes in
    coarser_format: str | None  # format of weights or KV cache, if coarser than the model's; null: equal, or unknown
    agreement_reference: str | None  # reference for the greedy tokens, or why there was no comparison
    quality_reference: str | None  # reference for the log-probabilities, or why there was no comparison
    versions: str  # versions of this program and of the packages in the engine's environment, JSON
    hardware: str  # node, processor, memory and GPUs, JSON
    driver: str | None  # version of the node's NVIDIA driver
    engine_facts: str  # further facts of the engine, e.g. its command, JSON
    caches_reset: bool | None  # whether caches were reset before the trial; None: not requested
    prompt_salt: str | None  # text that made the prompts' prefixes new to any cache; null if caches were reset or empty
    batch_form: str | None  # form in which lockstep batches were sent; null before the first batch


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The result of the trial."""

    outcome: Outcome  # ok, or how it failed
    reason: str | None = None  # why it failed, in one line
    fault: Fault | None = field(init=False)  # whose fault a failed trial was
    exit: Exit | None = None  # cause of a failed trial's end: a signal, a status, a check or a tool's message, JSON
    log_tail: str | None = None  # last lines of the engine's log, after a failure
    ended_at: str | None = None  # time of day, with its zone
    earlier_attempts: int | None = None  # earlier attempts at its endpoint in which too many requests failed
    earlier_failed: int | None = None  # requests that failed in these attempts
    earlier_reasons: str | None = None  # why these requests failed

    def __post_init__(self) -> None:
        object.__setattr__(self, "fault", fault_of(self.outcome, self.exit or Exit()))


@dataclass(frozen=True)
class Observation:
    """The sources of the measurements."""

    client_stamp_source: str  # who took the stamps: kernel, user (the client's clock), mixed, engine, a tool
    telemetry_sources: str  # sources of the telemetry
    foreign_processes: str  # the largest other processes, with the cores or the GPU memory that each used
    log_left_out: int | None = None  # bytes omitted from the middle of the engines' logs; null: none


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """A trial's row before it is flattened."""

    identity: Identity
    verdict: Verdict
    axes: Mapping[str, Any] = field(default_factory=dict)
    engine: EngineFacts | None = None
    observation: Observation | None = None
    measured: Mapping[str, Value] = field(default_factory=dict)

    def flat(self) -> dict[str, Any]:
        """Return the columns without secrets. Columns of missing parts are absent; if there is no result, performance
        columns are null.

        Users' settings that look like secrets were rejected earlier; secrets in engines' texts are masked here.
        """
        parts = [asdict(facts) for facts in (self.verdict, self.engine, self.observation) if facts is not None]
        texts = {column: cell for facts in parts for column, cell in facts.items()}
        failed, exit = self.verdict.fault, self.verdict.exit
        texts |= {"outcome": self.verdict.outcome.value, "fault": failed and failed.value}
        texts["exit"] = exit.stored() if failed and exit else None
        row = asdict(self.identity)
        row |= {column: masked_here(cell) if isinstance(cell, str) else cell for column, cell in texts.items()}
        measured = dict(self.measured)
        if self.verdict.outcome is not Outcome.OK:
            measured |= dict.fromkeys(performance_columns(percentiles_of([row])) & measured.keys())
        row |= measured
        warnings = {"warnings": warning_codes(row)} if self.verdict.outcome is Outcome.OK else {}
        return row | warnings | dict(self.axes)


def schema(percentiles: Iterable[float] = PERCENTILES) -> dict[str, type]:
    """Return every trials row's columns in order, with their values' types. Axes follow."""
    measured = {column: statistic.type for column, statistic in columns(percentiles).items()}
    parts = {**_fields(EngineFacts), **_fields(Observation), "warnings": list, "in_plan": bool}
    return {**_fields(Identity), **_fields(Verdict), **measured, **parts}


def asked_columns() -> set[str]:
    """Return the columns that describe the request for the trial; all other columns describe its outcome."""
    return {*_fields(Identity), *_fields(EngineFacts)}


def performance_columns(percentiles: Iterable[float]) -> set[str]:
    """Return the columns that only a successful trial has."""
    return {column for column, statistic in columns(percentiles).items() if statistic.quantity.kind in PERFORMANCE}


def latency_columns(percentiles: Iterable[float]) -> set[str]:
    """Return the columns that are computed from a client's stamps."""
    return {column for column, statistic in columns(percentiles).items() if statistic.quantity.kind == "latency"}


def percentiles_text(percentiles: Sequence[float]) -> str:
    return ", ".join(f"{percentile:g}" for percentile in percentiles)


def percentiles_of(rows: Iterable[Mapping[str, Any]]) -> tuple[float, ...]:
    """Return every percentile that any of the rows has, in ascending order."""
    return merged_percentiles({row.get("percentiles") for row in rows} or {percentiles_text(PERCENTILES)})


def merged_percentiles(texts: Iterable[str | None]) -> tuple[float, ...]:
    """Return all percentiles in these `percentiles` cells; None is from a version without the setting."""
    sets = [OLD_PERCENTILES if text is None else tuple(map(float, text.split(", "))) for text in texts]
    return tuple(sorted({percentile for percentiles in sets for percentile in percentiles}))


@cache
def _fields(record: type) -> dict[str, type]:
    return {field: _plain(hint) for field, hint in typing.get_type_hints(record).items()}


def _plain(hint: Any) -> type:
    if isinstance(hint, types.UnionType):
        hint = next(type_ for type_ in typing.get_args(hint) if type_ is not types.NoneType)
    return str if issubclass(hint, str | Exit) else hint  # an Outcome and an Exit are stored as text
