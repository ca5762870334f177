"""Simulates replicates of known timing, for the studies: queues, users and batches, steady states, and gaps."""

import csv
import functools
from array import array
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sweep.base.records import REQUEST_COLUMNS, UNKNOWN, Records
from sweep.numbers.steady import steady_window

FloatArray = NDArray[np.float64]

SLOTS = 16
LOADS = {f"load {load}": load for load in (0.3, 0.5, 0.7, 0.85, 0.9)}
FEW_USERS = {"4 users": 4, "4 users, 2% slow": 4}
BATCH = 8  # requests of a lockstep batch, which take as long as the batch but for a little
STATIONARY = ("lognormal", "2% slow", *LOADS)  # of which long runs are studied
PARETO = {"Pareto 2.5": 2.5, "Pareto 1.5": 1.5}  # the index of the services' tail
STALLS, STALL_EVERY, STALL_LENGTH = "stalls", 60.0, 3.0  # mean services between two stalls, and of a stall
WANDERING, WANDER_SPREAD, WANDER_MEMORY = "wandering speed", 0.05, 300  # of the logarithm; requests
BURSTS, BURST = {"bursts 0.5": 0.5, "bursts 0.7": 0.7}, 32  # loads, and the requests that arrive together
SURGES, SURGE_LOAD, SURGE_FACTOR, SURGE = "surges", 0.6, 3.0, 200  # the rate changes by a factor every SURGE requests
ADVERSE = (*PARETO, STALLS, WANDERING, *BURSTS, SURGES)
# Of the latencies that README's run measured, drawn in blocks as they came: configuration, task, size of a block. They
# are smoothed, since a quantile of a few dozen values would always be one of these.
MAIN_JOB = Path(__file__).parents[1] / "docs" / "measurements" / "main_job_requests.csv"
RECORDED = {
    "main job, one by one": ("ctranslate2", "qa", 4),
    "main job, batches": ("vllm", "qa", BATCH),
    "main job, mixed batches": ("vllm", "mixed", BATCH),
}
SCENARIOS = (*STATIONARY, *FEW_USERS, "batches of 8", *ADVERSE, *RECORDED)
SMOOTHING = 0.01  # standard deviation of the logarithm
SLOW = 20.0
SLOW_SHARE = 0.02
TOKENS = 4  # tokens of an answer, spread evenly over its service
GAP_SPREAD = 0.25  # standard deviation of a gap's logarithm, apart from its request's latency
SETTLING = 2000  # requests after which even the longest queue is stationary


class Runs(NamedTuple):
    """Simulated replicates, each from an empty system. Shape (runs, n) each, in the order of the sends."""

    sent: NDArray[Any]
    latency: NDArray[Any]
    service: NDArray[Any]  # the last part of the latency, without the wait for a slot

    def of(self, *index: int) -> "Runs":
        """Return some of the runs, or one run."""
        return Runs(*(np.asarray(values[index], np.float64) for values in self))

    def section(self, runs: slice, n: int) -> "Runs":
        """Return the first n requests of some runs, which later requests do not change."""
        return Runs(*(values[runs, :n].astype(np.float64) for values in self))

    def slower(self, factors: FloatArray) -> "Runs":
        """Return each run with its times multiplied by a factor."""
        return Runs(*(values * factors[..., None] for values in self))


