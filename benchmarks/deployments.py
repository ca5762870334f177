"""Simulates deployments of known capacity, for benchmarks.capacity: continuous batching with noise of its own.

Their steps are computed as in the twin (sweep.search.twin), but compiled if numba is installed: the same numbers, 20
times as fast. They also have what the twin lacks: a pace that wanders (AR(1), 0 to 4%), and a drift.
"""

import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.signal import lfilter

from sweep.search import twin
from sweep.search.capacity import LatencyBound
from sweep.search.twin import UNLIMITED, Costs, Floats, Integers, Limits, Replay, Requests, run_queue

LONGEST_NOISE = 300_000  # s


def compile_event_loop() -> bool:
    """Replace the twin's loop by the same loop, compiled; False if numba is not installed."""
    try:
        numba: Any = importlib.import_module("numba")
    except ImportError:
        return False
    for function in twin.COMPILED:
        setattr(twin, function.__name__, numba.njit(cache=True)(function))
    twin.as_column = np.ascontiguousarray
    return True


@dataclass(frozen=True)
class Deployment:
    """A deployment with its workload and SLO: p90 of ttft and of tpot."""

    seed: int
    costs: Costs
    limits: Limits
    inputs: tuple[float, float, int]  # tokens: mean, sigma of a lognormal, maximum
    outputs: tuple[float, float, int]
    bounds: tuple[LatencyBound, LatencyBound]
    noise: tuple[float, float]  # the pace's standard deviation, and its memory in s
    drift: float = 0.0  # slowing of the steps over 20 of a grid's probes
    unit: float = 60.0  # duration in s of a grid's probe: 1,000 requests at saturation, at least a minute

    def lengths(self, count: int, random: np.random.Generator) -> tuple[Integers, Integers]:
        """Return the lengths of this many requests, in tokens."""
        prompts, answers = (
            np.clip(mean * np.exp(sigma * random.normal(size=count) - sigma**2 / 2), least, most).astype(np.int64)
            for (mean, sigma, most), least in ((self.inputs, 1), (self.outputs, 2))
        )
        return prompts, answers

    def pace(self, seconds: float, random: np.random.Generator, start: float = 0.0) -> Floats:
        """Return a factor on the step time for each second, beginning at second `start` of the measurement."""
        spread, memory = self.noise
        count, decay = int(min(seconds, LONGEST_NOISE)) + 2, np.exp(-1 / memory)
        wander = lfilter([np.sqrt(1 - decay * decay)], [1, -decay], random.normal(size=count + 200))[200:]
        drifted = 1 + self.drift * np.minimum((start + np.arange(count)) / (20 * self.unit), 1.0)
        return np.asarray(np.exp(spread * wander) * drifted, dtype=np.float64)

    def open_loop(
        self, rate: float, count: int, random: np.random.Generator, start: float = 0.0, horizon: float = np.inf
    ) -> Replay:
        """Run requests with Poisson arrivals at this rate."""
        seconds = count / rate
        arrivals = np.sort(random.random(count)) * seconds
        pace = self.pace(2 * seconds, random, start)
        return run_queue(self.costs, self.limits, Requests(arrivals, *self.lengths(count, random)), pace, horizon)

    def closed_loop(self, users: int, count: int, random: np.random.Generator, start: float = 0.0) -> Replay:
        """Run requests of users who each send the next request once the previous one has ended."""
        pace = self.pace(2 * count / min(self.saturation_guess, 1e9) + 60, random, start)
        return run_queue(self.costs, self.limits, Requests(np.empty(0), *self.lengths(count, random), users), pace)

    @property
    def saturation_guess(self) -> float:
        """Return the requests per second of a full batch, by the formula."""
        prompt, answer = self.inputs[0], self.outputs[0]
        running = min(self.limits.running, self.limits.cached_tokens / (prompt + answer / 2))
        step = self.costs.step + self.costs.per_running * running
        step += self.costs.per_cached_token * running * (prompt + answer / 2)
        return 1 / (answer * step / running + self.costs.per_prompt_token * prompt)


def deployment(seed: int, drift: float = 0.0, tails: float = 0.0) -> Deployment:
    """Return the deployment of this seed: 40% have little KV memory; `tails` is added to the lengths' sigmas."""
    random = np.random.default_rng(seed)

    def spread(low: float, high: float) -> float:
        return float(np.exp(random.uniform(np.log(low), np.log(high))))

    running = int(random.choice([16, 32, 64, 128, 256]))
    step = spread(0.004, 0.03)
    per_running = step * random.uniform(0.2, 3) / running
    prompt, answer = spread(128, 4096), spread(32, 512)
    prompt_sigma, answer_sigma = random.uniform(0.1, 1.0) + tails, random.uniform(0.1, 1.0) + tails
    per_prompt_token, budget = spread(1e-5, 1.5e-4), int(random.choice([512, 2048, 8192]))
    per_cached_token = step * random.uniform(0, 2) / (running * (prompt + answer / 2))
    cached = UNLIMITED
    if random.random() < 0.4:
        largest = 4 * (prompt * np.exp(2 * prompt_sigma) + answer * np.exp(2 * answer_sigma))
        cached = int(max(running * (prompt + answer) * random.uniform(0.25, 0.8), largest))
    idle = step + per_prompt_token * prompt * np.exp(1.28 * prompt_sigma)
    bounds = LatencyBound("ttft", idle * spread(1.5, 15)), LatencyBound("tpot", step * random.uniform(1.3, 4))
    noise = random.uniform(0, 0.04), spread(1, 60)
    made = Deployment(
        seed,
        Costs(step, per_running, per_cached_token, per_prompt_token),
        Limits(running, cached, budget),
        (prompt, prompt_sigma, int(min(64 * prompt, 0.5 * cached))),
        (answer, answer_sigma, int(min(64 * answer, 0.4 * cached))),
        bounds,
        noise,
        drift,
    )
    return Deployment(**{**made.__dict__, "unit": max(60.0, 1000 / made.saturation_guess)})
