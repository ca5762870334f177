"""The answers in memory: by key, and by the nearness of their questions; the oldest or least used make room."""

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sweep.gateway.caching.answer import KeptAnswer
from sweep.gateway.caching.embedding import Vector
from sweep.gateway.caching.keys import AnswerKey
from sweep.gateway.settings import Cache

FIRST_ROWS = 128  # of a matrix that grows, and most of a block
BLOCK_NUMBERS = 9000  # whose product OpenBLAS makes in the calling thread: its limit is 9,216
BOUND_SLACK = 1e-4  # by which a bound may come out too small


@dataclass(eq=False)
class Entry:
    """An answer in the cache."""

    key: AnswerKey
    vector: Vector | None  # of its question; None where only the same question may have it
    answer: KeptAnswer
    stored_at: float  # s since the epoch
    row: int = -1  # of its vector in the context's matrix


class Hit(NamedTuple):
    """An entry that answers a question, and the similarity of the questions; 1 if they are the same."""

    entry: Entry
    similarity: float
    exact: bool


class NearestVectors:
    """The vectors of one context's questions in one matrix: a product with it finds the nearest exactly.

    Of 10,000 vectors of 256 numbers that takes 0.4 ms, most of it to read them. So those are left out that a sketch, a
    quarter of their numbers and the length of the rest, shows to be too far: the product of two sketches is at least
    that of the vectors. A graph index (usearch) took 0.2 ms, but 1.9 ms to add one, and missed some.
    """

    def __init__(self, dimensions: int) -> None:
        self._matrix = np.zeros((FIRST_ROWS, dimensions), np.float32)
        self._sketches = np.zeros((FIRST_ROWS, max(dimensions // 4, 1) + 1), np.float32)
        self.entries: list[Entry] = []

    def add(self, entry: Entry) -> None:
        assert entry.vector is not None
        entry.row = len(self.entries)
        if entry.row == len(self._matrix):
            self._matrix, self._sketches = (
                np.concatenate([each, np.zeros_like(each)]) for each in (self._matrix, self._sketches)
            )
        self._matrix[entry.row] = entry.vector
        self._sketches[entry.row] = self._sketch(entry.vector)
        self.entries.append(entry)

    def remove(self, entry: Entry) -> None:
        """Take an entry out; the last one gets its row."""
        last = self.entries.pop()
        if last is not entry:
            for array in (self._matrix, self._sketches):
                array[entry.row] = array[last.row]
            self.entries[entry.row] = last
            last.row = entry.row
        entry.row = -1

    def nearest(self, vector: Vector, threshold: float) -> tuple[Entry, float] | None:
        """The entry with the most similar question and the similarity, if it exceeds the threshold."""
        count = len(self.entries)
        bounds = _block_products(self._sketches, count, self._sketch(vector))
        rows = np.flatnonzero(bounds > threshold - BOUND_SLACK)
        if not rows.size:
            return None
        similarities = _products(self._matrix[:count] if rows.size > count / 4 else self._matrix[rows], vector)
        best = int(np.argmax(similarities))
        row = best if len(similarities) == count else int(rows[best])
        similarity = float(similarities[best])
        return (self.entries[row], similarity) if similarity > threshold else None

    def _sketch(self, vector: Vector) -> Vector:
        sketch = np.empty(self._sketches.shape[1], np.float32)
        sketch[:-1] = vector[: len(sketch) - 1]
        rest = vector[len(sketch) - 1 :]
        sketch[-1] = math.sqrt(float(rest @ rest))
        return sketch


def _block_products(matrix: Vector, count: int, vector: Vector) -> Vector:
    """The product of each of the first rows of a matrix with a vector, in blocks so small that BLAS starts no threads
    for them: those spin on for milliseconds, on the engine's cores. Twice as fast as `_products`, for short rows."""
    size = matrix.shape[1]
    rows = min(FIRST_ROWS, 1 << max(BLOCK_NUMBERS // size, 1).bit_length() - 1)  # a power of two, as the matrix's rows
    products: Vector = matrix.reshape(-1, rows, size)[: -(-count // rows)] @ vector
    return products.ravel()[:count]


def _products(rows: Vector, vector: Vector) -> Vector:
    """The product of each row with a vector, without BLAS and its threads."""
    products: Vector = np.einsum("ij,j->i", rows, vector)
    return products


class AnswerCache:
    """Answers by key, at most `capacity`."""

    def __init__(self, settings: Cache, dimensions: int, clock: Callable[[], float] = time.time) -> None:
        self.settings, self.dimensions, self.clock = settings, dimensions, clock
        self._entries: OrderedDict[AnswerKey, Entry] = OrderedDict()  # the next to go first
        self._contexts: dict[bytes, NearestVectors] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def same(self, key: AnswerKey) -> Hit | None:
        """The answer to the same question."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if self._is_stale(entry):
            self.remove(entry)
            return None
        return self._hit(entry, 1.0, exact=True)

    def similar(self, key: AnswerKey, vector: Vector) -> Hit | None:
        """The answer to the most similar question of the same context, if it is similar enough."""
        while vectors := self._contexts.get(key.context):
            if (near := vectors.nearest(vector, self.settings.threshold)) is None:
                return None
            entry, similarity = near
            if not self._is_stale(entry):
                return self._hit(entry, min(similarity, 1.0), exact=False)
            self.remove(entry)
        return None

    def add(self, entry: Entry) -> list[Entry]:
        """Keep an answer; returns those that had to go for it."""
        removed = []
        if (old := self._entries.get(entry.key)) is not None:
            self.remove(old)  # its key stays in use
        while len(self._entries) >= self.settings.capacity:
            removed.append(next(iter(self._entries.values())))
            self.remove(removed[-1])
        self._entries[entry.key] = entry
        if entry.vector is not None:
            if entry.key.context not in self._contexts:
                self._contexts[entry.key.context] = NearestVectors(self.dimensions)
            self._contexts[entry.key.context].add(entry)
        return removed

    def remove(self, entry: Entry) -> None:
        del self._entries[entry.key]
        if entry.vector is not None:
            vectors = self._contexts[entry.key.context]
            vectors.remove(entry)
            if not vectors.entries:
                del self._contexts[entry.key.context]

    def clear(self) -> None:
        """Forget all answers."""
        self._entries.clear()
        self._contexts.clear()

    def _is_stale(self, entry: Entry) -> bool:
        return self.settings.ttl is not None and self.clock() - entry.stored_at > self.settings.ttl

    def _hit(self, entry: Entry, similarity: float, exact: bool) -> Hit:
        if self.settings.eviction == "lru":
            self._entries.move_to_end(entry.key)
        return Hit(entry, similarity, exact)