def simulate(scenario: str, runs: int, n: int, seed: int) -> Runs:
    """Simulate a first-in-first-out queue with SLOTS slots; without a load, one user per slot with independent answers.

    Service takes lognormal(0.5) times of mean 1; where 2% are slow lognormal(0.25), and SLOW times as long in 2 of
    100. In batches the next begins when the last answer is there, and what they have in common is lognormal(0.1). In a
    stall the server stands still.
    """
    chance = np.random.default_rng([seed, SCENARIOS.index(scenario)])
    if scenario == "batches of 8":
        shape = runs, -(-n // BATCH)
        common = np.exp(0.1 * chance.standard_normal((*shape, 1)))
        return _batches(common * np.exp(0.02 * chance.standard_normal((*shape, BATCH))), n)
    if scenario in RECORDED:
        blocks = _recorded(*RECORDED[scenario])
        latencies = blocks[chance.integers(0, len(blocks), (runs, -(-n // blocks.shape[1])))]
        latencies = latencies * np.exp(SMOOTHING * chance.standard_normal(latencies.shape))
        together = blocks.shape[1] == BATCH
        return _batches(latencies if together else latencies.reshape(runs, -1, 1)[:, :n], n)
    slots = FEW_USERS.get(scenario, SLOTS)
    free, clock, each = np.zeros((runs, slots)), np.zeros(runs), np.arange(runs)
    sent, latency, service = (np.empty((n, runs), np.float32) for _ in range(3))
    phase = chance.integers(0, 2 * SURGE, runs) if scenario == SURGES else np.zeros(runs, np.int64)
    speed = np.asarray(chance.standard_normal(runs)) if scenario == WANDERING else np.zeros(runs)
    for index in range(n):
        slot = free.argmin(1)
        begin = free[each, slot]
        gap = _gap(scenario, index + phase, chance)
        if gap is None:
            sent[index] = begin
        else:
            clock += gap
            sent[index], begin = clock, np.maximum(clock, begin)
        service[index] = _service(scenario, runs, chance)
        if scenario == WANDERING:
            speed = _wandered(speed, chance)
            service[index] *= np.exp(WANDER_SPREAD * speed)
        free[each, slot] = begin + service[index]
        latency[index] = free[each, slot] - sent[index]
    simulated = Runs(sent.T, latency.T, service.T)
    return _stalled(simulated, chance) if scenario == STALLS else simulated


def _gap(scenario: str, number: NDArray[np.int64], chance: np.random.Generator) -> FloatArray | None:
    """The time since the arrival before; None for users, who send when their answer is there."""
    runs = len(number)
    if scenario in BURSTS:
        begins = (number > 0) & (number % BURST == 0)
        return np.where(begins, chance.exponential(BURST / (BURSTS[scenario] * SLOTS), runs), 0.0)
    if scenario == SURGES:
        slow = SURGE_LOAD * SLOTS * (1 + SURGE_FACTOR) / (2 * SURGE_FACTOR)
        return chance.exponential(1, runs) / np.where(number // SURGE % 2, slow * SURGE_FACTOR, slow)
    return chance.exponential(1 / (LOADS[scenario] * SLOTS), runs) if scenario in LOADS else None


def _wandered(speed: FloatArray, chance: np.random.Generator) -> FloatArray:
    """The next value of a normal process that forgets within WANDER_MEMORY requests."""
    memory = float(np.exp(-1 / WANDER_MEMORY))
    return memory * speed + float(np.sqrt(1 - memory**2)) * chance.standard_normal(len(speed))


def _stalled(runs: Runs, chance: np.random.Generator) -> Runs:
    """The same runs, whose clock goes on for STALL_LENGTH at random moments while nothing happens."""
    ends = runs.sent + runs.latency
    count = int(4 + 2 * ends.max() / STALL_EVERY)
    moments = np.cumsum(chance.exponential(STALL_EVERY, (len(ends), count)), -1)
    sent, ended = (
        times + STALL_LENGTH * sum((moment[:, None] <= times) for moment in moments.T) for times in (runs.sent, ends)
    )
    return Runs(sent.astype(np.float32), *[(ended - sent).astype(np.float32)] * 2)


def _batches(latency: FloatArray, n: int) -> Runs:
    """Send the first n requests in batches, each when the last answer of the one before is there.

    Args:
        latency: shape (runs, batches, requests of a batch).
        n: requests of a run; the last batch may be smaller.
    """
    latency = latency.astype(np.float32)
    runs, count, size = latency.shape
    longest = latency.max(-1)
    longest[:, -1] = latency[:, -1, : n - (count - 1) * size].max(-1)
    begins = np.cumsum(longest, -1, dtype=np.float64) - longest
    sent = np.repeat(begins, size, -1)[:, :n].astype(np.float32)
    latency = latency.reshape(runs, -1)[:, :n]
    return Runs(sent, latency, latency)


@functools.cache
def _recorded(configuration: str, task: str, size: int) -> FloatArray:
    """Return the latencies of consecutive requests of one launch, over their mean. Shape (blocks, size)."""
    with MAIN_JOB.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["configuration"], row["task"]) == (configuration, task)]
    latency = np.array([float(row["e2el"]) for row in rows if (int(row["batch_size"]) == BATCH) == (size == BATCH)])
    return np.asarray(latency.reshape(-1, size) / latency.mean())


def _service(scenario: str, runs: int, chance: np.random.Generator) -> FloatArray:
    if scenario in PARETO:
        index = PARETO[scenario]
        return np.asarray((index - 1) / index * (1 - chance.random(runs)) ** (-1 / index))
    if scenario.endswith("2% slow"):
        slow = np.where(chance.random(runs) < SLOW_SHARE, SLOW, 1.0)
        return np.asarray(slow * np.exp(0.25 * chance.standard_normal(runs)))
    return np.exp(0.5 * chance.standard_normal(runs) - 0.125)


# The steady state ----------------------------------------------------------------------------------------------------


def stationary(scenario: str, runs: int, seed: int) -> tuple[FloatArray, float]:
    """Return latencies of the stationary system, and its throughput in requests."""
    long = simulate(scenario, runs, 2 * SETTLING, seed + 1)
    latency = np.asarray(long.latency[:, SETTLING:], np.float64).ravel()
    mean_service = float(long.service.mean(dtype=np.float64))
    return latency, LOADS[scenario] * SLOTS if scenario in LOADS else SLOTS / mean_service


def steady_states(runs: Runs) -> FloatArray:
    """Return begin, end and throughput (requests) of each run's steady state; NaN if it has none. Shape (runs, 3)."""
    states = np.full((len(runs.sent), 3), np.nan)
    for index, state in enumerate(states):
        run = runs.of(index)
        since = (run.latency - run.service)[:, None] + run.service[:, None] * (np.arange(TOKENS) + 1) / TOKENS
        window = steady_window(records_of(run))
        if window.begin is not None and window.end is not None:
            arrived = run.sent[:, None] + since
            tokens = ((arrived > window.begin) & (arrived <= window.end)).sum()
            state[:] = window.begin, window.end, tokens / TOKENS / (window.end - window.begin)
    return states


def records_of(run: Runs) -> Records:
    """Return the requests of one run as a client records them, with a token after each part of their service."""
    n = len(run.sent)
    since = (run.latency - run.service)[:, None] + run.service[:, None] * (np.arange(TOKENS) + 1) / TOKENS
    records = Records()
    unknown = {"d": np.nan, "i": UNKNOWN, "b": False}  # until they are set below, as if a client had seen nothing
    for name, code in REQUEST_COLUMNS.items():
        setattr(records, name, array(code, [unknown[code]]) * n if code else [None] * n)
    records.request_id, records.phase = [f"r{index}" for index in range(n)], ["measured"] * n
    records.finish_reason, records.token_source = ["length"] * n, ["ids"] * n
    records.sent = records.released = array("d", run.sent.tobytes())
    records.ended = array("d", (run.sent + since[:, -1]).tobytes())
    counts = {"input_tokens": TOKENS, "output_tokens": TOKENS, "asked_input_tokens": TOKENS}
    counts |= {"asked_output_tokens": TOKENS, "streamed_tokens": TOKENS, "hidden_tokens": 0}
    for name, count in counts.items():
        setattr(records, name, array("i", [count]) * n)
    records.offsets = array("q", range(0, (n + 1) * TOKENS, TOKENS))
    records.chunk_us = array("I", np.rint(since * 1e6).astype(np.uint32).tobytes())
    records.chunk_tokens = array("H", [1]) * (n * TOKENS)
    return records


def sent_within(runs: Runs, states: FloatArray) -> FloatArray:
    """Return the latencies of the requests sent in the steady states, NaN after the last. The shape is the same."""
    begin, end = states[..., :1], states[..., 1:2]
    inside = (runs.sent >= begin) & (runs.sent <= end)
    order = np.argsort(~inside, axis=-1, kind="stable")
    return np.take_along_axis(np.where(inside, runs.latency, np.nan), order, -1)


# Gaps ----------------------------------------------------------------------------------------------------------------


def gaps(latency: FloatArray, seed: int) -> FloatArray:
    """Return each request's gaps, proportional to its latency, with a spread of GAP_SPREAD. Shape (..., TOKENS)."""
    chance = np.random.default_rng([seed, latency.size])
    noise = chance.standard_normal((*latency.shape, TOKENS), np.float32)
    return np.asarray(latency[..., None] / TOKENS * np.exp(GAP_SPREAD * noise))
