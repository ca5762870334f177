"""ExLlamaV3 (EXL3) or ExLlamaV2 (GPTQ, EXL2) with its dynamic generator, served in-process. CUDA only."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt

from backends.base import QUEUE, TORCH_MEMORY, Hosted, Launch, cli, metrics
from backends.declarations import FlagRules, LogReading, Traits
from backends.launch import task
from backends.prepare import checkpoints


class ExLlama(Hosted):
    """`flags` are arguments of the dynamic generator (max_batch_size, max_chunk_size). The environment decides the
    version: V3 with `checkpoint: exl3`, or V2 with `checkpoint: gptq`, as the study did with V1.
    """

    flag_rules = FlagRules(
        tables=("exllamav3", "exllamav2"),
        set_by={
            "model": "model",
            "tokenizer": "model.tokenizer",
            "cache": "backend.cache_tokens",
            "cache-tokens": "backend.cache_tokens",
        },
    )
    log = LogReading(out_of_memory=(r"Insufficient VRAM (in split )?for model and cache",))
    wire = replace(Hosted.wire, log_probabilities="host")
    traits = Traits(
        distribution="exllamav3",
        inherits=("EXLLAMA_*",),
        needs_gpu=True,
        reserves_memory=True,
        continuous_batching=True,
        beam_search=False,
        quantisations="V3: EXL3; V2: GPTQ, EXL2",
    )

    library = "backends.host.libraries.exllama_library"
    checkpoint: Literal["exl3", "gptq"] | None = "exl3"  # made from the weights, unless they are already quantised
    bits: float = Field(default=4.0, ge=1, le=8)  # bits per weight in EXL3
    group_size: PositiveInt = 128  # number of weights that share a scale in GPTQ
    cache_tokens: PositiveInt = 65536  # tokens in the KV cache, for all sequences together
    reset_paths: tuple[str, ...] = ("/reset_caches",)
    metric_names: dict[str, str] = metrics("host_", "kv_cache_usage", *QUEUE, *TORCH_MEMORY)

    def flags_on(self, launch: Launch) -> dict[str, Any]:
        return {"cache_tokens": self.cache_tokens, **super().flags_on(launch)}

    def in_bfloat16(self, dtype: str) -> bool:
        return False  # both versions compute in float16

    def weights(self, model: Path, python: str, cache_dir: Path, progress: Callable[[str], None]) -> Path:
        if self.checkpoint != "exl3":
            return checkpoints.quantised(model, self.checkpoint, self.group_size, python, cache_dir, progress)
        if checkpoints.is_quantised(model):
            return model

        def convert(folder: Path) -> None:
            """Run ExLlamaV3's converter on the first GPU that it sees. Its status is 0 even if it fails."""
            log, work = folder / "conversion.log", folder / "work"
            arguments = {"in_dir": model, "out_dir": folder, "work_dir": work, "bits": self.bits}
            command = [python, "-m", "exllamav3.conversion.convert_model", *cli(arguments)]
            checkpoints.execute(command, "exllamav3's converter", log, progress, task.activated(python))
            if not any(folder.glob("*.safetensors")):
                raise checkpoints.ConversionFailed(
                    f"exllamav3's converter failed: {' '.join(log.read_text().split())[-300:]}"
                )
            shutil.rmtree(work)

        parameters = {"bits": self.bits, "converter": checkpoints.versions(python, "exllamav3", "torch")}
        return checkpoints.converted(model, "exl3", parameters, convert, cache_dir, progress)

    def conversion_obstacle(self, is_quantised: Callable[[], bool | None]) -> str | None:
        return checkpoints.obstacle(self.checkpoint, is_quantised)

    def reserved_tokens(self, context: int) -> int:
        return self.cache_tokens

    def facts(self, launch: Launch) -> dict[str, Any]:
        # The study's ExLlama (V1) no longer has an installable release.
        format_ = f"exl3 {self.bits:g} bits" if self.checkpoint == "exl3" else self.checkpoint
        facts = {"quantization": format_, "prefix_cache": True, "substitute_for": "ExLlama V1"}
        return facts | checkpoints.method(launch.model)
