"""Calls served by a library with a scheduler of its own: rows join and leave it at any step.

The same face as `batches.Batches`. One thread steps the library; the event loop's thread does everything else, and
hands rows over directly where the library allows it, so that a request does not wait for the step before it.
"""

import asyncio
import os
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from backends.host.batches import OUT_OF_MEMORY, Call, GenerationFailed, failure
from backends.host.library import ContinuousLibrary, Row, Step


@dataclass(frozen=True, slots=True)
class Place:
    """Which call a row belongs to, and where in it."""

    call: Call
    index: int
    row: Row


class Continuous:
    """Rows in flight in a library, by identity."""

    def __init__(self, library: ContinuousLibrary, loop: asyncio.AbstractEventLoop) -> None:
        self.library = library
        self.loop = loop
        self.waiting: deque[Call] = deque()
        self.running: dict[int, Place] = {}
        self.work: deque[Callable[[], None]] = deque()  # what wants the library for itself: see `alone`
        self.prompt_tokens = self.generated_tokens = 0
        self.changed = threading.Condition()
        threading.Thread(target=self._run, name="library", daemon=True).start()

    def submit(self, call: Call) -> None:
        with self.changed:
            if self.library.adds_any_time and not self.work:
                self._add(call)
            else:
                self.waiting.append(call)
            self.changed.notify()

    def alone(self, work: Callable[[], None]) -> None:
        """Have the library's thread call `work` as soon as nothing runs; new calls wait until it is done."""
        with self.changed:
            self.work.append(work)
            self.changed.notify()

    def readings(self) -> dict[str, float]:
        """What /metrics shows, without the prefix. What the library says of itself goes first."""
        running, waiting = list(self.running.values()), list(self.waiting)
        return {
            "requests_running": sum(not place.row.done for place in running),
            "requests_waiting": sum(len(call.rows) for call in waiting),
            "prompt_tokens_total": self.prompt_tokens,
            "generation_tokens_total": self.generated_tokens,
            **self.library.memory(),
        }

    def _add(self, call: Call) -> None:
        """Hand a call's rows over; the lock is held."""
        for index, row in enumerate(call.rows):
            if row.done:
                continue
            self.running[id(row)] = Place(call, index, row)  # before `add`: its first token may come at once
            try:
                self.library.add(row)
            except Exception as error:  # noqa: BLE001 - a row that a library refuses is that call's error alone
                del self.running[id(row)]
                call.abort()
                self._tell(call, _failed(f"{type(error).__name__}: {error}"))
                return
            self.prompt_tokens += len(row.prompt)

    def _run(self) -> None:
        try:
            while True:
                work = self._admit()
                if work:
                    work()
                    with self.changed:
                        self.work.popleft()
                    continue
                try:
                    self._deliver(self.library.step())
                except Exception as error:  # noqa: BLE001 - whatever a library raises is its answer to these calls
                    self._fail(error)
        except BaseException:  # noqa: BLE001 - without this thread the host would only answer /health, for ever
            traceback.print_exc()
            os._exit(1)

    def _admit(self) -> Callable[[], None] | None:
        """Wait until there is something to do. Work to be done alone, or None: there are rows to step."""
        with self.changed:
            while True:
                self._drop_aborted()
                if self.work and not self.running:
                    return self.work[0]
                while self.waiting and not self.work:
                    self._add(self.waiting.popleft())
                if self.running:
                    return None
                self.changed.wait()

    def _drop_aborted(self) -> None:
        for place in [place for place in self.running.values() if place.row.done]:
            self.library.drop(place.row)
            self._end(place, None)

    def _deliver(self, steps: Sequence[Step]) -> None:
        """Tell each call what it got in this step, in one event."""
        events: dict[int, tuple[Call, list[tuple[int, int]]]] = {}
        ended: list[tuple[Place, GenerationFailed | None]] = []
        for row, tokens, error in steps:
            place = self.running.get(id(row))
            if place is None or row.finish_reason:  # aborted meanwhile: `_drop_aborted` takes it from the library
                continue
            pairs = events.setdefault(id(place.call), (place.call, []))[1]
            for token in tokens:
                if not row.done:
                    row.take(token)
                    self.generated_tokens += 1
                    pairs.append((place.index, token))
            if error is not None:
                ended.append((place, _failed(error)))
            elif row.done:
                ended.append((place, None))
        for call, pairs in events.values():
            if pairs:
                self._tell(call, pairs)
        with self.changed:
            for place, failed in ended:
                self._end(place, failed)

    def _end(self, place: Place, failed: GenerationFailed | None) -> None:
        """A row is through; its call is when all of them are, or when one has failed. The lock is held."""
        self.running.pop(id(place.row), None)
        if failed:
            place.call.abort()
            self._tell(place.call, failed)
        elif all(row.done for row in place.call.rows):
            self._tell(place.call, None)

    def _fail(self, error: Exception) -> None:
        """Everything in flight ends with the error; the library begins anew."""
        with self.changed:
            calls = {id(place.call): place.call for place in self.running.values()}
            self.running.clear()
            failed = failure(error, self.library)
            for call in calls.values():
                call.abort()
                self._tell(call, failed)

    def _tell(self, call: Call, event: list[tuple[int, int]] | GenerationFailed | None) -> None:
        self.loop.call_soon_threadsafe(call.events.put_nowait, event)


def _failed(said: str) -> GenerationFailed:
    """The end of one row, told in the log as well."""
    memory = OUT_OF_MEMORY.search(said) is not None
    print(f"host: request failed, {'out of memory' if memory else 'internal error'}: {said}", file=sys.stderr)
    return GenerationFailed(said.splitlines()[0], "out_of_memory" if memory else "internal_error")
