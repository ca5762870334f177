"""CTranslate2's generator, served in-process in static batches, on weights from CTranslate2's converter."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from backends.base import QUEUE, WIDE_FORMATS, Hosted, Launch, cli, metrics
from backends.declarations import FlagRules, LogReading, Traits
from backends.prepare import checkpoints

Quantization = Literal[
    "float32", "float16", "bfloat16", "int8", "int8_float32", "int8_float16", "int8_bfloat16", "int16"
]
FOLDER = "ctranslate2"  # subfolder of the model's folder with the converted weights


class CTranslate2(Hosted):
    """`flags` are arguments of `ctranslate2.Generator`. A launch fails if the device lacks `compute_type`."""

    flag_rules = FlagRules(
        tables=("ctranslate2",),
        set_by={
            "model-path": "model",
            "device": "hardware",
            "device-index": "hardware",
            "compute-type": "backend.compute_type",
        },
    )
    log = LogReading(out_of_memory=(r"mkl_malloc: failed to allocate memory",))
    wire = replace(Hosted.wire, log_probabilities="host")
    traits = Traits(
        distribution="ctranslate2",
        inherits=("CT2_*",),
        most_gpus=1,
        before_ampere="refuses",
        continuous_batching=False,
        beam_search=True,
        quantisations="int8, int16, float16, bfloat16",
    )

    library = "backends.host.libraries.ctranslate2_library"
    quantization: Quantization = "float32"
    compute_type: Quantization | None = None  # None: the stored weights' type
    metric_names: dict[str, str] = metrics("host_", *QUEUE)

    def in_bfloat16(self, dtype: str) -> bool:
        return "bfloat16" in (self.compute_type or self.quantization)

    def flags_on(self, launch: Launch) -> dict[str, Any]:
        ours = {"compute_type": self.compute_type or self.quantization, "intra_threads": launch.threads}
        return {**ours, **super().flags_on(launch)}

    def weights(self, model: Path, python: str, cache_dir: Path, progress: Callable[[str], None]) -> Path:
        """Return a copy of the model's folder with CTranslate2's weights in a subfolder instead of the originals."""

        def convert(folder: Path) -> None:
            output = {"output_dir": folder / FOLDER, "quantization": self.quantization, "low_cpu_mem_usage": True}
            command = [python, "-m", "ctranslate2.converters.transformers", *cli({"model": model, **output})]
            checkpoints.execute(command, "ctranslate2's converter", folder / "conversion.log", progress)

        parameters = {
            "quantization": self.quantization,
            "converter": checkpoints.versions(python, "ctranslate2", "transformers"),
        }
        return checkpoints.converted(model, "ctranslate2", parameters, convert, cache_dir, progress)

    def conversion_obstacle(self, is_quantised: Callable[[], bool | None]) -> str:
        return checkpoints.not_made(f"backend.quantization={self.quantization}", "ctranslate2")

    def coarser(self, launch: Launch) -> str | None:
        formats = (self.quantization, str(self.flags_on(launch)["compute_type"]))
        return next((name for name in formats if name not in WIDE_FORMATS), None)

    def streams_at_once(self) -> int:
        return self.max_batch

    def facts(self, launch: Launch) -> dict[str, Any]:
        compute_type = str(self.flags_on(launch)["compute_type"])
        return {"quantization": self.quantization, "dtype": compute_type, "prefix_cache": False}
