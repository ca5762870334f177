"""Workloads: seeded streams of Requests; here prompts of random words with exact lengths.

The Load sets the timing.

Every prompt begins with a unique prefix, so that prompt caches do not help: any two requests of a trial differ from
their first words on. Prompts depend on the seed, never on the backend. Each random dimension has a separate stream of
raw bits, which NumPy keeps stable across versions: input lengths do not change with output lengths. Tokens are counted
with a `tokenizers.Tokenizer`, including special tokens, as in engines. Without a tokenizer a plain word is treated as
one token, and only the engine's count is recorded.
"""

import hashlib
import math
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import islice
from pathlib import Path
from statistics import NormalDist
from typing import Annotated, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from tokenizers import Tokenizer

from backends.prepare.checkpoints import file_digest
from sweep.base.config import Strict
from sweep.base.records import UNKNOWN, Phase, Request

DATA = Path(__file__).resolve().parent / "data"
WORDS = DATA / "words.txt"
WORKLOAD_VERSION = 2  # part of every digest: increase it when the same configuration gives different prompts
HEADER_WORDS = 4
FEWEST_WORDS = 64  # words that must be single tokens to make prompts of exact length
SPARE_WORDS = 8  # extra words, in case a tokenizer merges some words
ROUNDS = 4  # rounds of cutting and filling until every prompt has its length

Distribution = Literal["uniform", "normal", "lognormal"]
Indices = NDArray[np.int64]


class Encoded(NamedTuple):
    """A prompt and its tokens, including special tokens; the tokens are None if there is no tokenizer."""

    text: str
    ids: list[int] | None


