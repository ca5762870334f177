"""Seeded random weights of a Llama whose greedy text is long, aperiodic, wide-margined and decided by its context.

Plain random weights soon repeat one token, and their best logits lie closer together than bf16 rounding: engines would
seem to disagree at random, and speculation would seem to work. Here every weight is random too, but over the noise lies
a small circuit in exact arithmetic of +1 and -1, one step of it in each layer:

- Each token has an id of `bits` bits, and that id's codeword in a random linear code of `width` signs. The elementwise
  product of two codewords is the codeword of the exclusive or of their ids, and any two differ in many places.
- The residual stream holds the token's codeword twice (BASE, which stays, and STATE), an empty block (FETCHED) and in
  all other dimensions a constant pattern of signs; BOS has another pattern, by which it is known.
- In layer l one attention head fetches the BASE of the token `lookbacks[l]` positions ago. Its queries and keys are
  constant, so that rotary embedding alone makes their product peak there. BOS scores halfway between the peak and the
  next best position: it is what is fetched where the text is still too short, and its codeword is all +1.
  The MLP multiplies STATE by FETCHED and empties FETCHED; silu(z) - silu(-z) = z makes a gated unit an exact product.
- The output head holds a permuted codeword for each of 2^bits ordinary tokens: next = P(id[0] ^ id[-1] ^ id[-5] ^ ...),
  a rolling hash of the context through a random permutation. Other tokens (special ones, those the tokenizer does not
  know, pieces that are no text) have a logit far below: they are never generated, nor is EOS.

So one wrong fetch in any layer, from a wrong cache, mask or position, changes all the tokens that follow. Only what
lies more than the longest lookback behind is not seen.

The bits come from PCG64's raw stream, which NumPy keeps unchanged, and are rounded once, at the end: the same file on
any machine. One tensor is in memory at a time, so 7B parameters need little more than a gigabyte.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt, model_validator

Dtype = Literal["bfloat16", "float16", "float32"]
Array = NDArray[Any]

WEIGHTS_VERSION = 3  # part of every digest: raise it when the same numbers come to other weights
MAX_WIDTH = 64  # signs in a codeword
MAX_BITS = 11  # of a token's id
UNITS = 4  # of the MLP, per sign of a codeword
CONSTANT_GATE = -2.0  # where silu falls: a stream that is too loud then damps STATE, or else errors would build up
LOOKBACKS = (1, 5, 25, 125)  # tokens, of the first layers; the others look back over the numbers between
NOISE = 0.05  # standard deviation of what all random weights together add to a residual dimension; the signal is 1
CIRCUIT_NOISE = 0.005  # the same inside the circuit's own rows
FALLBACK_NATS = 8.0  # by which BOS outscores the wrong positions, and the right position outscores BOS
TOP_LOGIT = 16.0
SHARD_BYTES = 5_000_000_000
CHUNK = 1 << 22  # weights drawn at a time


class Architecture(BaseModel):
    """The numbers of a Llama, under the names they have in its config.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

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
        """Fill in defaults of a config.json: one key-value head per head, and heads that share the hidden size."""
        match numbers:
            case {"hidden_size": int(hidden), "num_attention_heads": int(heads)} if heads > 0:
                return {"num_key_value_heads": heads, "head_dim": hidden // heads, **numbers}
        return numbers

    @model_validator(mode="after")
    def _fits(self) -> "Architecture":
        heads, smallest = self.num_attention_heads, 4 * self.width
        if heads % self.num_key_value_heads:
            raise ValueError(f"num_key_value_heads={self.num_key_value_heads}: allowed is a divisor of {heads} heads")
        if self.head_dim < 32 or self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim}: allowed is an even number of at least 32")
        if self.hidden_size < smallest or self.hidden_size % 2:
            raise ValueError(f"hidden_size={self.hidden_size}: allowed is an even number of at least {smallest}")
        if self.intermediate_size < UNITS * self.width:
            raise ValueError(f"intermediate_size={self.intermediate_size}: allowed is at least {UNITS * self.width}")
        return self

    @property
    def width(self) -> int:
        """Signs in a codeword: one head carries it."""
        return min(MAX_WIDTH, self.head_dim)

    @property
    def parameters(self) -> int:
        """The number of weights."""
        return sum(math.prod(shape) for _, shape in shapes(self))


class Vocabulary(NamedTuple):
    """The properties of the tokenizer that the weights depend on."""

    ordinary: Sequence[int]  # ids of tokens that are printable text: what may be generated
    bos: int


