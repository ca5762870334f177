"""The simulated engine: answers by the clock, with the faults and limits it is told, and knows what it truly did.

For trying the whole line without a model, for tests of every failure, and as the reference that the measuring client
is held against. It needs no environment of its own: it runs in the orchestrator's.
"""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from backends.base import Backend, EnvironmentChoice, Launch, cli
from backends.simulated_server.config import Faults, Timing
from sweep.records import BatchForm


class Simulated(Backend):
    """Keys as in `simulated_server.config.Config`; times in s."""

    computes_model = False

    ttft: Timing = Timing(mean=0.05)
    itl: Timing = Timing(mean=0.02)
    ttft_per_input_token: NonNegativeFloat = 0.0
    itl_per_sequence: NonNegativeFloat = 0.0  # added to each gap for each sequence that runs beside
    tokens_per_event: PositiveInt = 1  # as under speculative decoding
    faults: Faults = Faults()  # shares of requests that meet trouble
    max_concurrency: PositiveInt | None = None  # sequences that run at once; others wait
    max_queue: NonNegativeInt | None = None  # waiting sequences, beyond which a request gets 503
    memory_limit: PositiveInt | None = None  # sequences at once, beyond which it runs out of memory and dies
    kv_cache_tokens: PositiveInt = 1_000_000  # what kv_cache_usage is a share of
    startup_seconds: NonNegativeFloat = 0.0
    die_at_launch: Literal["error", "out_of_memory"] | None = None
    always_500: bool = False
    fault_seed: NonNegativeInt = 0  # of the choice of those requests
    truth_log: bool = False  # write true times to truth.log in the attempt's folder

    env: EnvironmentChoice = EnvironmentChoice(python=sys.executable)
    launch_timeout: PositiveFloat = 60.0
    batch_form: BatchForm = "list"
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
        timing = {
            "ttft": asdict(self.ttft),
            "itl": asdict(self.itl),
            "faults": asdict(self.faults),
            "seed": self.fault_seed,
            "log": str(launch.workdir / "truth.log") if self.truth_log else None,
        }
        same = (
            "ttft_per_input_token itl_per_sequence tokens_per_event max_concurrency max_queue memory_limit "
            "kv_cache_tokens startup_seconds die_at_launch always_500"
        )
        config: dict[str, Any] = timing | {name: getattr(self, name) for name in same.split()}
        arguments = {
            "host": launch.host,
            "port": launch.port,
            "model": launch.served_name,
            "config": config,
            **self.flags_on(launch),
        }
        return [launch.python, "-m", "backends.simulated_server", *cli(arguments)]

    def environment(self, launch: Launch) -> dict[str, str]:
        return {"PYTHONPATH": str(Path(__file__).resolve().parent.parent), **super().environment(launch)}
