"""llama.cpp's server, on GGUF files made from the model's weights."""

import json
import re
import subprocess
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from backends.base import Backend, EnvironmentChoice, EnvironmentSpec, Launch, metrics
from backends.declarations import OTHER_CONFIGURATION, FlagRules, LogReading, Traits, Wire
from backends.prepare import checkpoints, environments, locks
from backends.tables.flags import value_of
from backends.tables.table import load
from sweep.base.records import BatchForm

GGUF = "model.gguf"
CONVERTER = EnvironmentChoice(cpu="gguf")  # environment for llama.cpp's converter
CONVERTED = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # the converter's formats; llama-quantize has more
WITHOUT_TOOL = ", ".join(CONVERTED)
# Formats that need an importance matrix are excluded.
# fmt: off
FileType = Literal[
    "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0",
    "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K", "IQ4_NL", "IQ4_XS",
]
# fmt: on

# Flags that serve another model: one of the user's choice, or of llama.cpp's own.
MODEL_SOURCES = ("hf-repo", "hf-file", "model-url", "docker-repo", "models-dir", "models-preset")
PRESETS = [flag for flag in load("llamacpp").flags if re.search(r"(\db|gemma)-(default|spec)$", flag)]


class LlamaCpp(Backend):
    """`flags` are options of `llama-server`. `slots` sequences run together, each with space for a whole context."""

    flag_rules = FlagRules(
        commands=("llama-server",),
        tables=("llamacpp",),
        set_by={
            "model": "model",
            "alias": "model.served_name",
            "port": "backend.port",
            "parallel": "backend.slots",
            "ctx-size": "model.max_model_len and backend.slots",
            "metrics": "backend.metrics_path",
            **dict.fromkeys((*PRESETS, *MODEL_SOURCES), "model"),
            "spec-draft-hf": "backend.flags.spec-draft-model",
            "override-kv": OTHER_CONFIGURATION,
        },
        beyond=("rpc",),  # makes other machines compute
    )
    log = LogReading(
        # "0.00.123.456 E srv    load_model: failed to load …": seconds since its start, level, part.
        prefix=r"^(\d+\.\d\d\.\d{3}\.\d{3} )?([DIWE] )?((srv|slot|que|res|cmn|common_\w+|llama_\w+|main) +)?",
        out_of_memory=(r"(failed|unable) to allocate .*buffer", r"cudaMalloc failed: out of memory"),
        gpus_unused=(r"failed to initialize CUDA", r"no usable GPU found"),
        noise=(r"exiting due to", r"failed to create.context", r"failed to load model($|,? ')"),
        choices={
            "slots": r"\bn_slots = (\d+)",  # flash attention is logged only with a line for every step
            "kv_unified": r"\bkv_unified = '(\w+)'",
            "gpu_layers": r"offloaded (\d+/\d+) layers to GPU",
        },
    )
    wire = Wire(show_ids={"logprobs": 1}, log_probabilities="token_grammar")
    traits = Traits(
        inherits=("GGML_*", "LLAMA_*"),
        continuous_batching=True,
        beam_search=False,
        quantisations="GGUF: Q8_0, Q4_K_M, ...; KV: q8_0, q4_0",
    )

    quantization: FileType = "F16"
    slots: PositiveInt = 16
    stop_grace: PositiveFloat = 1.0  # otherwise it waits until its streams end
    batch_form: BatchForm = "streams"  # it accepts lists, but begins a list's stream with a null event
    # It closes the connection after each stream despite its Keep-Alive header, so the next request would be lost.
    headers: dict[str, str] = Field(default={"Connection": "close"})
    metric_names: dict[str, str] = metrics(
        "llamacpp:",
        requests_running="requests_processing",
        requests_waiting="requests_deferred",
        prefix_cache_hits_total="prompt_tokens_cached_total",
        spec_decode_drafts_total="spec_decode_num_drafts_total",
        spec_decode_draft_tokens_total="spec_decode_num_draft_tokens_total",
        spec_decode_accepted_tokens_total="spec_decode_num_accepted_tokens_total",
    )

    def command(self, launch: Launch) -> list[str]:
        context = launch.max_model_len or model_context(launch.model)
        arguments = {
            "model": str(launch.model / GGUF),
            "alias": launch.served_name,
            "host": launch.host,
            "port": launch.port,
            "parallel": self.slots,
            "ctx-size": self.slots * context,  # llama-server divides this context among its slots
            "threads": launch.threads,
            "threads-batch": launch.threads,
            "seed": launch.seed,
            "metrics": True,
        }
        return [launch.binary or "llama-server", *self.flag_arguments(launch, arguments)]

    def weights(self, model: Path, python: str, cache_dir: Path, progress: Callable[[str], None]) -> Path:
        """Return a folder with model.gguf in this quantization, and the model's config and tokenizer."""
        if self.quantization in CONVERTED:
            return _gguf(model, self.quantization.lower(), cache_dir, progress)
        tool = Path(self.env.binary or python).with_name("llama-quantize")
        if not tool.exists():
            raise ValueError(f"backend.quantization={self.quantization}: needs {tool}; without it: {WITHOUT_TOOL}")

        def quantise(folder: Path) -> None:
            unquantised = _gguf(model, "auto", cache_dir, progress) / GGUF
            command = [str(tool), str(unquantised), str(folder / GGUF), self.quantization, "1"]
            checkpoints.execute(command, "llama-quantize", folder / "conversion.log", progress)

        converter = environments.fingerprint(_converter(cache_dir, progress))
        made_by = {"converter": converter, "tool": checkpoints.file_digest(tool)[:16]}
        parameters = {"quantization": self.quantization, **made_by}
        return checkpoints.converted(model, "gguf", parameters, quantise, cache_dir, progress)

    def conversion_obstacle(self, is_quantised: Callable[[], bool | None]) -> str | None:
        if self.quantization in CONVERTED:
            return None
        return checkpoints.not_made(
            f"backend.quantization={self.quantization}", "llama-quantize", f", or one of {WITHOUT_TOOL}"
        )

    def gpus_unused(self, log: str) -> str | None:
        """Also return a line that reports fewer layers on the GPUs than a flag requests."""
        layers = str(value_of(self.flags_for("cuda"), "gpu-layers"))
        offloaded = re.search(r"offloaded (\d+)/(\d+) layers to GPU", log)
        if offloaded and (layers.isdecimal() or layers == "all"):
            placed, total = map(int, offloaded.groups())
            expected = total if layers == "all" else min(int(layers), total)
            if placed < expected:
                return f"{offloaded[0]}, expected {expected}"
        return super().gpus_unused(log)

    def weight_format(self, launch: Launch) -> str:
        return self.quantization

    def reserved_tokens(self, context: int) -> int:
        return self.slots * context

    def facts(self, launch: Launch) -> dict[str, Any]:
        # In an image the path belongs to the container, and the image's digest identifies the content.
        version, commit = (None, None) if launch.image else _version(launch.binary or "llama-server")
        facts = {
            "dtype": CONVERTED.get(self.quantization, self.quantization),
            "quantization": self.quantization,
            "prefix_cache": self.flags_on(launch).get("no-cache-prompt") is not True,
            "prefix_block": 1,  # it compares single tokens
            "slots": self.slots,
            "max_model_len": launch.max_model_len or model_context(launch.model),
            "engine_commit": commit,
        }
        return {**facts, "engine_version": version} if version else facts


