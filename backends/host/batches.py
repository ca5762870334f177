"""The server's queue: one thread runs the library batch by batch, and the event loop's thread does the rest."""

import asyncio
import os
import re
import sys
import threading
import traceback
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from backends.host.library import ContinuousLibrary, Library, PromptRow

OOM_MESSAGE = re.compile(r"out of memory|OutOfMemory|can't allocate memory|Cannot allocate memory|bad_alloc", re.I)


class GenerationFailed(Exception):
    """The library failed on a batch or on a single row. Creating this exception logs it."""

    def __init__(self, message: str, out_of_memory: bool = False) -> None:
        super().__init__(message.splitlines()[0])
        out_of_memory = out_of_memory or OOM_MESSAGE.search(message) is not None
        self.kind = "out_of_memory" if out_of_memory else "internal_error"
        print(f"host: generation failed, {self.kind.replace('_', ' ')}: {message}", file=sys.stderr)


def failure(error: Exception, library: Library | ContinuousLibrary) -> GenerationFailed:
    """Log a library's exception, free the memory that it holds, and return it as a call's failure."""
    traceback.print_exception(error)
    # The traceback's frames hold the batch's tensors, so memory can be freed only once they are cleared.
    traceback.clear_frames(error.__traceback__)
    error.__traceback__ = None
    library.clear()
    return GenerationFailed(f"{type(error).__name__}: {error}", isinstance(error, MemoryError))


@dataclass(slots=True, eq=False)
class HostedCall:
    """One HTTP request: its rows, and a queue with the (row, token) pairs of every step, ended by None."""

    rows: list[PromptRow]
    released: int | None = None  # ns of CLOCK_MONOTONIC; only for a call timed in-process, which gets no token events
    events: "asyncio.Queue[Sequence[tuple[int, int]] | GenerationFailed | None]" = field(default_factory=asyncio.Queue)

    def abort(self) -> None:
        """End the rows: the client has disconnected."""
        for row in self.rows:
            row.finish_reason = row.finish_reason or "abort"


class CallQueue(ABC):
    """Calls that wait for a library, and the thread that runs it."""

    library: Library | ContinuousLibrary

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.waiting: deque[HostedCall] = deque()
        self.prompt_tokens = self.generated_tokens = 0
        self.changed = threading.Condition()
        threading.Thread(target=self._run, name="library", daemon=True).start()

    def submit(self, call: HostedCall) -> None:
        with self.changed:
            self.waiting.append(call)
            self.changed.notify()

    def readings(self) -> dict[str, float]:
        """Return the metrics for /metrics by name, without the prefix. The library's readings take precedence."""
        return {
            "requests_running": sum(not row.done for row in self._running_rows()),
            "requests_waiting": sum(len(call.rows) for call in list(self.waiting)),
            "prompt_tokens_total": self.prompt_tokens,
            "generation_tokens_total": self.generated_tokens,
            **self.library.memory(),
        }

    def _run(self) -> None:
        try:
            while True:
                self._advance()
        except BaseException:  # noqa: BLE001 - without this thread the host would answer nothing but /health
            traceback.print_exc()
            os._exit(1)

    def _send(self, call: HostedCall, event: Sequence[tuple[int, int]] | GenerationFailed | None) -> None:
        self.loop.call_soon_threadsafe(call.events.put_nowait, event)

    @abstractmethod
    def _advance(self) -> None:
        """Wait for calls, then run the library on them for one batch or one step."""

    @abstractmethod
    def _running_rows(self) -> list[PromptRow]: ...


class BatchQueue(CallQueue):
    """Joins waiting calls into batches and runs them on a library."""

    def __init__(self, library: Library, max_batch: int, loop: asyncio.AbstractEventLoop) -> None:
        self.library: Library = library
        self.max_batch = max_batch
        self.running: list[HostedCall] = []
        super().__init__(loop)

    def _take(self) -> list[HostedCall]:
        """Take the next batch: the first call, whatever its size, and the next calls while they fit in max_batch."""
        with self.changed:
            while not self.waiting:
                self.changed.wait()
            calls = [self.waiting.popleft()]
            size = len(calls[0].rows)
            while self.waiting and size + len(self.waiting[0].rows) <= self.max_batch:
                calls.append(self.waiting.popleft())
                size += len(calls[-1].rows)
            self.running = calls
            return calls

    def _advance(self) -> None:
        calls = self._take()
        end = self._generate(calls)
        self.running = []
        for call in calls:
            self._send(call, end)

    def _running_rows(self) -> list[PromptRow]:
        return [row for call in self.running for row in call.rows]

    def _generate(self, calls: list[HostedCall]) -> GenerationFailed | None:
        """Run one batch; return its failure, or None."""
        places = [(call, index) for call in calls for index, row in enumerate(call.rows) if not row.done]
        batch = [call.rows[index] for call, index in places]
        if not batch:
            return None
        self.prompt_tokens += sum(len(row.prompt) for row in batch)

        def emit(pairs: Sequence[tuple[int, int]]) -> None:
            steps: dict[int, list[tuple[int, int]]] = {}
            for place, token in pairs:
                if not batch[place].done:
                    batch[place].take(token)
                    self.generated_tokens += 1
                    call, index = places[place]
                    steps.setdefault(id(call), []).append((index, token))
            for call in calls:
                if id(call) in steps:
                    self._send(call, steps[id(call)])

        try:
            self.library.generate(batch, emit)
        except Exception as error:  # noqa: BLE001 - a library's exception is the answer to these calls
            return failure(error, self.library)
        return None
