"""Connects a search with trials: the search for a plan's point, and the result of a probe that ran as a trial."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from sweep.base.config import ConfigError, Settings, split_bound
from sweep.disk.tables import read_table
from sweep.inputs.workload import Draw
from sweep.plan.plan import Trial
from sweep.search.capacity import Capacity, CapacityQuestion, LatencyBound, Probe, ProbeResult
from sweep.search.twin import UNLIMITED, Integers, Limits, Replay
from sweep.search.users import UserCapacity

WARM_UP = 4  # requests
STAMPS = ["scheduled", "sent", "ended", "ttft", "tpot", "e2el"]
LENGTH_COLUMNS = ["input_tokens", "output_tokens", "asked_input_tokens", "asked_output_tokens"]

MOST_RUNNING = "max-num-seqs", "max-running-requests", "max-batch-size"  # flags; or a backend's own key:
RUNNING_KEYS = "slots", "max_concurrency"
MOST_STEP_TOKENS = "max-num-batched-tokens", "chunked-prefill-size", "max-num-tokens"


def limits_of(backend: Any, platform: Any) -> Limits:
    """Return the limits that an engine's flags set, of all replicas together; those of an endpoint are unknown."""
    if not backend.launches:
        return Limits()
    flags = {name.replace("_", "-"): setting for name, setting in backend.flags_for(platform).items()}
    running = [flags.get(name) for name in MOST_RUNNING] + [getattr(backend, key, None) for key in RUNNING_KEYS]
    step_tokens = [flags.get(name) for name in MOST_STEP_TOKENS]
    sequences, tokens = (
        next((each for each in found if isinstance(each, int) and each > 0), 0) for found in (running, step_tokens)
    )
    return Limits(sequences * backend.replicas or UNLIMITED, step_tokens=tokens or Limits().step_tokens)


def proposer_of(trial: Trial, settings: Settings, backend: Any) -> Capacity | UserCapacity:
    """Return the search for a trial's point. Raises ConfigError if it has no bounds, or a load that cannot vary."""
    search = settings.capacity
    assert search is not None
    if not settings.slo:
        raise ConfigError("slo=null: expected the bounds that define the capacity, e.g. slo=ttft=200ms,tpot=50ms")
    closed = trial.load.name == "closed"
    if not closed and (not trial.load.open_loop or getattr(trial.load, "rate", None) is None):
        raise ConfigError(f"load={trial.load.name}: expected closed, or a load with a rate, e.g. poisson, for a search")
    if getattr(trial.load, "duration", None) is not None:
        raise ConfigError(f"load.duration={trial.load.duration:g}: expected null; a search decides how long a probe is")
    percentiles = ", ".join(f"p{percentile:g}" for percentile in settings.percentiles)
    for name in settings.slo:
        if split_bound(name)[1] not in (None, *settings.percentiles):
            raise ConfigError(f"slo={name}: expected one of {percentiles}; percentiles=[...] sets them")
    bounds = [_bound(name, limit) for name, limit in settings.slo.items()]
    workload = trial.workload

    def lengths(count: int, seed: int) -> tuple[Integers, Integers]:
        inputs, outputs = np.array(workload.lengths(Draw(seed, "measured", count)), np.int64).T
        return inputs, outputs

    drawn = lengths if hasattr(workload, "lengths") else None
    if drawn and any(bound.quantity == "tpot" for bound in bounds) and drawn(1000, 0)[1].max() < 2:
        raise ConfigError("workload.output_tokens=1: a request of one token has no tpot; expected at least 2")
    if closed:
        return UserCapacity(bounds, search.budget)
    load = trial.load.model_copy(update={"rate": 1.0})
    flags = limits_of(backend, settings.hardware.platform)
    return Capacity(CapacityQuestion(bounds, load.arrivals, drawn, flags=flags, budget=search.budget))


def _bound(name: str, limit: float) -> LatencyBound:
    latency, percentile = split_bound(name)
    return LatencyBound(latency, limit) if percentile is None else LatencyBound(latency, limit, percentile / 100)


def read_probe(probe: Probe, requests: Path) -> ProbeResult:
    """Return what a trial measured, from its requests.parquet; a failed request is slower than any bound."""
    table = read_table(requests, ["phase", "error", *STAMPS, *LENGTH_COLUMNS])
    table = table.filter(np.array(table["phase"].to_pylist()) == "measured")
    table = table.sort_by("sent" if probe.users else "scheduled")
    failed = np.array([error is not None for error in table["error"].to_pylist()])
    stamps = {name: table[name].fill_null(np.nan).to_numpy() for name in STAMPS}
    arrivals = stamps["sent" if probe.users else "scheduled"]
    start = float(arrivals[0])
    inputs, outputs = (pc.coalesce(table[name], table[f"asked_{name}"], 1).to_numpy() for name in LENGTH_COLUMNS[:2])
    between = (stamps["e2el"] - stamps["ttft"]) / np.maximum(outputs - 1, 1)  # for answers that arrived in one piece
    stamps["tpot"] = np.where(np.isnan(stamps["tpot"]), between, stamps["tpot"])
    latencies = {name: np.where(failed, np.inf, stamps[name]) for name in ("ttft", "tpot", "e2el")}
    run = Replay(arrivals - start, inputs, outputs, **latencies, users=probe.users)
    return ProbeResult(probe, run, float(np.nanmax(stamps["ended"])) - start)