def _converter(cache_dir: Path, progress: Callable[[str], None]) -> EnvironmentSpec:
    return locks.locked(environments.resolve(CONVERTER, "cpu"), cache_dir, progress)


def _gguf(model: Path, kind: str, cache_dir: Path, progress: Callable[[str], None]) -> Path:
    """Return a folder with model.gguf from llama.cpp's converter, whose environment is built if needed."""
    spec = _converter(cache_dir, progress)

    def convert(folder: Path) -> None:
        python = environments.prepare(spec, cache_dir, progress).python
        share = Path(python).parent.parent / "share"
        arguments = {"model": model, "output": folder / GGUF, "type": kind}
        path = (share, share / "gguf-py")
        checkpoints.run(python, "to_gguf", arguments, folder / "conversion.log", progress, path)

    parameters = {"type": kind, "converter": environments.fingerprint(spec)}
    return checkpoints.converted(model, "gguf", parameters, convert, cache_dir, progress)


def model_context(model: Path) -> int:
    """Return the context length of a model, in tokens."""
    config = json.loads((model / "config.json").read_text())
    return int(config.get("text_config", config)["max_position_embeddings"])


@lru_cache
def _version(binary: str) -> tuple[str | None, str | None]:
    """Return a llama-server's ("0.5.0", commit or the builder's text); (None, None) if it does not report these."""
    answer = subprocess.run([binary, "--version"], capture_output=True, text=True)
    match = re.search(r"^version: (\S+)(?: \(build \d+, commit (\S+)\))?", answer.stdout + answer.stderr, re.M)
    return (match[1], match[2]) if match else (None, None)
