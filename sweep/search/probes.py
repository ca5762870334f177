"""Connects searches with trials: makes the search for a plan's point, and reads a probe's result from its trial."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from sweep.base.config import ConfigError, Settings, split_bound
from sweep.disk.tables import read_table
from sweep.inputs.workload import Draw
from sweep.plan.plan import Trial
from sweep.search.capacity import ANSWERED, Capacity, CapacityQuestion, LatencyBound, Probe, ProbeResult
from sweep.search.twin import UNLIMITED, Floats, Integers, Limits, Replay
from sweep.search.users import UserCapacity

WARM_UP = 4  # requests
CANCELLED = "cancelled: "  # beginning of the error of requests that a trial's early end cut off
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
        next((limit for limit in typed if isinstance(limit, int) and limit > 0), 0) for typed in (running, step_tokens)
    )
    step_tokens_of_each = tokens or Limits().step_tokens
    return Limits(sequences * backend.replicas or UNLIMITED, step_tokens=step_tokens_of_each * backend.replicas)


def check_point(trial: Trial, settings: Settings) -> None:
    """Raise ConfigError if a trial's point has no bounds, or a load that cannot vary."""
    if not settings.slo:
        raise ConfigError("slo=null: expected the bounds that define the capacity, e.g. slo=ttft=200ms,tpot=50ms")
    closed, recorded = trial.load.name == "closed", hasattr(trial.load, "at_rate")
    if not closed and not recorded and (not trial.load.open_loop or getattr(trial.load, "rate", None) is None):
        expected = "expected closed, trace, or a load with a rate, e.g. poisson, for a search"
        raise ConfigError(f"load={trial.load.name}: {expected}")
    count = trial.workload.num_requests
    if not closed and len(trial.workload.starts(count)) < count:
        problem = "its sessions have turns that follow each other"
        raise ConfigError(f"workload={trial.workload.name}: {problem}; expected load=closed, for a capacity search")
    if getattr(trial.load, "duration", None) is not None:
        raise ConfigError(f"load.duration={trial.load.duration:g}: expected null; a search decides how long a probe is")
    percentiles = ", ".join(f"p{percentile:g}" for percentile in settings.percentiles)
    for name in settings.slo:
        if split_bound(name)[1] not in (None, *settings.percentiles):
            raise ConfigError(f"slo={name}: expected one of {percentiles}; percentiles=[...] sets them")
    drawn = _lengths(trial.workload)
    if drawn and any(split_bound(name)[0] == "tpot" for name in settings.slo) and drawn(1000, 0)[1].max() < 2:
        raise ConfigError("workload.output_tokens=1: a request of one token has no tpot; expected at least 2")


def proposer_of(trial: Trial, settings: Settings, backend: Any) -> Capacity | UserCapacity:
    """Return the search for the point of a trial that `check_point` accepts."""
    search = settings.capacity
    assert search is not None
    assert settings.slo
    bounds = [_bound(name, limit) for name, limit in settings.slo.items()]
    if search.max_failed is not None:
        bounds.append(LatencyBound("e2el", ANSWERED, 1 - search.max_failed))
    if trial.load.name == "closed":
        return UserCapacity(bounds, search.budget)
    recorded, drawn = hasattr(trial.load, "at_rate"), _lengths(trial.workload)
    flags = limits_of(backend, settings.hardware.platform)
    load = trial.load.at_rate(1.0, 1) if recorded else trial.load.model_copy(update={"rate": 1.0})
    arrivals = _repeated_arrivals(load.times()) if recorded else load.arrivals
    return Capacity(CapacityQuestion(bounds, arrivals, drawn, flags=flags, budget=search.budget))


def _repeated_arrivals(times: Floats) -> Callable[[int, int], Floats]:
    """Return the arrivals of a trace, repeated, whose `times` are one second apart on average."""

    def arrivals(count: int, seed: int) -> Floats:
        repetitions = np.arange(-(-count // len(times)))[:, None] * len(times)
        return np.asarray((repetitions + times).ravel()[:count])

    return arrivals


def _lengths(workload: Any) -> Callable[[int, int], tuple[Integers, Integers]] | None:
    """Return a function that draws the lengths of a workload's requests; None if only its prompts have them."""

    def lengths(count: int, seed: int) -> tuple[Integers, Integers]:
        inputs, outputs = np.array(workload.lengths(Draw(seed, "measured", count)), np.int64).T
        return inputs, outputs

    return lengths if hasattr(workload, "lengths") and not workload.replays else None


def mean_lengths(trial: Trial) -> tuple[float, float]:
    """Return the mean input and output tokens of a trial's requests; nan if only its prompts have them."""
    drawn = _lengths(trial.workload)
    inputs, outputs = drawn(1000, 0) if drawn else (np.array([math.nan]),) * 2
    return float(inputs.mean()), float(outputs.mean())


def _bound(name: str, limit: float) -> LatencyBound:
    latency, percentile = split_bound(name)
    return LatencyBound(latency, limit) if percentile is None else LatencyBound(latency, limit, percentile / 100)


def read_probe(probe: Probe, requests: Path, longest: float) -> ProbeResult:
    """Return what a trial measured, from its requests.parquet; a failed request is slower than any bound.

    Of a trial that was ended early, only requests count that had more than `longest` s, the longest bound.
    """
    table = read_table(requests, ["phase", "error", *STAMPS, *LENGTH_COLUMNS])
    table = table.filter(np.array(table["phase"].to_pylist()) == "measured")
    table = table.sort_by("sent" if probe.users else "scheduled")
    cancelled = np.array([(error or "").startswith(CANCELLED) for error in table["error"].to_pylist()])
    if cancelled.any():
        had_time = pc.less(table["scheduled"], pc.subtract(pc.max(table["ended"]), longest)).fill_null(False)
        table, cancelled = table.filter(had_time), cancelled[had_time.to_numpy(zero_copy_only=False)]
    failed = np.array([error is not None for error in table["error"].to_pylist()])
    stamps = {name: table[name].fill_null(np.nan).to_numpy() for name in STAMPS}
    arrivals = stamps["sent" if probe.users else "scheduled"]
    start = float(arrivals[0])
    inputs, outputs = (pc.coalesce(table[name], table[f"asked_{name}"], 1).to_numpy() for name in LENGTH_COLUMNS[:2])
    between = (stamps["e2el"] - stamps["ttft"]) / np.maximum(outputs - 1, 1)  # for answers that arrived in one piece
    stamps["tpot"] = np.where(np.isnan(stamps["tpot"]), between, stamps["tpot"])
    latencies = {name: np.where(failed, np.inf, stamps[name]) for name in ("ttft", "tpot", "e2el")}
    latencies["ttft"] = np.where(cancelled & np.isfinite(stamps["ttft"]), stamps["ttft"], latencies["ttft"])
    latencies["tpot"] = np.where(cancelled, np.nan, latencies["tpot"])  # of an answer that was not awaited
    run = Replay(arrivals - start, inputs, outputs, **latencies, users=probe.users)
    return ProbeResult(probe, run, float(np.nanmax(stamps["ended"])) - start)
