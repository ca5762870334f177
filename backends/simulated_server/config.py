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
    """The duration of a step: always `mean` s, or log-normal around it, or `burst` steps at once, then a pause."""

    kind: Literal["constant", "lognormal", "bursty"] = "constant"
    mean: NonNegativeFloat = 0.0  # s
    sigma: NonNegativeFloat = 0.5  # lognormal: standard deviation of the logarithm
    burst: PositiveInt = 8  # bursty: steps that come together

    def steps(self, rng: random.Random) -> Iterator[float]:
        if self.kind == "lognormal" and self.mean > 0:
            mu = math.log(self.mean) - self.sigma**2 / 2  # so that the expected value is `mean`
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
    """The share of requests with each kind of fault; their sum is at most 1."""

    status_503: Share = 0.0  # with Retry-After
    status_429: Share = 0.0  # likewise
    reset: Share = 0.0  # the connection is reset in the middle of the answer
    error_event: Share = 0.0  # an error event in the middle of a stream that began with 200
    hang: Share = 0.0  # no answer at all
    stall: Share = 0.0  # nothing more after half of the answer
    trickle: Share = 0.0  # half of the answer, then a byte now and then
    early_close: Share = 0.0  # the connection is closed in the middle of the answer

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
    """Factors of the scheduler's times while some knobs are off."""

    ttft: PositiveFloat = 1.0
    itl: PositiveFloat = 1.0


class Behaviour(BaseModel):
    """The engine's behaviour, like `backends.simulated`; times in s."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ttft: Timing = Timing(mean=0.05)
    itl: Timing = Timing(mean=0.02)
    ttft_per_input_token: NonNegativeFloat = 0.0  # prefill
    itl_per_sequence: NonNegativeFloat = 0.0  # added to each gap for each running sequence
    tokens_per_event: PositiveInt = 1  # as under speculative decoding
    faults: Faults = Faults()  # shares of requests that meet trouble
    max_concurrency: PositiveInt | None = None  # sequences that run at once; others wait
    max_queue: NonNegativeInt | None = None  # waiting sequences, beyond which a request gets 503
    memory_limit: PositiveInt | None = None  # sequences at once, beyond which the engine runs out of memory and dies
    kv_cache_tokens: PositiveInt = 1_000_000  # what kv_cache_usage is a share of
    knobs: dict[str, bool] = {}  # optimisations that are on or off
    knob_costs: dict[str, Cost] = {}  # `a`: while a is off; `a+b`: while both are
    launch_spread: NonNegativeFloat = 0.0  # standard deviation of the logarithm of a launch's speed
    startup_seconds: NonNegativeFloat = 0.0
    die_at_launch: Literal["error", "out_of_memory"] | None = None
    always_500: bool = False


class Config(Behaviour):
    """The server's complete configuration."""

    events_per_write: PositiveInt = 1  # of events that are due at the same time
    seed: NonNegativeInt = 0  # of the choice of requests with faults
    log: str | None = None  # file for the true times

    def slowed(self, luck: float = 0.0) -> Self:
        """The configuration with the costs of the knobs that are off, and this launch's luck, in its times."""
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
