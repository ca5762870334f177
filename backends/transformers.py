"""Hugging Face transformers in its simplest use, as the baseline: `model.generate` on left-padded static batches."""

from dataclasses import replace
from typing import Any

from backends.base import Hosted, Launch
from backends.declarations import OTHER_CONFIGURATION, FlagRules, LogReading, Traits


class Transformers(Hosted):
    """`dtype` and `flags` are arguments of `from_pretrained`, e.g. quantization_config. A prompt list is one batch."""

    flag_rules = FlagRules(
        set_by={
            "dtype": "backend.dtype",
            "torch-dtype": "backend.dtype",
            "device-map": "hardware",
            "revision": "model.revision",
            "config": OTHER_CONFIGURATION,
            **dict.fromkeys(("pretrained-model-name-or-path", "gguf-file", "subfolder", "state-dict"), "model"),
        }
    )
    # bitsandbytes logs a missing faster kernel as an error and continues.
    log = LogReading(noise=(r"Failed to load CPU gemm_4bit_forward",))
    wire = replace(Hosted.wire, log_probabilities="host")
    traits = Traits(
        distribution="transformers",
        inherits=("TRANSFORMERS_*", "BNB_*", "BITSANDBYTES_*"),
        most_gpus=1,
        continuous_batching=False,
        beam_search=True,
        quantisations="bitsandbytes int8, nf4, fp4",
    )

    library = "backends.host.libraries.transformers_library"

    def in_bfloat16(self, dtype: str) -> bool:
        config = self.flags.get("quantization_config") or {}
        return super().in_bfloat16(dtype) or config.get("bnb_4bit_compute_dtype") == "bfloat16"

    def streams_at_once(self) -> int:
        return self.max_batch

    def facts(self, launch: Launch) -> dict[str, Any]:
        config = self.flags_on(launch).get("quantization_config") or {}
        quantization = config.get("quant_method")
        if config.get("load_in_8bit"):
            quantization = "bitsandbytes int8"
        if config.get("load_in_4bit"):
            quantization = f"bitsandbytes {config.get('bnb_4bit_quant_type', 'fp4')}"
        return {"quantization": quantization}