def shapes(architecture: Architecture) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of all tensors, in the order of the file."""
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


def lookbacks(layers: int) -> list[int]:
    """The distance in tokens that each layer fetches from: all different, as a token fetched twice would cancel out."""
    more = (distance for distance in range(2, layers + len(LOOKBACKS) + 2) if distance not in LOOKBACKS)
    return [*LOOKBACKS[:layers], *more][:layers]


class Circuit:
    """The structured part of the weights, as blocks to be laid over the noise."""

    def __init__(self, architecture: Architecture, vocabulary: Vocabulary, seed: int) -> None:
        self.architecture = architecture
        self.vocabulary = vocabulary
        self.seed = seed
        self.bits = min(MAX_BITS, int(math.log2(len(vocabulary.ordinary))))
        width, hidden = architecture.width, architecture.hidden_size
        self.base, self.state, self.fetched = (slice(i * width, (i + 1) * width) for i in range(3))
        self.rest = slice(3 * width, hidden)
        self.pattern = self._signs("pattern", hidden - 3 * width)
        self.bos_pattern = self.pattern * (1.0 - 2.0 * (np.arange(hidden - 3 * width) % 2))  # orthogonal to pattern
        self.before_attention = math.sqrt((hidden - width) / hidden)  # rms of the stream while FETCHED is empty

    def _signs(self, name: str, count: int) -> Array:
        return 1.0 - 2.0 * (_raw(self.seed, name, count) & 1)

    def _order(self, name: str, count: int) -> Array:
        """A random permutation of range(count)."""
        order: Array = np.argsort(_raw(self.seed, name, 4 * count).view("<u8"), kind="stable")
        return order

    @cached_property
    def code(self) -> Array:
        """Codewords as signs, (2^bits, width): of 64 random linear codes the one with the largest distance."""
        width = self.architecture.width
        ids = np.arange(2**self.bits)[:, None] >> np.arange(self.bits) & 1
        bits = _raw(self.seed, "code", 64 * self.bits * width).astype(np.int64) & 1
        codewords = (ids @ generator % 2 for generator in bits.reshape(64, self.bits, width))
        return 1.0 - 2.0 * max(codewords, key=lambda word: int(word[1:].sum(axis=1).min()))

    @cached_property
    def distance(self) -> int:
        """Places in which two codewords differ at the least."""
        return int((self.code[1:] < 0).sum(axis=1).min())

    @cached_property
    def outputs(self) -> Array:
        """Token that the head gives for each id, (2^bits,)."""
        ordinary = np.asarray(self.vocabulary.ordinary)
        return ordinary[self._order("outputs", len(ordinary))[: 2**self.bits]]

    @cached_property
    def ids(self) -> Array:
        """Id of each token as it is read, (vocab_size,): those that can be generated have one of their own."""
        ids: Array = _raw(self.seed, "ids", self.architecture.vocab_size).astype(np.int64) % 2**self.bits
        ids[self.outputs] = self._order("inputs", 2**self.bits)
        ids[self.vocabulary.bos] = 0  # whose codeword is all +1: fetching it changes nothing
        return ids

    @cached_property
    def heights(self) -> tuple[Array, float]:
        """Score that each rotary frequency adds at the peak, (head_dim/2,), and BOS's score, before the softmax.

        Weighted by frequency the peak is narrow; the slowest frequency tells BOS, wherever it is.
        """
        a = self.architecture
        frequencies = a.rope_theta ** (-np.arange(a.head_dim // 2) / (a.head_dim // 2))
        weights = frequencies.copy()
        weights[-1] = 0
        weights /= weights.sum()
        distances = np.arange(1, max(a.max_position_embeddings, 2))
        next_best = float(np.max(np.cos(np.outer(distances, frequencies)) @ weights))
        peak = 2 * FALLBACK_NATS / (1 - next_best)
        return peak * weights, peak - FALLBACK_NATS

    def lay(self, name: str, weights: Array) -> None:
        """Overwrite this circuit's part of the tensor `name`, and quieten the noise in its rows."""
        parts = name.split(".")
        match parts[-2]:
            case "embed_tokens":
                self._embedding(weights)
            case "q_proj":
                self._queries(weights, lookbacks(self.architecture.num_hidden_layers)[int(parts[2])])
            case "k_proj":
                self._keys(weights)
            case "v_proj":
                self._quiet(weights, self.architecture.width)[:, self.base] = self._identity(self.before_attention)
            case "o_proj":
                weights[self.fetched, : self.architecture.width] = self._identity()
            case "gate_proj":
                self._gate(weights)
            case "up_proj":
                self._up(weights)
            case "down_proj":
                self._down(weights)
            case "lm_head":
                self._head(weights)

    def _identity(self, scale: float = 1.0) -> Array:
        return scale * np.eye(self.architecture.width)

    def _quiet(self, weights: Array, rows: int) -> Array:
        """The first rows, which the circuit reads with."""
        weights[:rows] *= CIRCUIT_NOISE
        return weights[:rows]

    def _read(self, *patterns: Array) -> Array:
        """Weights over the rest of the stream that give 1 where one of the patterns is there."""
        total: Array = np.sum(patterns, axis=0) / len(self.pattern)
        return total

    @property
    def _always(self) -> Array:
        return self._read(self.pattern, self.bos_pattern)

    def _embedding(self, weights: Array) -> None:
        weights[:, self.base] += self.code[self.ids]
        weights[:, self.state] += self.code[self.ids]
        weights[:, self.rest] += self.pattern
        weights[self.vocabulary.bos, self.rest] += self.bos_pattern - self.pattern

    def _queries(self, weights: Array, lookback: int) -> None:
        """Rotated back by `lookback` positions, so that keys of that distance are met at angle zero."""
        half = self.architecture.head_dim // 2
        heights, bos = self.heights
        lengths = np.sqrt(heights * math.sqrt(2 * half))
        angles = lookback * self.architecture.rope_theta ** (-np.arange(half) / half)
        amplitudes = np.concatenate([lengths * np.cos(angles), -lengths * np.sin(angles)])
        amplitudes[half - 1] = math.sqrt(bos * math.sqrt(2 * half))
        amplitudes[-1] = 0
        rows = self._quiet(weights, 2 * half)
        rows[:, self.rest] = self.before_attention * np.outer(_steady(amplitudes), self._always)

    def _keys(self, weights: Array) -> None:
        half = self.architecture.head_dim // 2
        heights, bos = self.heights
        lengths = _steady(np.sqrt(np.append(heights[:-1], bos) * math.sqrt(2 * half)))
        rows = self._quiet(weights, 2 * half)
        rows[: half - 1, self.rest] = self.before_attention * np.outer(lengths[:-1], self._read(self.pattern))
        rows[half - 1, self.rest] = self.before_attention * lengths[-1] * self._read(self.bos_pattern)
        rows[half:, self.rest] = 0

    # The MLP's first units, in four blocks of `width`: FETCHED * STATE twice, with the gate's sign both ways, then
    # STATE and FETCHED by a constant gate. No row mixes weights of different sizes: 4 bits can hold them.

    def _gate(self, weights: Array) -> None:
        rows = self._units(weights)
        rows[0, :, self.fetched] = self._identity()
        rows[1, :, self.fetched] = self._identity(-1)
        rows[2:, :, self.rest] = CONSTANT_GATE * self._always

    def _up(self, weights: Array) -> None:
        rows = self._units(weights)
        gain = float(_steady((1 + math.exp(-CONSTANT_GATE)) / -CONSTANT_GATE))  # the constant gate then gives -1
        rows[:2, :, self.state] = self._identity()
        rows[2, :, self.state] = rows[3, :, self.fetched] = self._identity(gain)

    def _down(self, weights: Array) -> None:
        """STATE += FETCHED * STATE - STATE, FETCHED -= FETCHED."""
        width = self.architecture.width
        for block, (rows, sign) in enumerate(((self.state, 1), (self.state, -1), (self.state, 1), (self.fetched, 1))):
            weights[rows, block * width : (block + 1) * width] = self._identity(sign)

    def _units(self, weights: Array) -> Array:
        width = self.architecture.width
        return self._quiet(weights, UNITS * width).reshape(UNITS, width, -1)

    def _head(self, weights: Array) -> None:
        scale = TOP_LOGIT / self.architecture.width
        weights[:, self.rest] -= TOP_LOGIT / 2 * self._always
        weights[self.outputs, self.rest] += TOP_LOGIT / 2 * self._always
        weights[self.outputs, self.state] += scale * self.code


