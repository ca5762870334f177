"""The interface of libraries/<name>_library.py: `load`, then either `generate` for every batch or `add` and `step`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable


@dataclass(frozen=True)
class LibrarySettings:
    """The settings for loading a library, from the host's command line."""

    model: Path  # folder in Hugging Face layout
    device: str  # "cpu" or "cuda"
    dtype: str  # "auto" or a torch dtype's name
    seed: int
    flags: Mapping[str, Any]  # keyword arguments of the library's loading function


@dataclass(slots=True)
class PromptRow:
    """One prompt of a batch, and the tokens generated for it so far."""

    prompt: Sequence[int]
    max_tokens: int
    ends: frozenset[int]  # token ids that end the row; empty if EOS is ignored
    tokens: list[int] = field(default_factory=list)
    stamps: list[tuple[int, int]] = field(default_factory=list)  # (ns, tokens) per step, if the call is timed
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


EmitTokens = Callable[[Sequence[tuple[int, int]]], None]  # receives a step's (row, token) pairs; ignores finished rows


class Library(Protocol):
    """A loaded model."""

    version: str

    def generate(self, batch: Sequence[PromptRow], emit: EmitTokens) -> None:
        """Decode greedily until every row is done. Call `emit` with the new tokens after each step."""

    def memory(self) -> Mapping[str, float]:
        """Return readings in bytes by name (allocated_memory_bytes, …). May be called while `generate` runs."""

    def clear(self) -> None:
        """Free the memory that a failed batch still holds."""


class Step(NamedTuple):
    """The tokens that one step produced for one row."""

    row: PromptRow
    tokens: Sequence[int]
    error: str | None = None  # the reason why this row, and only this row, failed


@runtime_checkable
class ContinuousLibrary(Protocol):
    """A loaded model with its own scheduler, called by one thread. It may also offer `reset_caches() -> bool`."""

    version: str
    adds_any_time: bool  # other threads may call `add` and `drop`, even while `step` waits

    def add(self, row: PromptRow) -> None:
        """Add a row. The row ends by itself at `row.max_tokens` or at a token in `row.ends`."""

    def step(self) -> Sequence[Step]:
        """Decode greedily until a row has new tokens or ends. The list is empty if no row has new tokens yet."""

    def drop(self, row: PromptRow) -> None:
        """Stop generating for this row. Do nothing if the row has ended."""

    def memory(self) -> Mapping[str, float]:
        """Return readings by name (kv_cache_usage, kv_cache_bytes, …). May be called while `step` runs."""

    def clear(self) -> None:
        """Drop all rows and free their memory, after a `step` that raised an error."""
