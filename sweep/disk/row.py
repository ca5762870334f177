"""The row of a trial: typed parts, and the one function that makes of them what is written down.

Beside the parts a row has the measured quantities (`sweep.numbers`) and the experiment's axes under their dotted keys.
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
    """The trial's identity. `load_columns` gives the size of the load: at most one of them has a value."""

    trial_id: str  # hash of everything that could change its result
    deployment_id: str  # id of the deployment: engine, model and settings, launched as one
    attempt: str  # number of the launch that measured it, a folder of the deployment
    experiment: str  # name of the experiment that it was measured for
    label: str  # settings that distinguish it from the other trials of its plan
    backend: str  # name of the engine's adapter
    model: str  # name of the model
    workload: str  # name of the prompts
    load: str  # name of their timing
    batch_size: int | None  # of a lockstep load
    concurrency: int | None  # users of a closed loop
    rate: float | None  # requested rate of an open loop
    replicate: int  # number of the repetition of its point, from 0
    seed: int  # of prompts and arrivals
    price_per_hour: float | None  # price of a GPU, else of the machine or endpoint; null: unknown, or by token
    accelerator: str | None  # the GPU that it ran on, or the hardware profile's name
    gpu_count: int  # GPUs of the deployment; 0 on a CPU
    replicas: int  # engines behind one URL
    percentiles: str  # of its series
    slo: str | None  # bounds of goodput, JSON
    config: str  # resolved, JSON
    settings: str  # settings of its run that can change a result, unless defaults, JSON
    digests: str | None  # digests of the config's files, and of the environment's lock, JSON
    commit: str | None  # commit of this program; with + if its files differed
    protocol: int  # version of the measuring rules: figures of different versions are not comparable
    started_at: str  # time of day, with its zone


@dataclass(frozen=True, kw_only=True)
class EngineFacts:
    """Facts that a launched engine reports, and where it ran."""

    launch: str | None  # id of the launch: its replicates share its luck
    engine_version: str | None  # as the engine states it
    dtype: str | None  # number format that the engine computes in
    coarser_format: str | None  # weights' or KV cache's format, coarser than the model's; null: none, or unknown
    agreement_reference: str | None  # the reference of its greedy tokens, or why there was no comparison
    quality_reference: str | None  # the same for its log-probabilities
    versions: str  # versions of this program and in the engine's environment, JSON
    hardware: str  # node, processor, memory and GPUs, JSON
    driver: str | None  # version of the node's NVIDIA driver
    engine_facts: str  # further facts of the engine, e.g. its command, JSON
    caches_reset: bool | None  # whether caches were reset before the trial; None: not requested
    prompt_salt: str | None  # made its prompts' headers new to any cache; None if caches were reset or empty
    batch_form: str | None  # form in which lockstep batches were sent; None before the first


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The result of the trial."""

    outcome: Outcome  # ok, or how it failed
    reason: str | None = None  # why it failed, in one line
    fault: Fault | None = field(init=False)  # of a failed trial: whose fault it was
    exit: Exit | None = None  # of a failed trial: the signal, status, check or tool's words that ended it, JSON
    log_tail: str | None = None  # last lines of the engine's log, after a failure
    ended_at: str | None = None  # time of day, with its zone

    def __post_init__(self) -> None:
        object.__setattr__(self, "fault", fault_of(self.outcome, self.exit or Exit()))


@dataclass(frozen=True)
class Observation:
    """The sources of the observation."""

    client_stamp_source: str  # who took the stamps: kernel, user (the client's clock), mixed, engine, a tool
    telemetry_sources: str  # sources of its telemetry
    foreign_processes: str  # the largest other processes, with the cores or the GPU memory that each took


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """A trial's row before it is flat."""

    identity: Identity
    verdict: Verdict
    axes: Mapping[str, Any] = field(default_factory=dict)
    engine: EngineFacts | None = None
    observation: Observation | None = None
    measured: Mapping[str, Value] = field(default_factory=dict)

    def flat(self) -> dict[str, Any]:
        """The columns with a value or a place in every such row, without secrets; without a result, no performance.

        What a user sets is refused where it looks like a secret; what engines and endpoints say is masked here.
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
    """The columns of every trials row and the types of their values, in order; axes follow."""
    measured = {column: statistic.type for column, statistic in columns(percentiles).items()}
    parts = {**_fields(EngineFacts), **_fields(Observation), "warnings": list, "in_plan": bool}
    return {**_fields(Identity), **_fields(Verdict), **measured, **parts}


def asked_columns() -> set[str]:
    """The columns that say what was run; the others, and what was measured, are what came of it."""
    return {*_fields(Identity), *_fields(EngineFacts)}


def performance_columns(percentiles: Iterable[float]) -> set[str]:
    """The columns that only a result has."""
    return {column for column, statistic in columns(percentiles).items() if statistic.quantity.kind in PERFORMANCE}


def latency_columns(percentiles: Iterable[float]) -> set[str]:
    """The columns that rest on a client's stamps."""
    return {column for column, statistic in columns(percentiles).items() if statistic.quantity.kind == "latency"}


def percentiles_text(percentiles: Sequence[float]) -> str:
    return ", ".join(f"{percentile:g}" for percentile in percentiles)


def percentiles_of(rows: Iterable[Mapping[str, Any]]) -> tuple[float, ...]:
    """The percentiles that any of the rows has, ascending."""
    return merged_percentiles({row.get("percentiles") for row in rows} or {percentiles_text(PERCENTILES)})


def merged_percentiles(texts: Iterable[str | None]) -> tuple[float, ...]:
    """Those of all rows with such texts in `percentiles`; None is of a row from before that was a setting."""
    sets = [OLD_PERCENTILES if text is None else tuple(map(float, text.split(", "))) for text in texts]
    return tuple(sorted({percentile for percentiles in sets for percentile in percentiles}))


@cache
def _fields(record: type) -> dict[str, type]:
    """The fields of a part with the types of their values, None aside."""
    return {field: _plain(hint) for field, hint in typing.get_type_hints(record).items()}


def _plain(hint: Any) -> type:
    if isinstance(hint, types.UnionType):
        hint = next(type_ for type_ in typing.get_args(hint) if type_ is not types.NoneType)
    return str if issubclass(hint, str | Exit) else hint  # an Outcome and an Exit are written as text
