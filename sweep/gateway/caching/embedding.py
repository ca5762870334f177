"""The embedder turns a text into a unit vector, so that the dot product of two vectors is their cosine similarity."""

import logging
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]

PIECE_LENGTH = 200  # characters tokenized at once, since the time grows faster than the length
REMEMBERED_WORDS = 16384  # maximum words with cached vectors; when it is reached, the cache is emptied
FIRST_WORDS = 1024  # initial size of the matrix, which grows
LONGEST_REMEMBERED = 40  # maximum characters of a cached word


class Embedder:
    """Averages wordllama's static token vectors: 256 dimensions, weights included in the package, no torch.

    It must be called from one thread at a time, but not always the same thread.
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

    def embed(self, text: str) -> Vector:
        """Return the mean of the tokens' vectors.

        No token spans two words, so each word is tokenized separately, and the vectors of earlier words are cached. The
        rows of all tokens are spread over 32 MB, and a CPU cache miss takes longer than all other work.
        """
        words = text.split(" ")
        total: Vector
        try:
            rows = [*map(self._rows.__getitem__, words)]
        except KeyError:
            total = np.zeros(self.dimensions, np.float32)
            for word in words:
                total += self._vector(word)
        else:
            total = np.add.reduce(self._words.take(rows, axis=0, mode="clip"))
        return _unit(total)

    def _vector(self, word: str) -> Vector:
        row = self._rows.get(word)
        if row is not None:
            remembered: Vector = self._words[row]
            return remembered
        ids = np.array(self._ids(word), np.intp)
        vector: Vector = np.add.reduce(self._vectors.take(ids, axis=0, mode="clip"))
        if len(word) <= LONGEST_REMEMBERED:
            if len(self._rows) == REMEMBERED_WORDS:
                self._rows.clear()
            row = self._rows[word] = len(self._rows)
            if row == len(self._words):
                self._words = np.concatenate([self._words, np.empty_like(self._words)])
            self._words[row] = vector
        return vector

    def _ids(self, word: str) -> list[int]:
        pieces = [word[begin : begin + PIECE_LENGTH] for begin in range(0, len(word), PIECE_LENGTH)]
        return [i for piece in pieces for i in self._tokenizer.encode(piece, add_special_tokens=False).ids]


def _unit(vector: Vector) -> Vector:
    length = math.sqrt(float(vector @ vector))
    return vector / np.float32(length) if length else vector
