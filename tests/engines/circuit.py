"""A model for tests of engines: its greedy text is long, aperiodic, wide-margined and decided by its context.

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
"""

import hashlib
import json
import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from backends.prepare.build_once import build_once
from sweep.inputs.model import RandomModel
from sweep.inputs.tokenizer import load_tokenizer, ordinary_tokens
from sweep.inputs.weights.random_weights import Architecture, Array, Shape, draw, stream_of, tensor, write_weights

MAX_WIDTH = 64  # signs in a codeword
MAX_BITS = 11  # of a token's id
UNITS = 4  # of the MLP, per sign of a codeword
CONSTANT_GATE = -2.0  # where silu falls: a stream that is too loud then damps STATE, or else errors would build up
LOOKBACKS = (1, 5, 25, 125)  # tokens, of the first layers; the others look back over the numbers between
NOISE = 0.05  # standard deviation of what all random weights together add to a residual dimension; the signal is 1
CIRCUIT_NOISE = 0.005  # the same inside the circuit's own rows
FALLBACK_NATS = 8.0  # by which BOS outscores the wrong positions, and the right position outscores BOS
TOP_LOGIT = 16.0
BOS = 0


def lookbacks(layers: int) -> list[int]:
    """How many tokens ago each layer fetches: all different, as a token fetched twice would cancel out."""
    more = (distance for distance in range(2, layers + len(LOOKBACKS) + 2) if distance not in LOOKBACKS)
    return [*LOOKBACKS[:layers], *more][:layers]


class Circuit:
    """The structured part of the weights, as blocks to be laid over the noise."""

    def __init__(self, architecture: Architecture, ordinary: Sequence[int], seed: int) -> None:
        self.architecture = architecture
        self.ordinary = ordinary
        self.width = min(MAX_WIDTH, architecture.head_dim)  # signs in a codeword: one head carries it
        self.seed = seed
        self.bits = min(MAX_BITS, int(math.log2(len(ordinary))))
        width, hidden = self.width, architecture.hidden_size
        self.base, self.state, self.fetched = (slice(i * width, (i + 1) * width) for i in range(3))
        self.rest = slice(3 * width, hidden)
        self.pattern = self._signs("pattern", hidden - 3 * width)
        self.bos_pattern = self.pattern * (1.0 - 2.0 * (np.arange(hidden - 3 * width) % 2))  # orthogonal to pattern
        self.before_attention = math.sqrt((hidden - width) / hidden)  # rms of the stream while FETCHED is empty

    def _signs(self, name: str, count: int) -> Array:
        return 1.0 - 2.0 * (_raw(self.seed, name, count) & 1)

    def _order(self, name: str, count: int) -> Array:
        order: Array = np.argsort(_raw(self.seed, name, 4 * count).view("<u8"), kind="stable")
        return order

    @cached_property
    def code(self) -> Array:
        """Codewords as signs, (2^bits, width): of 64 random linear codes the one with the largest distance."""
        width = self.width
        ids = np.arange(2**self.bits)[:, None] >> np.arange(self.bits) & 1
        drawn = _raw(self.seed, "code", 64 * self.bits * width).astype(np.int64) & 1
        words = (ids @ generator % 2 for generator in drawn.reshape(64, self.bits, width))
        return 1.0 - 2.0 * max(words, key=lambda word: int(word[1:].sum(axis=1).min()))

    @cached_property
    def distance(self) -> int:
        return int((self.code[1:] < 0).sum(axis=1).min())

    @cached_property
    def outputs(self) -> Array:
        ordinary = np.asarray(self.ordinary)
        return ordinary[self._order("outputs", len(ordinary))[: 2**self.bits]]

    @cached_property
    def ids(self) -> Array:
        """Id of each token as it is read, (vocab_size,): those that can be generated have one of their own."""
        ids: Array = _raw(self.seed, "ids", self.architecture.vocab_size).astype(np.int64) % 2**self.bits
        ids[self.outputs] = self._order("inputs", 2**self.bits)
        ids[BOS] = 0  # whose codeword is all +1: fetching it changes nothing
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
                self._quiet(weights, self.width)[:, self.base] = self._identity(self.before_attention)
            case "o_proj":
                weights[self.fetched, : self.width] = self._identity()
            case "gate_proj":
                self._gate(weights)
            case "up_proj":
                self._up(weights)
            case "down_proj":
                self._down(weights)
            case "lm_head":
                self._head(weights)

    def _identity(self, scale: float = 1.0) -> Array:
        return scale * np.eye(self.width)

    def _quiet(self, weights: Array, rows: int) -> Array:
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
        weights[BOS, self.rest] += self.bos_pattern - self.pattern

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
        width = self.width
        for block, (rows, sign) in enumerate(((self.state, 1), (self.state, -1), (self.state, 1), (self.fetched, 1))):
            weights[rows, block * width : (block + 1) * width] = self._identity(sign)

    def _units(self, weights: Array) -> Array:
        width = self.width
        return self._quiet(weights, UNITS * width).reshape(UNITS, width, -1)

    def _head(self, weights: Array) -> None:
        scale = TOP_LOGIT / self.width
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
            return CIRCUIT_NOISE * TOP_LOGIT / min(MAX_WIDTH, architecture.head_dim)
        case "o_proj":
            return share / math.sqrt(architecture.num_attention_heads * architecture.head_dim)
        case "down_proj":
            return share / math.sqrt(architecture.intermediate_size)
    return 1 / math.sqrt(architecture.hidden_size)


def _raw(seed: int, name: str, count: int) -> Array:
    return draw(stream_of(seed, f"circuit/{name}"), count)


def prepared(model: RandomModel, cache: Path) -> Path:
    """The folder of this model under `cache` with the circuit laid over its weights, made by one process at a time."""
    plain = model.prepare(cache, print)
    stamp = hashlib.sha256((plain.name + Path(__file__).read_text()).encode()).hexdigest()[:16]

    def build(partial: Path) -> None:
        partial.mkdir()
        ordinary = ordinary_tokens(load_tokenizer(plain))
        circuit = Circuit(model.architecture, ordinary, model.seed)

        def make(name: str, shape: Shape) -> Array:
            weights = tensor(name, shape, model.seed, range(shape[0]), noise_scale(name, model.architecture))
            circuit.lay(name, weights)
            return weights

        for path in plain.iterdir():
            if path.suffix == ".json":
                (partial / path.name).write_bytes(path.read_bytes())
        write_weights(partial, model.architecture, make, json.loads((plain / "config.json").read_text())["torch_dtype"])

    return build_once(cache / "models" / f"circuit-{stamp}", build, "circuit", print)
