"""The embedder, which turns a text into a unit vector, so that the dot product of two is their cosine similarity."""

import logging
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]

PIECE_LENGTH = 200  # characters that are tokenized at once, since the time grows faster than the length
REMEMBERED_WORDS = 16384  # words whose vectors are kept in one matrix; when it is full, all are forgotten
FIRST_WORDS = 1024  # initial size of the matrix, which grows
LONGEST_REMEMBERED = 40  # characters of a word that is remembered


class Embedder:
    """Averages wordllama's static token vectors: 256 dimensions, weights included in the package, no torch.

    It is called from one thread at a time, but not always the same thread.
    """

    def __init__(self) -> None:
        handlers, level = list(logging.root.handlers), logging.root.level
        import wordllama

        logging.root.handlers[:] = handlers  # importing it has configured logging for the whole process
        logging.root.setLevel(level)
        # It would look for its shipped tokenizer in the wrong folder, and then ask a hub; so it is told the folder.
        folder = Path(wordllama.__file__).parent
        model = wordllama.WordLlama.load(cache_dir=folder, disable_download=True)
        self._tokenizer, self._vectors = model.tokenizer, np.asarray(model.embedding, np.float32)
        self._tokenizer.no_padding()
        self.dimensions = self._vectors.shape[1]
        self._rows: dict[str, int] = {}  # of the remembered words in `_words`
        self._words = np.empty((FIRST_WORDS, self.dimensions), np.float32)  # the sums of the words' token vectors

    def embed(self, text: str) -> Vector:
        """Return the mean of the tokens' vectors. No token spans two words, so each word is tokenized by itself.

        A word's vector is looked up among the words seen before. The rows of all tokens are spread over 32 MB, and
        fetching a row from outside the processor's caches takes longer than everything else.
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
