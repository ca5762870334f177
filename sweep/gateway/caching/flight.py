"""Single flight: one of several identical requests queries the engine, and all receive its answer as it arrives.

A flight keeps its answer for the cache and for later readers until it is too large, or until all flights together are.
Then nobody joins any more, and it keeps only what a reader has yet to read, up to LARGEST bytes.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from sweep.gateway.caching.answer import LARGEST
from sweep.gateway.call import Headers
from sweep.gateway.engines import BegunAnswer

Ask = Callable[[], Awaitable[BegunAnswer]]
Land = Callable[[int, Headers, list[bytes]], None]


@dataclass
class FlightMemory:
    """The memory of all flights together, in bytes."""

    limit: int
    taken: int = 0


class Flight:
    """One answer in flight. It continues as long as it has a reader.

    The first reader that needs data that has not arrived waits for the engine, and further readers wait for this
    reader.
    """

    def __init__(self, ask: Ask, land: Land, leave: Callable[[], None], memory: FlightMemory) -> None:
        self._land, self._leave, self._memory = land, leave, memory
        self.chunks: list[bytes] = []
        self.dropped = 0  # number of chunks that preceded those in `chunks`
        self.is_complete = False
        self._error: Exception | None = None
        self._size = 0  # bytes of `chunks`
        self._is_kept = True  # whether all its chunks are kept
        self._readers = 0
        self._shared: list[SharedAnswer] = []
        self._is_read = False  # whether a reader waits for the engine
        self._waiting: list[asyncio.Future[None]] = []
        self._answer: BegunAnswer | None = None
        self._beginning = asyncio.ensure_future(ask())

    async def join(self) -> "SharedAnswer":
        """Add a reader; return the answer from its beginning. Raises Refused if no engine began to answer."""
        self._readers += 1
        try:
            if self._answer is None:
                self._answer = await asyncio.shield(self._beginning)
        except BaseException:
            self.quit()
            raise
        self._shared.append(SharedAnswer(self, self._answer))
        return self._shared[-1]

    @property
    def is_open(self) -> bool:
        """Return whether another reader may join."""
        return self._readers > 0 and self._error is None and not self.is_complete and self._is_kept

    def quit(self, reader: "SharedAnswer | None" = None) -> None:
        """Remove a reader; the engine's request is stopped if it was the last."""
        self._readers -= 1
        if reader is not None:
            self._shared.remove(reader)
        if self._readers:
            return
        self._drop(len(self.chunks))
        self._leave()
        if self._answer is not None:
            self._answer.close()
        elif not self._beginning.cancel() and not self._beginning.cancelled() and not self._beginning.exception():
            self._beginning.result().close()

    async def advance(self) -> None:
        """Wait until more of the answer, or its end, has arrived. Raises the error that interrupted the answer."""
        if self._error is not None:
            raise self._error
        if self._is_read:
            news = asyncio.get_running_loop().create_future()
            self._waiting.append(news)
            await news
            return
        assert self._answer is not None
        self._is_read = True
        try:
            chunk = await self._answer.read()
            self._take(chunk)
        except Exception as error:
            self._error = error
            raise
        finally:  # if this reader leaves, another reader continues
            self._is_read = False
            waiting, self._waiting = self._waiting, []
            for news in waiting:
                if not news.done():
                    news.set_result(None)

    def _take(self, chunk: bytes) -> None:
        assert self._answer is not None
        if not chunk:
            self.is_complete = True
            self._leave()
            if self._is_kept:
                self._land(self._answer.status, self._answer.headers, [*self.chunks])
            return
        self.chunks.append(chunk)
        self._size += len(chunk)
        self._memory.taken += len(chunk)
        fits = self._memory.taken <= self._memory.limit
        self._is_kept &= fits and self._size <= LARGEST
        if not self._is_kept:
            self._drop(max(min(reader.position for reader in self._shared) - self.dropped, 0))
            while self._size > (LARGEST if fits else 0) and len(self.chunks) > 1:
                self._drop(1)  # its slowest readers have lost the answer

    def _drop(self, count: int) -> None:
        """Forget the first chunks."""
        size = sum(map(len, self.chunks[:count]))
        del self.chunks[:count]
        self.dropped += count
        self._size -= size
        self._memory.taken -= size


class SharedAnswer:
    """A flight's answer, as read by one of its readers."""

    def __init__(self, flight: Flight, answer: BegunAnswer) -> None:
        self.status, self.headers = answer.status, answer.headers
        self._flight = flight
        self.position = 0  # number of chunks read

    async def read(self) -> bytes:
        """Return the next part as it arrived; empty at the end. Raises OSError if it was read too slowly."""
        flight = self._flight
        while self.position == flight.dropped + len(flight.chunks):
            if flight.is_complete:
                return b""
            await flight.advance()
        if self.position < flight.dropped:
            raise OSError("a large shared answer was read too slowly")
        self.position += 1
        return flight.chunks[self.position - 1 - flight.dropped]

    def close(self) -> None:
        self._flight.quit(self)
