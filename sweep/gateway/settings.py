"""The gateway's settings, for `gateway:` in an experiment and for `sweep gateway`."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from sweep.base.config import Strict
from sweep.base.records import ProxyUse

RESET_HEADER = "x-gateway-reset-key"
RESET_VARIABLE = "SWEEP_GATEWAY_RESET_KEY"  # environment variable with the key that a reset request must have


class Clip(Strict):
    """Upper bounds on the tokens of a request."""

    input_tokens: PositiveInt | None = None  # maximum tokens of a prompt, including special tokens; null: no limit
    keep: Literal["head", "tail", "both"] = "tail"  # which end of a longer prompt is kept; both: half from each end
    output_tokens: PositiveInt | None = None  # maximum tokens of an answer; null: as many as the client requests


class Cache(Strict):
    """The cache of answers to deterministic requests."""

    removed: ClassVar[Mapping[str, str]] = {
        "embedder": "wordllama finds similar prompts",
        "eviction": "the least recently served answer is evicted first",
        "path": "the cache is in memory only",
    }

    mode: Literal["semantic", "exact"] = "semantic"  # exact: only for equal prompts
    threshold: float = Field(default=0.95, ge=0, le=1)  # cosine similarity above which another prompt's answer serves
    capacity: PositiveInt = 10_000  # maximum number of answers; above it, the least recently served is dropped
    bytes: PositiveInt = 256 << 20  # maximum bytes of all answers; above it, the least recently served is dropped
    ttl: PositiveFloat | None = 3600.0  # s after which an answer is stale; null: never
    single_flight: bool = True  # whether equal prompts in flight share one answer
    event_interval: NonNegativeFloat = 0.001  # s between the events of a cached stream; 0: as fast as the client reads


class NoGateway(Strict):
    """No gateway: the client sends requests to the engine directly."""

    name: str


class Gateway(Strict):
    """A gateway in front of the engine."""

    name: str = "gateway"
    clip: Clip = Clip()  # upper bounds on the tokens of a request: {input_tokens, keep, output_tokens}
    cache: Cache | None = None  # cache of answers: {mode, threshold, capacity, …}; null: none
    routing: Literal["round_robin", "least_busy", "prefix"] = "least_busy"  # how an engine is chosen for a request
    retries: int = Field(default=2, ge=0)  # retries of a request that no engine has begun to answer
    health_interval: PositiveFloat = 2.0  # s between the checks of each engine
    verify_tls: bool = True  # whether this machine must trust the engines' certificates
    proxy: ProxyUse = "none"  # environment: reach engines through the environment's proxy, except on loopback
    largest_body: PositiveInt = 16 << 20  # maximum bytes of a request; larger requests are rejected
    bodies: PositiveInt = 256 << 20  # bytes of all requests in flight, and as many of their parsed contents; more wait
    request_timeout: PositiveFloat = 30.0  # s within which a request must have arrived completely
    stall_timeout: PositiveFloat = 60.0  # maximum s for which a client may leave an answer unread
    answer_timeout: PositiveFloat = 3600.0  # maximum s between two parts of an engine's answer
