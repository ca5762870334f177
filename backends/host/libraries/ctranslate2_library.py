"""CTranslate2: runs `Generator.generate_batch` on static batches. Its callback gives one event per step and row.

For prompts of unequal length, the engine prefills all prompts up to the shortest length at once. It then feeds the rest
of the longer prompts token by token while the shorter ones already decode. sweep measures this batching.
"""

import ctypes
import json
import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import ctranslate2

from backends.host.library import EmitTokens, LibrarySettings, PromptRow

FOLDER = "ctranslate2"  # subfolder with the converted weights, in the model's folder
NO_MEMORY = re.compile(r"mkl_malloc: failed to allocate memory|bad_alloc|out of memory")
CUDA_LIBRARIES = {"nvidia-cublas-cu12": "libcublas*.so.*", "nvidia-cudnn-cu12": "libcudnn*.so.*"}


def load(settings: LibrarySettings) -> "CTranslate2":
    if settings.device == "cuda":
        _load_cuda_libraries()
    allowed = re.findall(r"(\w+): ", ctranslate2.Generator.__init__.__doc__.splitlines()[0])  # its signature
    for name in settings.flags:
        if name not in allowed:  # the engine's own error would be twenty lines long
            raise TypeError(f"ctranslate2.Generator has no argument {name}; it has {', '.join(allowed[2:])}")
    folder = settings.model / FOLDER
    ctranslate2.set_random_seed(settings.seed)
    generator = ctranslate2.Generator(str(folder), device=settings.device, inter_threads=1, **settings.flags)
    return CTranslate2(generator, json.loads((folder / "vocabulary.json").read_text()))


class CTranslate2:
    version: str = ctranslate2.__version__

    def __init__(self, generator: Any, vocabulary: Sequence[str]) -> None:
        self.generator = generator
        self.vocabulary = vocabulary  # tokens by id: the engine takes tokens, not ids

    def generate(self, batch: Sequence[PromptRow], emit: EmitTokens) -> None:
        def take(step: Any) -> bool:
            emit([(step.batch_id, step.token_id)])
            done: bool = batch[step.batch_id].done
            return done  # returning True ends the row

        try:
            self.generator.generate_batch(
                [[self.vocabulary[token] for token in row.prompt] for row in batch],
                max_length=max(row.max_tokens for row in batch),
                end_token=[],  # the server decides where rows end
                beam_size=1,
                sampling_topk=1,
                include_prompt_in_result=False,
                callback=take,
            )
        except RuntimeError as error:
            if NO_MEMORY.search(str(error)):
                raise MemoryError(str(error)) from error
            raise

    def log_probabilities(self, texts: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return each text's log-probabilities: for every token but the first, given the tokens before it."""
        scored = [self.generator.score_batch([[self.vocabulary[token] for token in text]]) for text in texts]
        return [list(one[0].log_probs) for one in scored]

    def memory(self) -> Mapping[str, float]:
        """Return an empty mapping, since the engine does not report its allocations."""
        return {}

    def clear(self) -> None:
        """Do nothing, since the engine frees a failed batch by itself."""


def _load_cuda_libraries() -> None:
    """Load CUDA's libraries from the environment's distributions, since the engine does not search them."""
    for distribution, pattern in CUDA_LIBRARIES.items():
        try:
            files = metadata.files(distribution) or []
        except metadata.PackageNotFoundError:
            continue  # without it, the engine uses the system's library
        for file in sorted(path for path in files if Path(path).match(pattern)):
            ctypes.CDLL(str(file.locate()), mode=ctypes.RTLD_GLOBAL)
