"""The simulated engine, for trying sweep without a model, testing failures and checking the measuring client."""

import sys
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt, PositiveFloat

from backends.base import Backend, EnvironmentChoice, Launch, cli, metrics
from backends.declarations import Traits
from backends.simulated_server.config import Behaviour
from sweep.base.records import BatchForm


class Simulated(Behaviour, Backend):
    """An engine without a model, which generates tokens at configured times."""

    traits = Traits(computes_model=False, continuous_batching=True, beam_search=False, quantisations="none")

    fault_seed: NonNegativeInt = 0  # seed that chooses the requests with faults
    truth_log: bool = False  # write the true times to truth.log in the attempt's folder

    env: EnvironmentChoice = EnvironmentChoice(python=sys.executable)
    launch_timeout: PositiveFloat = 60.0
    batch_form: BatchForm = "list"
    continuous_usage: bool = True
    metric_names: dict[str, str] = metrics(
        "vllm:",
        kv_cache_usage="kv_cache_usage_perc",
        requests_running="num_requests_running",
        requests_waiting="num_requests_waiting",
        preemptions_total="num_preemptions_total",
        prefix_cache_queries_total="prefix_cache_queries_total",
        prefix_cache_hits_total="prefix_cache_hits_total",
    )

    @property
    def resets(self) -> tuple[str, ...]:
        return (*self.reset_paths, *(["/reset_prefix_cache"] if self.prefix_block else []))

    def facts(self, launch: Launch) -> dict[str, Any]:
        return {
            **super().facts(launch),
            "prefix_cache": self.prefix_block is not None,
            "prefix_block": self.prefix_block,
            "kv_cache_tokens": self.kv_cache_tokens,
        }

    def command(self, launch: Launch) -> list[str]:
        config = {
            **self.model_dump(include=set(Behaviour.model_fields)),
            "seed": self.fault_seed,
            "log": str(launch.workdir / "truth.log") if self.truth_log else None,
        }
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