def _steady(values: Array | float) -> Array:
    """Rounded, so that mathematical libraries that differ in the last digit give the same weights."""
    rounded: Array = np.round(np.asarray(values) * 2**12) / 2**12
    return rounded


def noise_scale(name: str, architecture: Architecture) -> float:
    """Standard deviation of the random part of a tensor, so that what it adds to the stream is NOISE in all."""
    share = NOISE / math.sqrt(2 * architecture.num_hidden_layers)
    match name.split(".")[-2]:
        case "embed_tokens":
            return CIRCUIT_NOISE
        case "lm_head":
            return CIRCUIT_NOISE * TOP_LOGIT / architecture.width
        case "o_proj":
            return share / math.sqrt(architecture.num_attention_heads * architecture.head_dim)
        case "down_proj":
            return share / math.sqrt(architecture.intermediate_size)
    return 1 / math.sqrt(architecture.hidden_size)


def tensor(name: str, shape: tuple[int, ...], architecture: Architecture, circuit: Circuit, seed: int) -> Array:
    """One tensor in float32; norms are all ones."""
    if len(shape) == 1:
        return np.ones(shape, np.float32)
    weights = np.empty(math.prod(shape), np.float32)
    scale = np.float32(noise_scale(name, architecture) * math.sqrt(3) / 2**15)  # uniform over +-sqrt(3) deviations
    stream = _stream(seed, name)
    for begin in range(0, len(weights), CHUNK):
        part = weights[begin : begin + CHUNK]
        np.multiply(_draw(stream, len(part)).astype(np.float32) - np.float32(2**15 - 0.5), scale, out=part)
    weights = weights.reshape(shape)
    circuit.lay(name, weights)
    return weights


