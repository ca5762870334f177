"""Embedders: a text as a vector of length one, so that the product of two is their cosine similarity."""

import functools
import logging
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]

PIECE_LENGTH = 200  # characters that are tokenized at once: the time that this takes grows faster than the text
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

    def embed(self, text: str) -> Vector:
        encodings = self._tokenizer.encode_batch_fast(_pieces(text), add_special_tokens=False)
        ids = np.fromiter((number for each in encodings for number in each.ids), np.int64)
        if not ids.size:
            return np.zeros(self.dimensions, np.float32)
        return _unit(self._vectors[np.minimum(ids, len(self._vectors) - 1)].mean(axis=0))


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


def _pieces(text: str) -> list[str]:
    """The text in pieces of whole words."""
    pieces, begin = [], 0
    while len(text) - begin > PIECE_LENGTH:
        end = text.rfind(" ", begin, begin + PIECE_LENGTH)
        end = begin + PIECE_LENGTH if end <= begin else end
        pieces.append(text[begin:end])
        begin = end + (text[end] == " ")
    return [*pieces, text[begin:]]


def _unit(vector: Vector) -> Vector:
    length = float(np.linalg.norm(vector))
    return vector / np.float32(length) if length else vector
