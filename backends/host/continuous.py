"""Serves calls with a library that has its own scheduler: a row can join or leave at any step."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from backends.host.batches import CallQueue, GenerationFailed, HostedCall, failure
from backends.host.library import ContinuousLibrary, PromptRow, Step


@dataclass(frozen=True, slots=True)
class RowPlace:
    """A row in flight: its call, and its index in the call."""

    call: HostedCall
    index: int
    row: PromptRow


class ContinuousQueue(CallQueue):
    """The rows in flight in a library, keyed by object identity."""

    def __init__(self, library: ContinuousLibrary, loop: asyncio.AbstractEventLoop) -> None:
        self.library: ContinuousLibrary = library
        self.running: dict[int, RowPlace] = {}
        self.work: deque[Callable[[], None]] = deque()  # functions to run `exclusively`
        super().__init__(loop)

    def submit(self, call: HostedCall) -> None:
        with self.changed:
            if self.library.adds_any_time and not self.work:
                self._begin(call)
                self.changed.notify()
            else:
                super().submit(call)

    def exclusively(self, work: Callable[[], None]) -> None:
        """Let the library's thread call `work` once no row is in flight. New calls wait until `work` is done."""
        with self.changed:
            self.work.append(work)
            self.changed.notify()

    def run_batches(self, calls: Sequence[HostedCall], duration: float | None, stopped: threading.Event) -> None:
        """Run timed calls in turn, `exclusively`, until `stopped` or for `duration` seconds. Raise if a row fails."""
        begin = time.monotonic_ns()
        for call in calls:
            if stopped.is_set() or (duration is not None and time.monotonic_ns() - begin >= duration * 1e9):
                return
            call.released = time.monotonic_ns()
            try:
                self._add(call)
                while self.running:
                    self._deliver(self.library.step())
                    if stopped.is_set():
                        call.abort()
                    self._drop_aborted()
            finally:
                self.running.clear()
            if any(row.finish_reason == "abort" for row in call.rows) and not stopped.is_set():
                raise RuntimeError("the library rejected or aborted a row of the batch; see its log")

    def _begin(self, call: HostedCall) -> None:
        """Add a call's rows to the library. A rejected row fails only its call. The caller holds the lock."""
        try:
            self._add(call)
        except Exception as error:  # noqa: BLE001 - a library's exception is the answer to this call
            call.abort()
            self._send(call, GenerationFailed(f"{type(error).__name__}: {error}"))

    def _add(self, call: HostedCall) -> None:
        for index, row in enumerate(call.rows):
            if row.done:
                continue
            self.running[id(row)] = RowPlace(call, index, row)  # before `add`, since the first token may arrive at once
            try:
                self.library.add(row)
            except Exception:
                del self.running[id(row)]
                raise
            self.prompt_tokens += len(row.prompt)

    def _advance(self) -> None:
        work = self._admit()
        if work:
            work()
            with self.changed:
                self.work.popleft()
            return
        try:
            self._deliver(self.library.step())
        except Exception as error:  # noqa: BLE001 - a library's exception is the answer to these calls
            self._fail(error)

    def _running_rows(self) -> list[PromptRow]:
        return [place.row for place in list(self.running.values())]

    def _admit(self) -> Callable[[], None] | None:
        """Wait for work. Return a function to run exclusively, or None if there are rows to step."""
        with self.changed:
            while True:
                self._drop_aborted()
                if self.work and not self.running:
                    return self.work[0]
                while self.waiting and not self.work:
                    self._begin(self.waiting.popleft())
                if self.running:
                    return None
                self.changed.wait()

    def _drop_aborted(self) -> None:
        for place in [place for place in self.running.values() if place.row.done]:
            self.library.drop(place.row)
            self._end(place, None)

    def _deliver(self, steps: Sequence[Step]) -> None:
        """Send each call its tokens of this step in one event. For a call timed in-process, timestamp them instead."""
        now = time.monotonic_ns()
        events: dict[int, tuple[HostedCall, list[tuple[int, int]]]] = {}
        ended: list[tuple[RowPlace, GenerationFailed | None]] = []
        for row, tokens, error in steps:
            place = self.running.get(id(row))
            if place is None or row.finish_reason:  # aborted during the step; `_drop_aborted` drops it from the library
                continue
            pairs = events.setdefault(id(place.call), (place.call, []))[1]
            before = len(row.tokens)
            for token in tokens:
                if not row.done:
                    row.take(token)
                    self.generated_tokens += 1
                    pairs.append((place.index, token))
            if place.call.released is not None and len(row.tokens) > before:
                row.stamps.append((now, len(row.tokens) - before))
            if error is not None:
                ended.append((place, GenerationFailed(error)))
            elif row.done:
                ended.append((place, None))
        for call, pairs in events.values():
            if pairs and call.released is None:
                self._send(call, pairs)
        with self.changed:
            for place, failed in ended:
                self._end(place, failed)

    def _end(self, place: RowPlace, failed: GenerationFailed | None) -> None:
        """Finish a row. Also finish its call if all its rows are done or this row failed. The caller holds the lock."""
        self.running.pop(id(place.row), None)
        if failed:
            place.call.abort()
            self._send(place.call, failed)
        elif all(row.done for row in place.call.rows):
            self._send(place.call, None)

    def _fail(self, error: Exception) -> None:
        """End all calls in flight with the error, and clear the library."""
        with self.changed:
            calls = {id(place.call): place.call for place in self.running.values()}
            self.running.clear()
            failed = failure(error, self.library)
            for call in calls.values():
                call.abort()
                self._send(call, failed)
