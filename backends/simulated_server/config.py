"""The simulated engine's configuration: timing, faults and limits."""

import math
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, config={"extra": "forbid"})
class Timing:
    """The duration of a step: constant (`mean`), log-normal around the mean, or `burst` steps at once, then a pause."""

    kind: Literal["constant", "lognormal", "bursty"] = "constant"
    mean: NonNegativeFloat = 0.0  # seconds
    sigma: NonNegativeFloat = 0.5  # lognormal: standard deviation of the logarithm
    burst: PositiveInt = 8  # bursty: steps that happen together

    def steps(self, rng: random.Random) -> Iterator[float]:
        if self.kind == "lognormal" and self.mean > 0:
            mu = math.log(self.mean) - self.sigma**2 / 2  # gives the distribution the expected value `mean`
            while True:
                yield rng.lognormvariate(mu, self.sigma)
        while self.kind == "bursty":
            yield self.mean * self.burst
            for _ in range(self.burst - 1):
                yield 0.0
        while True:
            yield self.mean


@dataclass(frozen=True, config={"extra": "forbid"})
class Faults:
    """The share of requests with each kind of fault. The shares add up to at most 1."""

    status_503: Share = 0.0  # has a Retry-After header
    status_429: Share = 0.0  # has a Retry-After header
    reset: Share = 0.0  # connection reset in the middle of the answer
    error_event: Share = 0.0  # error event in the middle of a stream that began with 200
    hang: Share = 0.0  # no answer at all
    stall: Share = 0.0  # nothing after half of the answer
    trickle: Share = 0.0  # half of the answer, then single bytes now and then
    early_close: Share = 0.0  # connection closed in the middle of the answer

    def __post_init__(self) -> None:
        if self.total > 1:
            raise ValueError(f"the shares add up to {self.total:g}: expected 1")

    @property
    def total(self) -> float:
        return float(sum(vars(self).values()))

    def draw(self, rng: random.Random) -> str | None:
        point = rng.random()
        for fault, share in vars(self).items():
            point -= share
            if point < 0:
                return fault
        return None


@dataclass(frozen=True, config={"extra": "forbid"})
class Cost:
    """Factors by which switched-off knobs lengthen the scheduler's times."""

    ttft: PositiveFloat = 1.0
    itl: PositiveFloat = 1.0


class Behaviour(BaseModel):
    """The engine's behaviour, as in `backends.simulated`. Times are in seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ttft: Timing = Timing(mean=0.05)
    itl: Timing = Timing(mean=0.02)
    ttft_per_input_token: NonNegativeFloat = 0.0  # prefill
    itl_per_sequence: NonNegativeFloat = 0.0  # added to every gap for each running sequence
    tokens_per_event: PositiveInt = 1  # more than 1, as with speculative decoding
    faults: Faults = Faults()  # shares of requests with a fault
    max_concurrency: PositiveInt | None = None  # maximum running sequences; further sequences wait
    max_queue: NonNegativeInt | None = None  # maximum waiting sequences; further requests get 503
    memory_limit: PositiveInt | None = None  # maximum sequences; with more the engine runs out of memory and dies
    kv_cache_tokens: PositiveInt = 1_000_000  # size of the KV cache and of the prefix cache, in tokens
    prefix_block: PositiveInt | None = None  # tokens in a block of the prefix cache; null: no prefix cache
    knobs: dict[str, bool] = {}  # optimisations that are on or off
    knob_costs: dict[str, Cost] = {}  # `a`: cost while a is off; `a+b`: cost while both are off
    launch_spread: NonNegativeFloat = 0.0  # standard deviation of the logarithm of a launch's speed
    startup_seconds: NonNegativeFloat = 0.0
    die_at_launch: Literal["error", "out_of_memory"] | None = None
    always_500: bool = False


class Config(Behaviour):
    """The server's complete configuration."""

    events_per_write: PositiveInt = 1  # maximum events due at the same time that are written together
    seed: NonNegativeInt = 0  # seed that chooses the requests with faults
    log: str | None = None  # file for the true times

    def slowed(self, luck: float = 0.0) -> Self:
        """Return the configuration with times lengthened by switched-off knobs and by this launch's luck."""
        costs = [
            cost for names, cost in self.knob_costs.items() if not any(self.knobs.get(n) for n in names.split("+"))
        ]
        common = math.exp(luck * self.launch_spread)
        ttft, itl = (common * math.prod(getattr(cost, name) for cost in costs) for name in ("ttft", "itl"))
        return self.model_copy(
            update={
                "ttft": replace(self.ttft, mean=self.ttft.mean * ttft),
                "itl": replace(self.itl, mean=self.itl.mean * itl),
                "ttft_per_input_token": self.ttft_per_input_token * ttft,
                "itl_per_sequence": self.itl_per_sequence * itl,
            }
        )
