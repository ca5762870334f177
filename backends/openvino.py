"""OpenVINO GenAI's continuous batching, served in-process, on weights from Optimum's exporter. CPU only."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from backends.base import QUEUE, WIDE_FORMATS, Hosted, Launch, cli, metrics
from backends.declarations import FlagRules, LogReading, Traits
from backends.prepare import checkpoints

FOLDER = "openvino"  # subfolder of the model's folder with the exported weights
WEIGHT_FORMATS = {"float32": "fp32", "float16": "fp16", "int8": "int8", "int4": "int4"}  # the exporter's format names
PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}  # OpenVINO's format names


class OpenVINO(Hosted):
    """`flags` are fields of GenAI's `SchedulerConfig`, `properties` are OpenVINO's device properties."""

    flag_rules = FlagRules(tables=("openvino",), set_by={"properties": "backend.properties"})
    log = LogReading(out_of_memory=(r"Requested cache size is larger than available memory",))
    wire = replace(Hosted.wire, log_probabilities="host")
    traits = Traits(
        distribution="openvino-genai",
        inherits=("OV_*", "ONEDNN_*"),
        reserves_memory=True,
        continuous_batching=True,
        beam_search=True,
        quantisations="int8, int4; KV: u8",
    )

    library = "backends.host.libraries.openvino_library"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    quantization: Literal["float32", "float16", "int8", "int4"] = "float32"
    properties: dict[str, Any] = Field(default_factory=dict)  # device properties, named in capitals
    metric_names: dict[str, str] = metrics("host_", "kv_cache_usage", *QUEUE)

    def flags_on(self, launch: Launch) -> dict[str, Any]:
        formats = dict.fromkeys(("INFERENCE_PRECISION_HINT", "KV_CACHE_PRECISION"), PRECISIONS[self.dtype])
        properties = {"INFERENCE_NUM_THREADS": launch.threads, **formats, **self.properties}
        return {**super().flags_on(launch), "properties": properties}

    def weights(self, model: Path, python: str, cache_dir: Path, progress: Callable[[str], None]) -> Path:
        """Return the model's folder without its weights, with a subfolder in OpenVINO's format."""

        def export(folder: Path) -> None:
            command = [python, "-m", "optimum.commands.optimum_cli", "export", "openvino", str(folder / FOLDER)]
            options = {"model": model, "task": "text-generation-with-past", "disable-convert-tokenizer": True}
            if self.quantization == "int4":
                options["group-size-fallback"] = "adjust"  # used if a layer's columns are not a multiple of 128
            command += cli({**options, "weight-format": WEIGHT_FORMATS[self.quantization]})
            checkpoints.execute(command, "Optimum's exporter", folder / "conversion.log", progress)

        made_by = checkpoints.versions(python, "optimum-intel", "openvino", "nncf", "transformers")
        parameters = {"quantization": self.quantization, "converter": made_by}
        return checkpoints.converted(model, "openvino", parameters, export, cache_dir, progress)

    def conversion_obstacle(self, is_quantised: Callable[[], bool | None]) -> str:
        return checkpoints.not_made(f"backend.quantization={self.quantization}", "optimum-intel")

    def coarser(self, launch: Launch) -> str | None:
        properties = self.flags_on(launch)["properties"]
        caches = [str(format_) for name, format_ in properties.items() if name.endswith("_CACHE_PRECISION")]
        return next((name for name in (self.quantization, *caches) if name not in WIDE_FORMATS), None)

    def facts(self, launch: Launch) -> dict[str, Any]:
        cached = bool(self.flags_on(launch).get("enable_prefix_caching"))
        return {"quantization": self.quantization, "dtype": self.dtype, "prefix_cache": cached}
