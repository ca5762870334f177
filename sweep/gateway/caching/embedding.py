"""Embedders: a text as a vector of length one, so that the product of two is their cosine similarity."""

import functools
import logging
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]

PIECE_LENGTH = 200  # characters that are tokenized at once: the time that this takes grows faster than the text
REMEMBERED_WORDS = 32768  # whose tokens are not looked up again
LONGEST_REMEMBERED = 40  # characters of such a word
SHIPPED = "wordllama"


class Embedder(Protocol):
    """Makes vectors of texts. Called from one thread at a time, but not always from the same."""

    dimensions: int

    def embed(self, text: str) -> Vector: ...


class WordLlamaEmbedder:
    """Static vectors of tokens, averaged: 256 dimensions, weights in the package itself, no torch."""

    def __init__(self) -> None:
        handlers, level = list(logging.root.handlers), logging.root.level
        import wordllama

        logging.root.handlers[:] = handlers  # it has set up logging for the whole process
        logging.root.setLevel(level)
        # It looks for its shipped tokenizer in the wrong folder, and then asks a hub; told where it is, it finds it.
        folder = Path(wordllama.__file__).parent
        model = wordllama.WordLlama.load(cache_dir=folder, disable_download=True)
        self._tokenizer, self._vectors = model.tokenizer, np.asarray(model.embedding, np.float32)
        self._tokenizer.no_padding()
        self.dimensions = self._vectors.shape[1]
        self._remembered = functools.lru_cache(REMEMBERED_WORDS)(self._ids)

    def embed(self, text: str) -> Vector:
        """The mean of the tokens' vectors. No token is of two words, so that each word is tokenized by itself."""
        ids: list[int] = []
        for word in text.split(" "):
            ids += self._remembered(word) if len(word) <= LONGEST_REMEMBERED else self._ids(word)
        if not ids:
            return np.zeros(self.dimensions, np.float32)
        return _unit(np.add.reduce(self._vectors.take(ids, axis=0, mode="clip")))

    def _ids(self, word: str) -> tuple[int, ...]:
        pieces = [word[begin : begin + PIECE_LENGTH] for begin in range(0, len(word), PIECE_LENGTH)]
        return tuple(i for piece in pieces for i in self._tokenizer.encode(piece, add_special_tokens=False).ids)


class SentenceEmbedder:
    """A model of sentence-transformers, which has to be installed."""

    def __init__(self, name: str) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            raise ValueError(
                f"gateway.cache.embedder={name}: needs sentence-transformers (pip install sentence-transformers); "
                f"without it, {SHIPPED}"
            ) from None
        self._model: Any = SentenceTransformer(name)
        self.dimensions = int(self._model.get_sentence_embedding_dimension())

    def embed(self, text: str) -> Vector:
        return _unit(np.asarray(self._model.encode(text), np.float32))


@functools.cache
def load_embedder(name: str) -> Embedder:
    """The embedder of that name. Raises ValueError if it cannot be loaded."""
    return WordLlamaEmbedder() if name == SHIPPED else SentenceEmbedder(name)


def _unit(vector: Vector) -> Vector:
    length = float(np.linalg.norm(vector))
    return vector / np.float32(length) if length else vector
