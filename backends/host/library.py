"""What the host asks of a library: `load` it, then `generate` one batch after the other.

A file backends/host/<name>_library.py has a function `load(settings) -> Library`; everything else (HTTP, queue, text,
counting, ends of sequences) is the host's. Runs in the engine's environment: standard library only.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Settings:
    """How to load: the host's command line."""

    model: Path  # folder in Hugging Face layout
    device: str  # "cpu" or "cuda"
    dtype: str  # "auto" or a torch dtype's name
    seed: int
    flags: Mapping[str, Any]  # keyword arguments for the library's own loading function


@dataclass(slots=True)
class Row:
    """One prompt of a batch and what has become of it."""

    prompt: Sequence[int]
    max_tokens: int
    ends: frozenset[int]  # token ids that end it; empty where EOS is ignored
    tokens: list[int] = field(default_factory=list)
    finish_reason: str | None = None  # "stop", "length", or "abort" when nobody listens any more

    @property
    def done(self) -> bool:
        return self.finish_reason is not None

    def take(self, token: int) -> None:
        """Add one generated token; the row may be done with it."""
        self.tokens.append(token)
        if token in self.ends:
            self.finish_reason = "stop"
        elif len(self.tokens) >= self.max_tokens:
            self.finish_reason = "length"


Emit = Callable[[Sequence[tuple[int, int]]], None]  # (row, token) pairs of one step; those of a done row are ignored


class Library(Protocol):
    """A loaded model."""

    version: str

    def generate(self, batch: Sequence[Row], emit: Emit) -> None:
        """Decode greedily until every row is done, calling `emit` after each step with the tokens it brought."""
        ...

    def memory(self) -> Mapping[str, float]:
        """Readings in bytes by name (memory_allocated_bytes, kv_cache_bytes, …), also while `generate` runs."""
        ...

    def clear(self) -> None:
        """Give back what a failed batch left behind."""
        ...