def _stream(seed: int, name: str) -> np.random.PCG64:
    """A stream of its own for each tensor, so that none depends on the order or the size of another."""
    return np.random.PCG64(int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:16], "little"))


def _draw(stream: np.random.PCG64, count: int) -> Array:
    """16 random bits each. (`random_raw` is what NumPy promises to keep; the methods of Generator are not.)"""
    bits: Array = stream.random_raw(-(-count // 4)).astype("<u8", copy=False).view("<u2")[:count]
    return bits


def _raw(seed: int, name: str, count: int) -> Array:
    return _draw(_stream(seed, f"circuit/{name}"), count)


def encode(weights: Array, dtype: Dtype) -> Array:
    """Float32 as the bytes of `dtype`, rounded to nearest even; bfloat16 as uint16, since NumPy has none."""
    if dtype == "float32":
        return weights.astype("<f4", copy=False)
    if dtype == "float16":
        return weights.astype("<f2")
    bits = np.ascontiguousarray(weights, "<f4").view("<u4")
    rounded: Array = (bits + (0x7FFF + (bits >> 16 & 1))) >> 16
    return rounded.astype("<u2")


def write_weights(
    folder: Path,
    architecture: Architecture,
    vocabulary: Vocabulary,
    seed: int,
    dtype: Dtype,
    progress: Callable[[int], None] = lambda done: None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write `folder`/model*.safetensors, tensor by tensor, with an index when there is more than one file.

    `progress` is called with the number of weights written so far.
    """
    circuit = Circuit(architecture, vocabulary, seed)
    size = 4 if dtype == "float32" else 2
    files = _shards(list(shapes(architecture)), shard_bytes // size)
    places: dict[str, str] = {}
    done = 0
    for number, tensors in enumerate(files, 1):
        file = "model.safetensors" if len(files) == 1 else f"model-{number:05}-of-{len(files):05}.safetensors"
        with (folder / file).open("wb") as out:
            out.write(_header(tensors, dtype, size))
            for name, shape in tensors:
                weights = tensor(name, shape, architecture, circuit, seed).reshape(-1)
                for begin in range(0, len(weights), CHUNK):
                    out.write(encode(weights[begin : begin + CHUNK], dtype).data)
                done += len(weights)
                places[name] = file
                progress(done)
    if len(files) > 1:
        index = {"metadata": {"total_size": done * size}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def _shards(tensors: list[tuple[str, tuple[int, ...]]], limit: int) -> list[list[tuple[str, tuple[int, ...]]]]:
    """Tensors in files of at most `limit` weights each."""
    files, room = [[tensors[0]]], limit - math.prod(tensors[0][1])
    for name, shape in tensors[1:]:
        room -= math.prod(shape)
        if room < 0:
            files.append([])
            room = limit - math.prod(shape)
        files[-1].append((name, shape))
    return files


def _header(tensors: list[tuple[str, tuple[int, ...]]], dtype: Dtype, size: int) -> bytes:
    """The header of a safetensors file; written here because the library needs all tensors in memory at once."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in tensors:
        end = offset + size * math.prod(shape)
        code = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}[dtype]
        entries[name] = {"dtype": code, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
