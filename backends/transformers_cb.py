"""transformers' continuous batching (the manager of `generate_batch`), streaming every request token by token."""

from dataclasses import replace
from typing import Any

from pydantic import Field, PositiveFloat

from backends.base import QUEUE, TORCH_MEMORY, Launch, metrics
from backends.transformers import Transformers


class TransformersCB(Transformers):
    """`scheduler` holds fields of transformers' ContinuousBatchingConfig. The memory fields set `num_blocks`, since the
    manager would otherwise take all of the machine's memory.
    """

    flag_rules = replace(
        Transformers.flag_rules, option_tables=dict.fromkeys(("scheduler", "cpu_scheduler"), "transformers_cb")
    )
    traits = replace(Transformers.traits, reserves_memory=True, continuous_batching=True, beam_search=False)

    library = "backends.host.libraries.transformers_cb_library"
    cpu_kv_cache_gib: PositiveFloat = 0.25
    cuda_memory_share: float = Field(default=0.8, gt=0, lt=1)  # share of the memory left after loading the weights
    scheduler: dict[str, Any] = Field(default_factory=dict)
    cpu_scheduler: dict[str, Any] = Field(default_factory=dict)
    reset_paths: tuple[str, ...] = ("/reset_caches",)
    metric_names: dict[str, str] = metrics("host_", "kv_cache_usage", "prefix_cache_hits_total", *QUEUE, *TORCH_MEMORY)

    def flags_on(self, launch: Launch) -> dict[str, Any]:
        scheduler = {**({} if launch.gpus else self.cpu_scheduler), **self.scheduler}
        memory = {"memory_share": self.cuda_memory_share} if launch.gpus else {"kv_cache_gib": self.cpu_kv_cache_gib}
        return {**super().flags_on(launch), "kv_cache": memory, "scheduler": scheduler}

    def facts(self, launch: Launch) -> dict[str, Any]:
        shared = self.flags_on(launch)["scheduler"].get("allow_block_sharing", True)
        return {**super().facts(launch), "prefix_cache": bool(shared)}
