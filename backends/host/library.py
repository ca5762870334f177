"""What the host asks of a library: `load` it, then `generate` one batch after the other, or `add` and `step`.

A file libraries/<name>_library.py has a function `load(settings) -> Library | ContinuousLibrary`; everything else
(HTTP, queue, text, counting, ends of sequences) is the host's. Runs in the engine's environment: standard library only.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable


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


@runtime_checkable
class Forgetful(Protocol):
    """A stepped library that keeps earlier prompts, and can be told not to."""

    def reset_caches(self) -> bool:
        """Forget every prompt, with no row running; whether it did."""
        ...


class Step(NamedTuple):
    """What one step brought to one row."""

    row: Row
    tokens: Sequence[int]
    error: str | None = None  # why this row, and only this one, goes no further


@runtime_checkable
class ContinuousLibrary(Protocol):
    """A loaded model whose rows come and go at any step: the engine's own scheduler decides what runs together.

    One thread calls all of it but `memory`, and, where `adds_any_time` says so, `add` and `drop`.
    """

    version: str
    adds_any_time: bool  # `add` and `drop` may be called by other threads, also while `step` waits

    def add(self, row: Row) -> None:
        """Take a row in; it ends by itself at `row.max_tokens` or one of `row.ends`."""
        ...

    def step(self) -> Sequence[Step]:
        """Decode greedily until there are new tokens, of any row; asked only while there are unfinished rows.

        An empty answer means none yet. A token that ends its row is among the tokens. Raises if nothing can go on.
        """
        ...

    def drop(self, row: Row) -> None:
        """Nobody wants more of this row. Does nothing for one that has ended."""
        ...

    def memory(self) -> Mapping[str, float]:
        """Readings by name (kv_cache_usage, kv_cache_bytes, memory_allocated_bytes, …), also while `step` runs."""
        ...

    def clear(self) -> None:
        """Drop every row and give back what they held, after a `step` that raised."""
        ...
