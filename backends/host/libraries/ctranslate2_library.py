"""CTranslate2: `Generator.generate_batch` on static batches, with one event per step and row from its callback.

Prompts of unequal length: the engine feeds what all have in common in length at once, then forces longer prompts token
by token while shorter ones already decode. That is its way of batching, and it is measured as it is.
"""

import ctypes
import json
import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import ctranslate2

from backends.host.library import Emit, Row, Settings

FOLDER = "ctranslate2"  # of the model's folder, where the converted weights are
NO_MEMORY = re.compile(r"mkl_malloc: failed to allocate memory|bad_alloc|out of memory")
CUDA_LIBRARIES = {"nvidia-cublas-cu12": "libcublas*.so.*", "nvidia-cudnn-cu12": "libcudnn*.so.*"}


def load(settings: Settings) -> "CTranslate2":
    if settings.device == "cuda":
        _load_cuda_libraries()
    allowed = re.findall(r"(\w+): ", ctranslate2.Generator.__init__.__doc__.splitlines()[0])  # its signature
    for name in settings.flags:
        if name not in allowed:  # its own error would be twenty lines
            raise TypeError(f"ctranslate2.Generator has no argument {name}; it has {', '.join(allowed[2:])}")
    folder = settings.model / FOLDER
    ctranslate2.set_random_seed(settings.seed)
    generator = ctranslate2.Generator(str(folder), device=settings.device, inter_threads=1, **settings.flags)
    return CTranslate2(generator, json.loads((folder / "vocabulary.json").read_text()))


class CTranslate2:
    """A loaded model."""

    version: str = ctranslate2.__version__

    def __init__(self, generator: Any, vocabulary: Sequence[str]) -> None:
        self.generator = generator
        self.vocabulary = vocabulary  # token by id: the engine takes tokens, not ids

    def generate(self, batch: Sequence[Row], emit: Emit) -> None:
        def take(step: Any) -> bool:
            emit([(step.batch_id, step.token_id)])
            done: bool = batch[step.batch_id].done
            return done  # True ends this row

        try:
            self.generator.generate_batch(
                [[self.vocabulary[token] for token in row.prompt] for row in batch],
                max_length=max(row.max_tokens for row in batch),
                end_token=[],  # rows end where the host says
                beam_size=1,
                sampling_topk=1,
                include_prompt_in_result=False,
                callback=take,
            )
        except RuntimeError as error:
            if NO_MEMORY.search(str(error)):
                raise MemoryError(str(error)) from error
            raise

    def memory(self) -> Mapping[str, float]:
        """It does not say what it has allocated."""
        return {}

    def clear(self) -> None:
        """It frees a failed batch by itself."""


def _load_cuda_libraries() -> None:
    """Load CUDA's libraries from the environment's own distributions, where the engine will then find them."""
    for distribution, pattern in CUDA_LIBRARIES.items():
        try:
            files = metadata.files(distribution) or []
        except metadata.PackageNotFoundError:
            continue  # then the system's are to be found
        for file in sorted(path for path in files if Path(path).match(pattern)):
            ctypes.CDLL(str(file.locate()), mode=ctypes.RTLD_GLOBAL)