class Draw:
    """Random numbers for the requests in one phase of one trial, with a stream for each purpose.

    `salt` changes only the prefixes: prompts are then new to a cache, but have the same length.
    """

    def __init__(self, seed: int, phase: Phase, count: int, salt: str = "") -> None:
        self.seed, self.phase, self.count, self.salt = seed, phase, count, salt

    def bits(self, purpose: str, count: int) -> NDArray[np.uint64]:
        name = hashlib.sha256(f"{self.seed}/{self.phase}/{purpose}".encode()).digest()[:16]
        return np.asarray(np.random.PCG64(int.from_bytes(name, "little")).random_raw(count), np.uint64)

    def below(self, limit: int, purpose: str, count: int) -> Indices:
        """Return `count` integers in [0, limit)."""
        return (self.bits(purpose, count) % np.uint64(limit)).astype(np.int64)

    def order(self, limit: int, purpose: str) -> Indices:
        """Return a permutation of range(limit)."""
        return np.argsort(self.bits(purpose, limit), kind="stable")

    def fractions(self, purpose: str) -> list[float]:
        """Return one number in (0, 1) per request."""
        return list(((self.bits(purpose, self.count) >> 11) * 2.0**-53 + 2.0**-54).tolist())

    def cycle(self, limit: int, purpose: str) -> Indices:
        """Return an index in [0, limit) for each request: all indices in random order, then again in a new order."""
        rounds = -(-self.count // limit)
        return np.concatenate([self.order(limit, f"{purpose}/{i}") for i in range(rounds)])[: self.count]

    def headers(self, limit: int) -> Indices:
        """Return (count, HEADER_WORDS) indices in [0, limit); no two rows begin with the same two indices."""
        requests, purpose = np.arange(self.count), f"header{self.salt}"
        first = self.order(limit, f"{purpose}/0")[requests % limit]
        second = self.order(limit, f"{purpose}/1")[requests // limit % limit]
        more = [self.below(limit, f"{purpose}/{i}", self.count) for i in range(2, HEADER_WORDS)]
        return np.stack([first, second, *more], axis=1)


class Workload(Strict):
    """The base of all workloads."""

    name: str
    num_requests: int = Field(default=64, gt=0, le=100_000_000)  # measured requests
    warmup_requests: NonNegativeInt | None = None  # extra requests, sent before the measured ones; null: Load.warmup
    ignore_eos: bool = True  # true: every answer has exactly the requested length; false: at most
    temperature: NonNegativeFloat = 0.0  # sampling temperature; 0: greedy decoding
    unique_header: bool = True  # no two prompts begin alike; false: for studies of shared prefixes
    models: dict[str, PositiveFloat] = Field(default_factory=dict)  # name -> weight, e.g. {base: 1, adapter-a: 2}; the
    # model of each request is drawn with the seed; empty: only the trial's model

    @property
    def replays(self) -> bool:
        """Return whether its prompts share the prefixes of recorded prompts, within a session or between sessions."""
        return False

    @property
    def needs_token_ids(self) -> bool:
        return False

    def check_count(self, count: int) -> None:
        """Raise ConfigError if the workload has fewer requests than that, and cannot repeat them."""

    def starts(self, count: int, seed: int = 0) -> Sequence[int]:
        """Return the indices of the requests, among the first `count`, that begin a session."""
        return range(count)

    def longest_gaps(self, count: int, seed: int = 0) -> Sequence[float]:
        """Return for each session the longest sum of gaps along a branch, in s."""
        return [0.0] * count

    def branches(self, count: int, seed: int) -> int:
        """Return the most requests, among the first `count`, that a session has in flight at once."""
        return 1

    def check(self) -> None:
        """Raise ValueError if a file is invalid, in one line that names the key and what was expected."""

    def digest(self, cache_dir: Path) -> str:
        """Return an identifier of the prompts' content. Raises ValueError if it cannot be read."""
        return content_digest()

    def pinned(self, cache_dir: Path) -> Self:
        """Return this workload with its revision resolved to a commit, so that nodes send the planned prompts."""
        return self

    def fetched(self, cache_dir: Path) -> Self:
        """Return this workload after fetching the data that its requests are made from."""
        return self

    def notes(self, cache_dir: Path, tokenizer: Tokenizer | None = None) -> list[str]:
        """Return notes for the plan about the workload's file, e.g. about skipped rows; a tokenizer counts messages."""
        return []

    def meanings(self) -> dict[str, str]:
        """Return the label of each prompt's meaning; equal labels have equal answers. Empty if unknown."""
        return {}

    def longest_request(self, seed: int = 0) -> tuple[int, int]:
        """Return the input and output tokens of the longest request, as far as known without a tokenizer."""
        return getattr(self, "input_tokens", 0), getattr(self, "output_tokens", None) or 0

    def requests(
        self, tokenizer: Tokenizer | None, count: int, seed: int, phase: Phase = "measured", salt: str = ""
    ) -> list[Request]:
        """Return `count` requests that depend only on the arguments. Raises ValueError for an unsuitable tokenizer.

        `salt` changes the unique prefixes, but not their lengths or the text after them.
        """
        if count == 0:
            return []
        draw = Draw(seed, phase, count, salt)
        prompts, outputs = self._draw(draw, tokenizer)
        return [
            Request(f"{phase}-{seed:x}-{number}", text, output, UNKNOWN if ids is None else len(ids), phase, model)
            for number, ((text, ids), output, model) in enumerate(
                zip(prompts, outputs, self._models(draw), strict=True)
            )
        ]

    def priming(self, tokenizer: Tokenizer | None, count: int, seed: int, salt: str = "") -> list[Request]:
        """Return requests that end the warm-up, and with which the engine's cache is to be filled."""
        return []

    def _models(self, draw: Draw) -> Sequence[str | None]:
        if not self.models:
            return [None] * draw.count
        names = sorted(self.models)  # a mapping from a file may have another order
        ends = np.cumsum([self.models[name] for name in names])
        return [names[index] for index in np.searchsorted(ends, np.asarray(draw.fractions("models")) * ends[-1])]

    def _draw(self, draw: Draw, tokenizer: Tokenizer | None) -> tuple[list[Encoded], list[int]]:
        """Return the prompts of a phase, and the lengths of their answers in tokens."""
        raise NotImplementedError


class ExactLengths(Workload):
    """Random plain words with an exact number of tokens."""

    def lengths(self, draw: Draw) -> list[tuple[int, int]]:
        """Return the input and output tokens of each request."""
        raise NotImplementedError

    def _draw(self, draw: Draw, tokenizer: Tokenizer | None) -> tuple[list[Encoded], list[int]]:
        inputs, outputs = map(list, zip(*self.lengths(draw), strict=True))
        return exact_prompts(inputs, draw, tokenizer, self.unique_header), outputs


class Synthetic(ExactLengths):
    """Random plain words with exactly `input_tokens` tokens."""

    input_tokens: PositiveInt
    output_tokens: PositiveInt

    def lengths(self, draw: Draw) -> list[tuple[int, int]]:
        return [(self.input_tokens, self.output_tokens)] * draw.count


class Serving(Synthetic):
    """Like Synthetic, but lengths are drawn at random around `input_tokens` and `output_tokens`.

    uniform: whole numbers within +-`spread` of the mean. normal, lognormal: `spread` is the standard deviation divided
    by the mean; both are truncated, not clipped, to [1, `longest`].
    """

    distribution: Distribution = "uniform"
    spread: Annotated[float, Field(ge=0, le=1)] = 0.4
    longest: PositiveInt | None = None  # maximum tokens of an input or output, to keep a long tail within the context

    def lengths(self, draw: Draw) -> list[tuple[int, int]]:
        inputs = self._around(self.input_tokens, draw.fractions("input_tokens"))
        return list(zip(inputs, self._around(self.output_tokens, draw.fractions("output_tokens")), strict=True))

    def _around(self, mean: int, fractions: Sequence[float]) -> list[int]:
        if self.spread == 0:
            return [mean] * len(fractions)
        if self.distribution == "uniform":
            reach = math.floor(mean * self.spread + 1e-9)  # 365 * 0.4 gives 146 despite binary rounding
            low, high = max(mean - reach, 1), mean + reach
            high = min(high, self.longest or high)
            return [low + int(fraction * (high - low + 1)) for fraction in fractions]
        log, normal = self.distribution == "lognormal", NormalDist(mean, mean * self.spread)
        if log:
            variance = math.log1p(self.spread**2)
            normal = NormalDist(math.log(mean) - variance / 2, math.sqrt(variance))
        ends = (0.5, (self.longest or math.inf) + 0.5)
        lowest, highest = (normal.cdf(math.log(end) if log else end) for end in ends)
        values = [normal.inv_cdf(lowest + fraction * (highest - lowest)) for fraction in fractions]
        return [max(round(math.exp(value) if log else value), 1) for value in values]

    def check(self) -> None:
        for key in ("input_tokens", "output_tokens"):
            if self.longest is not None and self.longest < getattr(self, key):
                raise ValueError(f"workload.longest={self.longest}: expected at least {key}, {getattr(self, key)}")


def exact_prompts(lengths: Sequence[int], draw: Draw, tokenizer: Tokenizer | None, unique: bool) -> list[Encoded]:
    """Return prompts of plain words with exactly `lengths[i]` tokens, including special tokens and a unique prefix."""
    lead, vocabulary, special = ("", _word_list(), 0) if tokenizer is None else _plain_words(tokenizer)
    if min(lengths) <= special:
        allowed = f"at least {special + 1}, since the tokenizer adds {special}"
        raise ValueError(f"workload.input_tokens={min(lengths)}: expected {allowed}")
    sizes = [length - special for length in lengths]
    texts = _word_lists(vocabulary, [size + SPARE_WORDS for size in sizes], draw, unique)
    for _ in range(ROUNDS):
        prompts = encode_prompts(
            [lead + " ".join(text[:size]) for text, size in zip(texts, sizes, strict=True)], tokenizer
        )
        excess = [0 if p.ids is None else len(p.ids) - length for p, length in zip(prompts, lengths, strict=True)]
        if not any(excess):
            return prompts
        sizes = [size - over for size, over in zip(sizes, excess, strict=True)]
        if not all(0 < size <= len(text) for text, size in zip(texts, sizes, strict=True)):
            break
    raise ValueError(
        f"workload.input_tokens={max(lengths)}: not possible with this tokenizer; change the length or tokenizer"
    )


def _word_lists(vocabulary: list[str], sizes: Sequence[int], draw: Draw, unique: bool) -> list[list[str]]:
    indices = iter(draw.below(len(vocabulary), "words", sum(sizes)).tolist())
    lists = [[vocabulary[index] for index in islice(indices, size)] for size in sizes]
    if unique:
        for text, header in zip(lists, draw.headers(len(vocabulary)).tolist(), strict=True):
            text[:HEADER_WORDS] = [vocabulary[index] for index in header]
    return lists


def encode_prompts(texts: list[str], tokenizer: Tokenizer | None) -> list[Encoded]:
    if tokenizer is None:
        return [Encoded(text, None) for text in texts]
    encodings = tokenizer.encode_batch_fast(texts)
    return [Encoded(text, encoding.ids) for text, encoding in zip(texts, encodings, strict=True)]


def _plain_words(tokenizer: Tokenizer) -> tuple[str, list[str], int]:
    """Return the start of prompts, the words that are one token each, and the number of special tokens added.

    Some tokenizers add a space before the first word; otherwise the prompt must begin with a space.
    """
    special = len(tokenizer.encode("").ids)
    best: tuple[str, list[str]] = ("", [])
    for lead in ("", " "):
        encodings = tokenizer.encode_batch_fast([lead + word for word in _word_list()])
        single_tokens = [word for word, e in zip(_word_list(), encodings, strict=True) if len(e.ids) == special + 1]
        best = max(best, (lead, single_tokens), key=lambda pair: len(pair[1]))
    if len(best[1]) < FEWEST_WORDS:
        problem = f"only {len(best[1])} of {len(_word_list())} plain words are single tokens"
        raise ValueError(f"model.tokenizer: {problem}; prompts of exact length need {FEWEST_WORDS}")
    return (*best, special)


def with_headers(texts: Sequence[str], draw: Draw, tokenizer: Tokenizer | None) -> list[str]:
    """Return the texts, each with a unique prefix."""
    lead, vocabulary = header_words(tokenizer)
    headers = [" ".join(vocabulary[i] for i in header) for header in draw.headers(len(vocabulary)).tolist()]
    return [f"{lead}{header}\n\n{text}" for header, text in zip(headers, texts, strict=True)]


def header_words(tokenizer: Tokenizer | None) -> tuple[str, list[str]]:
    """Return the start of a prompt and the words for its prefix. The words are one token each if the tokenizer has
    enough of them, so that prefixes are equally long.
    """
    if tokenizer is not None:
        with suppress(ValueError):
            return _plain_words(tokenizer)[:2]
    return "", _word_list()


@lru_cache(maxsize=1)
def _word_list() -> list[str]:
    return WORDS.read_text().split()


def content_digest(*files: Path) -> str:
    """Return a hash of these files and of all other code and data that prompts are made from."""
    content = [str(WORKLOAD_VERSION), *map(file_digest, (WORDS, *files))]
    return hashlib.sha256(" ".join(content).encode()).hexdigest()[:16]
