"""Answers in memory, found by key or by a similar prompt; the least recently served answers are dropped first."""

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

ENTRY_BYTES, PART_BYTES = 1000, 41  # bytes of an entry's objects besides its answer, and of the object of each part


@dataclass(eq=False)
class Entry:
    """An answer in the cache."""

    key: AnswerKey
    vector: Vector | None  # embedding of its prompt; None if only an equal prompt may get this answer
    answer: KeptAnswer
    stored_at: float  # s since the epoch
    vector_number: int = -1  # number of the vector in the context's index

    @property
    def size(self) -> int:
        """Return the approximate memory use in bytes."""
        vector = 0 if self.vector is None else 2 * self.vector.nbytes
        names = len(self.answer.content_type) + len(self.answer.origin)
        return ENTRY_BYTES + vector + names + sum(len(part) + PART_BYTES for part in self.answer.parts)


class Hit(NamedTuple):
    """An entry that answers a prompt, and the similarity of the two prompts: 1 if they are equal."""

    entry: Entry
    similarity: float
    exact: bool


class NearestVectors:
    """The vectors of one context's prompts in a FAISS index, which compares a prompt with each of them.

    With 10,000 vectors of 256 numbers a search takes 0.4 ms; adding or removing a vector takes no longer. A graph index
    (usearch) searched in 0.2 ms, but took 1.9 ms to add a vector, and missed 1 match in 500.
    """

    def __init__(self, dimensions: int) -> None:
        import faiss  # importing takes 0.4 s, and only a semantic cache needs it

        faiss.omp_set_num_threads(1)  # more threads would spin on the engine's cores
        self._index = faiss.IndexIDMap(faiss.IndexFlatIP(dimensions))
        self._entries: dict[int, Entry] = {}  # entries by the number of their vector in the index
        self._next_number = 0

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, entry: Entry) -> None:
        assert entry.vector is not None
        entry.vector_number, self._next_number = self._next_number, self._next_number + 1
        self._index.add_with_ids(entry.vector[np.newaxis], np.array([entry.vector_number]))
        self._entries[entry.vector_number] = entry

    def remove(self, entry: Entry) -> None:
        del self._entries[entry.vector_number]
        self._index.remove_ids(np.array([entry.vector_number]))  # type: ignore[arg-type]  # faiss takes arrays too

    def nearest(self, vector: Vector, threshold: float) -> tuple[Entry, float] | None:
        """Return the entry with the most similar prompt, and the similarity; None if below the threshold."""
        similarities, numbers = self._index.search(vector[np.newaxis], 1)
        similarity = float(similarities[0, 0])
        return (self._entries[int(numbers[0, 0])], similarity) if similarity > threshold else None


class AnswerCache:
    """Answers by key, up to `capacity` entries and `bytes` in total."""

    def __init__(self, settings: Cache, dimensions: int, clock: Callable[[], float] = time.time) -> None:
        self.settings, self.dimensions, self.clock = settings, dimensions, clock
        self._entries: OrderedDict[AnswerKey, Entry] = OrderedDict()  # entries in order of eviction
        self._size = 0  # bytes
        self._contexts: dict[bytes, NearestVectors] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def same(self, key: AnswerKey) -> Hit | None:
        """Return the answer to an equal prompt, or None."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if self._is_stale(entry):
            self.remove(entry)
            return None
        return self._hit(entry, 1.0, exact=True)

    def similar(self, key: AnswerKey, vector: Vector) -> Hit | None:
        """Return the answer to the most similar prompt in the same context; None if no prompt is similar enough."""
        while vectors := self._contexts.get(key.context):
            if (near := vectors.nearest(vector, self.settings.threshold)) is None:
                return None
            entry, similarity = near
            if not self._is_stale(entry):
                return self._hit(entry, min(similarity, 1.0), exact=False)
            self.remove(entry)
        return None

    def add(self, entry: Entry) -> None:
        """Store an answer; when the cache is full, remove the least recently served answers."""
        if (old := self._entries.get(entry.key)) is not None:
            self.remove(old)  # the new answer takes its key
        if entry.size > self.settings.bytes:
            return
        while len(self._entries) >= self.settings.capacity or self._size + entry.size > self.settings.bytes:
            self.remove(next(iter(self._entries.values())))
        self._entries[entry.key] = entry
        self._size += entry.size
        if entry.vector is not None:
            if entry.key.context not in self._contexts:
                self._contexts[entry.key.context] = NearestVectors(self.dimensions)
            self._contexts[entry.key.context].add(entry)

    def remove(self, entry: Entry) -> None:
        del self._entries[entry.key]
        self._size -= entry.size
        if entry.vector is not None:
            vectors = self._contexts[entry.key.context]
            vectors.remove(entry)
            if not vectors:
                del self._contexts[entry.key.context]

    def clear(self) -> None:
        self._entries.clear()
        self._size = 0
        self._contexts.clear()

    def _is_stale(self, entry: Entry) -> bool:
        return self.settings.ttl is not None and self.clock() - entry.stored_at > self.settings.ttl

    def _hit(self, entry: Entry, similarity: float, exact: bool) -> Hit:
        self._entries.move_to_end(entry.key)
        return Hit(entry, similarity, exact)
