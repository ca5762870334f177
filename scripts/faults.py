"""Plants faults into a copy of a Llama's folder in Hugging Face layout (bfloat16). Each fault makes answers wrong."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from sweep.inputs.weights.random_weights import Array, encode

Fault = Callable[[Path], None]
WINDOW = 24  # tokens that a truncated cache keeps
GROUP = 64  # weights that share a scale


def planted(model: Path, folder: Path, fault: Fault) -> Path:
    """Copy the model to `folder` and plant the fault there."""
    shutil.copytree(model, folder)
    fault(folder)
    return folder


def configured(**changes: Any) -> Fault:
    """Make a fault that changes keys in config.json."""

    def fault(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return fault


def rope_base(folder: Path) -> None:
    configured(rope_theta=10000.0)(folder)


def truncated_cache(folder: Path) -> None:
    """Turn the Llama into a Mistral, which forgets all but the last tokens."""
    configured(model_type="mistral", architectures=["MistralForCausalLM"], sliding_window=WINDOW)(folder)


def swapped_heads(folder: Path) -> None:
    """Swap two query heads of one layer."""
    size = json.loads((folder / "config.json").read_text())["head_dim"]
    with _tensor(folder, "model.layers.8.self_attn.q_proj.weight") as weights:
        first, other = weights[:size].copy(), weights[4 * size : 5 * size].copy()
        weights[:size], weights[4 * size : 5 * size] = other, first


def broken_layer(folder: Path) -> None:
    """Make the MLP of one layer contribute nothing."""
    with _tensor(folder, "model.layers.12.mlp.down_proj.weight") as weights:
        weights[:] = 0


def coarse_weights(folder: Path) -> None:
    """Round all linear layers to the nearest of 16 steps per group, which is a coarser format, not a fault."""
    for name in _entries(folder)[1]:
        if name.endswith("_proj.weight"):
            with _tensor(folder, name) as weights:
                grouped = (weights.astype(np.uint32) << 16).view(np.float32).reshape(-1, GROUP)
                scale = np.maximum(np.abs(grouped).max(1, keepdims=True) / 7, 1e-8)
                rounded = np.clip(np.round(grouped / scale), -8, 7) * scale
                weights[:] = encode(rounded.astype(np.float32), "bfloat16").reshape(weights.shape)


def _entries(folder: Path) -> tuple[int, dict[str, Any]]:
    with (folder / "model.safetensors").open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entries: dict[str, Any] = json.loads(file.read(length))
    entries.pop("__metadata__", None)
    return 8 + length, entries


@contextmanager
def _tensor(folder: Path, name: str) -> Iterator[Array]:
    """Yield a tensor's bfloat16 values as uint16. Changes are written to the file when the block ends."""
    begin, entries = _entries(folder)
    entry = entries[name]
    shape, offset = tuple(entry["shape"]), begin + entry["data_offsets"][0]
    weights = np.memmap(folder / "model.safetensors", np.uint16, "r+", offset, shape)
    yield weights
    weights.flush()
