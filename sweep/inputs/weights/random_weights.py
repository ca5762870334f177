"""Seeded random weights for a Llama of any size, to measure an architecture's speed without an account or a download.

The generated text is meaningless and soon repeats one token, so agreement, quality and speculative decoding cannot be
judged with it. The best token is always printable text: the output head has zero rows for all other tokens, and the
largest of thousands of random logits is above zero. The bits come from PCG64's raw stream, which NumPy keeps unchanged,
and are rounded once, at the end, so the file is the same anywhere. With one tensor in memory at a time, 7B parameters
need little over a gigabyte.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from huggingface_hub import split_state_dict_into_shards_factory
from numpy.typing import NDArray
from pydantic import PositiveFloat, PositiveInt, model_validator

from sweep.base.config import Strict

Dtype = Literal["bfloat16", "float16", "float32"]
Array = NDArray[Any]
Shape = tuple[int, ...]

WEIGHTS_VERSION = 4  # part of every digest: increase it when the same settings give different weights
DEVIATION = 0.02  # standard deviation of every matrix: the initializer_range in most published configurations
SHARD_BYTES = 5_000_000_000
CHUNK = 1 << 22  # weights drawn at a time


class Architecture(Strict):
    """The dimensions of a Llama, named as in its config.json."""

    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt
    head_dim: PositiveInt
    vocab_size: PositiveInt
    max_position_embeddings: PositiveInt = 2048
    rope_theta: PositiveFloat = 10000.0
    rms_norm_eps: PositiveFloat = 1e-5

    @model_validator(mode="before")
    @classmethod
    def _usual(cls, numbers: Any) -> Any:
        """Fill in the defaults of a config.json: one key-value head per head, and heads that split the hidden size."""
        match numbers:
            case {"hidden_size": int(hidden), "num_attention_heads": int(heads)} if heads > 0:
                return {"num_key_value_heads": heads, "head_dim": hidden // heads, **numbers}
        return numbers

    @model_validator(mode="after")
    def _fits(self) -> "Architecture":
        heads = self.num_attention_heads
        if heads % self.num_key_value_heads:
            raise ValueError(f"num_key_value_heads={self.num_key_value_heads}: expected a divisor of {heads} heads")
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim}: expected an even number, for rotary embedding")
        return self

    @property
    def parameters(self) -> int:
        """The number of weights."""
        return sum(math.prod(shape) for _, shape in shapes(self))


def shapes(architecture: Architecture) -> Iterator[tuple[str, Shape]]:
    """Yield the names and shapes of all tensors, in file order."""
    hidden, ffn, a = architecture.hidden_size, architecture.intermediate_size, architecture
    queries, keys = a.num_attention_heads * a.head_dim, a.num_key_value_heads * a.head_dim
    yield "model.embed_tokens.weight", (a.vocab_size, hidden)
    for layer in range(a.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", (hidden,)
        yield prefix + "self_attn.q_proj.weight", (queries, hidden)
        yield prefix + "self_attn.k_proj.weight", (keys, hidden)
        yield prefix + "self_attn.v_proj.weight", (keys, hidden)
        yield prefix + "self_attn.o_proj.weight", (hidden, queries)
        yield prefix + "post_attention_layernorm.weight", (hidden,)
        yield prefix + "mlp.gate_proj.weight", (ffn, hidden)
        yield prefix + "mlp.up_proj.weight", (ffn, hidden)
        yield prefix + "mlp.down_proj.weight", (hidden, ffn)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (a.vocab_size, hidden)


def tensor(name: str, shape: Shape, seed: int, ordinary: Sequence[int], deviation: float = DEVIATION) -> Array:
    """Return one tensor in float32: ones for norms, uniform numbers with this standard deviation for matrices."""
    if len(shape) == 1:
        return np.ones(shape, np.float32)
    weights = np.empty(math.prod(shape), np.float32)
    scale = np.float32(deviation * math.sqrt(3) / 2**15)  # uniform over +-sqrt(3) deviations
    stream = stream_of(seed, name)
    for begin in range(0, len(weights), CHUNK):
        part = weights[begin : begin + CHUNK]
        np.multiply(draw(stream, len(part)).astype(np.float32) - np.float32(2**15 - 0.5), scale, out=part)
    weights = weights.reshape(shape)
    if name == "lm_head.weight":
        weights[~np.isin(np.arange(shape[0]), ordinary)] = 0
    return weights


def stream_of(seed: int, name: str) -> np.random.PCG64:
    """Return the random stream of one tensor; separate streams keep tensors independent of each other."""
    return np.random.PCG64(int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:16], "little"))


def draw(stream: np.random.PCG64, count: int) -> Array:
    """Draw `count` 16-bit random numbers. (NumPy keeps `random_raw` stable, but not Generator's methods.)"""
    return np.asarray(stream.random_raw(-(-count // 4)), "<u8").view("<u2")[:count]


def encode(weights: Array, dtype: Dtype) -> Array:
    """Return float32 as the bytes of `dtype`, rounded to nearest even; bfloat16 as uint16, which NumPy lacks."""
    if dtype == "float32":
        return weights.astype("<f4", copy=False)
    if dtype == "float16":
        return weights.astype("<f2")
    bits = np.ascontiguousarray(weights, "<f4").view("<u4")
    return np.asarray((bits + (0x7FFF + (bits >> 16 & 1))) >> 16, "<u2")


def write_weights(
    folder: Path,
    architecture: Architecture,
    make: Callable[[str, Shape], Array],
    dtype: Dtype,
    progress: Callable[[int], None] = lambda done: None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write `folder`/model*.safetensors tensor by tensor, with an index if there is more than one file."""
    size = 4 if dtype == "float32" else 2
    tensors: dict[str, Any] = dict(shapes(architecture))
    split = split_state_dict_into_shards_factory(
        tensors,
        get_storage_size=lambda shape: size * math.prod(shape),
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=shard_bytes,
    )
    done = 0
    for file, names in split.filename_to_tensors.items():
        with (folder / file).open("wb") as out:
            out.write(header({name: tensors[name] for name in names}, dtype, size))
            for name in names:
                weights = make(name, tensors[name]).reshape(-1)
                for begin in range(0, len(weights), CHUNK):
                    out.write(encode(weights[begin : begin + CHUNK], dtype).data)
                done += len(weights)
                progress(done)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def header(tensors: dict[str, Shape], dtype: Dtype, size: int) -> bytes:
    """Return the header of a safetensors file; the safetensors library would need all tensors in memory."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in tensors.items():
        end = offset + size * math.prod(shape)
        code = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}[dtype]
        entries[name] = {"dtype": code, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
