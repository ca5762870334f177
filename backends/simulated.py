"""The simulated engine: answers by the clock, with the faults and limits it is told, and knows what it truly did.

For trying the whole line without a model, for tests of every failure, and as the reference that the measuring client
is held against. It needs no environment of its own: it runs in the orchestrator's.
"""

import sys
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from backends.base import Backend, EnvironmentChoice, Launch, cli

SERVER = Path(__file__).with_name("simulated_server.py")


class Timing(BaseModel):
    """How long a step takes: always `mean`, log-normal around it, or `burst` steps at once and then a pause."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["constant", "lognormal", "bursty"] = "constant"
    mean: NonNegativeFloat  # s
    sigma: NonNegativeFloat = 0.5  # lognormal: standard deviation of the logarithm
    burst: PositiveInt = 8  # bursty: steps that come together


class Faults(BaseModel):
    """The share of requests (0..1) that meet each kind of trouble; in all at most 1."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    status_503: float = Field(default=0.0, ge=0, le=1)  # with Retry-After
    status_429: float = Field(default=0.0, ge=0, le=1)  # with Retry-After
    reset: float = Field(default=0.0, ge=0, le=1)  # the connection is reset in the middle of the answer
    error_event: float = Field(default=0.0, ge=0, le=1)  # an error event in a stream that began with 200
    hang: float = Field(default=0.0, ge=0, le=1)  # no answer at all
    stall: float = Field(default=0.0, ge=0, le=1)  # nothing more after half of the answer
    trickle: float = Field(default=0.0, ge=0, le=1)  # half of the answer, then a byte now and then
    early_close: float = Field(default=0.0, ge=0, le=1)  # the connection is closed in the middle of the answer

    @model_validator(mode="after")
    def _at_most_all(self) -> "Faults":
        total = sum(self.model_dump().values())
        if total > 1:
            raise ValueError(f"the shares add up to {total:g}: allowed is 1")
        return self


class Simulated(Backend):
    """Keys as in `simulated_server.Config`; times in s."""

    computes_model: ClassVar[bool] = False

    ttft: Timing = Timing(mean=0.05)
    itl: Timing = Timing(mean=0.02)
    ttft_per_input_token: NonNegativeFloat = 0.0
    itl_per_sequence: NonNegativeFloat = 0.0  # added to each gap for each sequence that runs beside
    tokens_per_event: PositiveInt = 1  # as under speculative decoding
    faults: Faults = Faults()
    max_concurrency: PositiveInt | None = None  # sequences that run at once; others wait
    max_queue: NonNegativeInt | None = None  # waiting sequences, beyond which a request gets 503
    memory_limit: PositiveInt | None = None  # sequences at once, beyond which it runs out of memory and dies
    kv_cache_tokens: PositiveInt = 1_000_000  # what kv_cache_usage is a share of
    startup_seconds: NonNegativeFloat = 0.0
    die_at_launch: Literal["error", "out_of_memory"] | None = None
    always_500: bool = False
    fault_seed: NonNegativeInt = 0
    truth_log: bool = False  # write true times to truth.log in the attempt's folder

    env: EnvironmentChoice = EnvironmentChoice(python=sys.executable)
    launch_timeout: PositiveFloat = 60.0
    batch_form: Literal["list", "streams"] = "list"
    continuous_usage: bool = True
    metrics_path: str | None = "/metrics"
    metric_names: dict[str, str] = Field(
        default_factory=lambda: {
            "kv_cache_usage": "vllm:kv_cache_usage_perc",
            "requests_running": "vllm:num_requests_running",
            "requests_waiting": "vllm:num_requests_waiting",
            "preemptions_total": "vllm:num_preemptions_total",
        }
    )

    def command(self, launch: Launch) -> list[str]:
        told = {
            "ttft": self.ttft.model_dump(),
            "itl": self.itl.model_dump(),
            "faults": self.faults.model_dump(),
            "seed": self.fault_seed,
            "log": str(launch.workdir / "truth.log") if self.truth_log else None,
        }
        same = (
            "ttft_per_input_token itl_per_sequence tokens_per_event max_concurrency max_queue memory_limit "
            "kv_cache_tokens startup_seconds die_at_launch always_500"
        )
        config: dict[str, Any] = told | {name: getattr(self, name) for name in same.split()}
        arguments = {
            "host": launch.host,
            "port": launch.port,
            "model": launch.served_name,
            "config": config,
            **self.flags_on(launch),
        }
        return [launch.python, str(SERVER), *cli(arguments)]
