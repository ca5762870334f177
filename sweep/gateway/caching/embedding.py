"""The embedder turns a text into a unit vector, so that the dot product of two vectors is their cosine similarity."""

import logging
import math
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]

PIECE_LENGTH = 200  # characters tokenized at once, since the time grows faster than the length
REMEMBERED_WORDS = 16384  # maximum words with cached vectors; when it is reached, the cache is emptied
FIRST_WORDS = 1024  # initial size of the matrix, which grows
LONGEST_REMEMBERED = 40  # maximum characters of a cached word
PART_OF_WORDS = 4096  # characters whose words are added up at once: each word takes a kilobyte meanwhile


class Embedder:
    """Averages wordllama's static token vectors: 256 dimensions, weights included in the package, no torch.

    Threads may share it.
    """

    def __init__(self) -> None:
        handlers, level = list(logging.root.handlers), logging.root.level
        import wordllama

        logging.root.handlers[:] = handlers  # importing it has configured logging for the whole process
        logging.root.setLevel(level)
        # It would search for its bundled tokenizer in the wrong folder and then query a hub, so the folder is set.
        folder = Path(wordllama.__file__).parent
        model = wordllama.WordLlama.load(cache_dir=folder, disable_download=True)
        self._tokenizer, self._vectors = model.tokenizer, np.asarray(model.embedding, np.float32)
        self._tokenizer.no_padding()
        self.dimensions = self._vectors.shape[1]
        self._rows: dict[str, int] = {}  # row of each cached word in `_words`
        self._words = np.empty((FIRST_WORDS, self.dimensions), np.float32)  # the sums of the words' token vectors
        self._lock = threading.Lock()

    def embed(self, text: str) -> Vector:
        """Return the mean of the tokens' vectors.

        No token spans two words, so each word is tokenized separately, and the vectors of earlier words are cached. The
        rows of all tokens are spread over 32 MB, and a CPU cache miss takes longer than all other work.
        """
        total, begin = np.zeros(self.dimensions, np.float32), 0
        while begin <= len(text):
            end = text.find(" ", begin + PART_OF_WORDS)
            end = len(text) if end < 0 else end
            total += self._sum(text[begin:end].split(" "))
            begin = end + 1
        return _unit(total)

    def _sum(self, words: list[str]) -> Vector:
        """Return the sum of the words' vectors."""
        total: Vector
        with self._lock, suppress(KeyError):
            rows = [*map(self._rows.__getitem__, words)]
            total = np.add.reduce(self._words.take(rows, axis=0, mode="clip"))
            return total
        total = np.zeros(self.dimensions, np.float32)
        for word in words:
            total += self._vector(word)
        return total

    def _vector(self, word: str) -> Vector:
        with self._lock, suppress(KeyError):
            remembered: Vector = self._words[self._rows[word]].copy()
            return remembered
        vector: Vector = np.zeros(self.dimensions, np.float32)
        for begin in range(0, len(word), PIECE_LENGTH):
            ids = self._tokenizer.encode(word[begin : begin + PIECE_LENGTH], add_special_tokens=False).ids
            vector += np.add.reduce(self._vectors.take(np.array(ids, np.intp), axis=0, mode="clip"))
        if len(word) <= LONGEST_REMEMBERED:
            with self._lock:
                self._remember(word, vector)
        return vector

    def _remember(self, word: str, vector: Vector) -> None:
        if len(self._rows) == REMEMBERED_WORDS:
            self._rows.clear()
        row = self._rows.setdefault(word, len(self._rows))
        if row == len(self._words):
            self._words = np.concatenate([self._words, np.empty_like(self._words)])
        self._words[row] = vector


def _unit(vector: Vector) -> Vector:
    length = math.sqrt(float(vector @ vector))
    return vector / np.float32(length) if length else vector
