"""Faults planted into a copy of a Llama's folder in Hugging Face layout (bfloat16): each makes its answers wrong."""

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
    """A copy of the model in `folder` with the fault in it."""
    shutil.copytree(model, folder)
    fault(folder)
    return folder


def configured(**changes: Any) -> Fault:
    """Other keys in config.json."""

    def fault(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return fault


def rope_base(folder: Path) -> None:
    configured(rope_theta=10000.0)(folder)


def truncated_cache(folder: Path) -> None:
    """Mistral is a Llama that forgets all but the last tokens."""
    configured(model_type="mistral", architectures=["MistralForCausalLM"], sliding_window=WINDOW)(folder)


def swapped_heads(folder: Path) -> None:
    """Two query heads of one layer change places."""
    size = json.loads((folder / "config.json").read_text())["head_dim"]
    with _tensor(folder, "model.layers.8.self_attn.q_proj.weight") as weights:
        first, other = weights[:size].copy(), weights[4 * size : 5 * size].copy()
        weights[:size], weights[4 * size : 5 * size] = other, first


def broken_layer(folder: Path) -> None:
    """The MLP of one layer adds nothing."""
    with _tensor(folder, "model.layers.12.mlp.down_proj.weight") as weights:
        weights[:] = 0


def coarse_weights(folder: Path) -> None:
    """All linear layers rounded to the nearest of 16 steps in groups: a format, not a fault."""
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
    """A tensor's bfloat16 as uint16, changed in the file when the block ends."""
    begin, entries = _entries(folder)
    entry = entries[name]
    shape, offset = tuple(entry["shape"]), begin + entry["data_offsets"][0]
    weights = np.memmap(folder / "model.safetensors", np.uint16, "r+", offset, shape)
    yield weights
    weights.flush()
