"""The simulated engine's configuration: timing, faults and limits."""

import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, get_args

TimingKind = Literal["constant", "lognormal", "bursty"]

FORBID: dict[str, Any] = {"extra": "forbid"}  # for pydantic, which validates the fields of `backends.simulated`


@dataclass(frozen=True)
class Timing:
    """The duration of a step: always `mean` s, or log-normal around it, or `burst` steps at once, then a pause."""

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID

    kind: TimingKind = "constant"
    mean: float = 0.0  # s
    sigma: float = 0.5  # lognormal: standard deviation of the logarithm
    burst: int = 8  # bursty: steps that come together

    def __post_init__(self) -> None:
        if self.kind not in get_args(TimingKind):
            raise ValueError(f"kind={self.kind!r}: allowed are {', '.join(get_args(TimingKind))}")
        for name, least in (("mean", 0), ("sigma", 0), ("burst", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: allowed is at least {least}")

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


@dataclass(frozen=True)
class Faults:
    """The share of requests (0..1) with each kind of fault; their sum is at most 1."""

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID

    status_503: float = 0.0  # with Retry-After
    status_429: float = 0.0  # likewise
    reset: float = 0.0  # the connection is reset in the middle of the answer
    error_event: float = 0.0  # an error event in the middle of a stream that began with 200
    hang: float = 0.0  # no answer at all
    stall: float = 0.0  # nothing more after half of the answer
    trickle: float = 0.0  # half of the answer, then a byte now and then
    early_close: float = 0.0  # the connection is closed in the middle of the answer

    def __post_init__(self) -> None:
        shares = [getattr(self, fault.name) for fault in fields(self)]
        if min(shares) < 0:
            raise ValueError(f"a share is {min(shares):g}: allowed is at least 0")
        if sum(shares) > 1:
            raise ValueError(f"the shares add up to {sum(shares):g}: allowed is 1")

    def draw(self, rng: random.Random) -> str | None:
        value = rng.random()
        for fault in fields(self):
            value -= getattr(self, fault.name)
            if value < 0:
                return fault.name
        return None


@dataclass(frozen=True)
class Config:
    """The complete configuration; `backends.simulated` has the same keys."""

    ttft: Timing = field(default_factory=lambda: Timing(mean=0.05))
    itl: Timing = field(default_factory=lambda: Timing(mean=0.02))
    ttft_per_input_token: float = 0.0  # s, prefill
    itl_per_sequence: float = 0.0  # s added to each gap for each running sequence
    tokens_per_event: int = 1  # as under speculative decoding
    events_per_write: int = 1  # of events that are due at the same time
    faults: Faults = field(default_factory=Faults)
    max_concurrency: int | None = None  # sequences that run at once; others wait
    max_queue: int | None = None  # waiting sequences, beyond which a request gets 503
    memory_limit: int | None = None  # sequences at once, beyond which the engine runs out of memory and dies
    kv_cache_tokens: int = 1_000_000  # what kv_cache_usage is a share of
    startup_seconds: float = 0.0
    die_at_launch: str | None = None  # error | out_of_memory
    always_500: bool = False
    seed: int = 0
    log: str | None = None  # file for the true times

    @classmethod
    def parse(cls, text: str) -> "Config":
        content = json.loads(text)
        for name, kind in (("ttft", Timing), ("itl", Timing), ("faults", Faults)):
            if name in content:
                content[name] = kind(**content[name])
        return cls(**content)
