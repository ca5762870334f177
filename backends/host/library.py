"""The interface of libraries/<name>_library.py: `load`, then `generate` batch after batch, or `add` and `step`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable


@dataclass(frozen=True)
class LibrarySettings:
    """Settings for loading a library, from the host's command line."""

    model: Path  # folder in Hugging Face layout
    device: str  # "cpu" or "cuda"
    dtype: str  # "auto" or a torch dtype's name
    seed: int
    flags: Mapping[str, Any]  # keyword arguments for the library's own loading function


@dataclass(slots=True)
class PromptRow:
    """One prompt of a batch and its tokens so far."""

    prompt: Sequence[int]
    max_tokens: int
    ends: frozenset[int]  # token ids that end it; empty where EOS is ignored
    tokens: list[int] = field(default_factory=list)
    stamps: list[tuple[int, int]] = field(default_factory=list)  # (ns, tokens) of each step, of a call that is timed
    finish_reason: str | None = None  # "stop", "length", or "abort" when the client has disconnected

    @property
    def done(self) -> bool:
        return self.finish_reason is not None

    def take(self, token: int) -> None:
        """Add one generated token, which may complete the row."""
        self.tokens.append(token)
        if token in self.ends:
            self.finish_reason = "stop"
        elif len(self.tokens) >= self.max_tokens:
            self.finish_reason = "length"


EmitTokens = Callable[[Sequence[tuple[int, int]]], None]  # (row, token) pairs of a step; done rows are ignored


class Library(Protocol):
    """A loaded model."""

    version: str

    def generate(self, batch: Sequence[PromptRow], emit: EmitTokens) -> None:
        """Decode greedily until every row is done, calling `emit` after each step with the tokens it brought."""

    def memory(self) -> Mapping[str, float]:
        """Readings in bytes by name (allocated_memory_bytes, kv_cache_bytes, …), also while `generate` runs."""

    def clear(self) -> None:
        """Free the memory that a failed batch still holds."""


class Step(NamedTuple):
    """The tokens of one step for one row."""

    row: PromptRow
    tokens: Sequence[int]
    error: str | None = None  # the reason why this row, and only this one, failed


@runtime_checkable
class ContinuousLibrary(Protocol):
    """A loaded model with its own scheduler, called by one thread; it may have `reset_caches() -> bool`."""

    version: str
    adds_any_time: bool  # `add` and `drop` may be called by other threads, also while `step` waits

    def add(self, row: PromptRow) -> None:
        """Take a row in; it ends by itself at `row.max_tokens` or one of `row.ends`."""

    def step(self) -> Sequence[Step]:
        """Decode greedily until any row has new tokens, its last included; an empty answer means none yet."""

    def drop(self, row: PromptRow) -> None:
        """Stop generating for this row. Does nothing if it has ended."""

    def memory(self) -> Mapping[str, float]:
        """Readings by name (kv_cache_usage, kv_cache_bytes, allocated_memory_bytes, …), also while `step` runs."""

    def clear(self) -> None:
        """Drop every row and free its memory, after a `step` that raised."""
