"""ExLlamaV2 (GPTQ, EXL2) or ExLlamaV3 (EXL3) in the host, by their dynamic generators. CUDA only."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import PositiveInt

from backends.base import QUEUE, TORCH_MEMORY, Host, Hosted, Launch, metrics
from backends.prepare import checkpoints


class ExLlama(Hosted):
    """`flags` are arguments of the dynamic generator (max_batch_size, max_chunk_size). Which of the two it is, is up
    to the environment: V2 with `checkpoint: gptq`, as in the study that V1 was used in; V3 with a folder in EXL3.
    """

    needs_gpu = True
    reserves_memory = True

    library = "backends.host.libraries.exllama_library"
    checkpoint: Literal["gptq"] | None = "gptq"  # made of the model's weights unless they are quantised; V2 only
    group_size: PositiveInt = 128
    cache_tokens: PositiveInt = 65536  # that the KV cache has room for, all sequences together
    metric_names: dict[str, str] = metrics("host_", "kv_cache_usage", *QUEUE, *TORCH_MEMORY)

    oom_patterns = (*Hosted.oom_patterns, r"Insufficient VRAM (in split )?for model and cache")

    def unavailable(self, host: Host) -> str | None:
        reason = super().unavailable(host)
        if reason is None and not self.env.python and "nvcc" not in host.executables:
            return (
                "exllama compiles its kernels when it is imported: install the CUDA toolkit (nvcc on PATH), or name an "
                "environment that has a prebuilt wheel of it as backend.env.python"
            )
        return reason

    def flags_on(self, launch: Launch) -> dict[str, Any]:
        return {"cache_tokens": self.cache_tokens, **super().flags_on(launch)}

    def weights(self, model: Path, python: str, cache_dir: Path, progress: Callable[[str], None]) -> Path:
        return checkpoints.quantised(model, self.checkpoint, self.group_size, python, cache_dir, progress)

    def reserved_tokens(self, context: int) -> int:
        return self.cache_tokens

    def facts(self, launch: Launch) -> dict[str, Any]:
        # The study's ExLlama (V1) has no installable release any more.
        facts = {"quantization": self.checkpoint, "prefix_cache": True, "substitute_for": "ExLlama V1"}
        return facts | checkpoints.method(launch.model)
