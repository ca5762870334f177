"""Single flight: one of several identical requests queries the engine, and all receive its answer as it arrives."""

import asyncio
from collections.abc import Awaitable, Callable

from sweep.gateway.call import Headers
from sweep.gateway.engines import BegunAnswer

LARGEST_FLIGHT = 64 << 20  # maximum bytes of a shared answer

Ask = Callable[[], Awaitable[BegunAnswer]]
Land = Callable[[int, Headers, list[bytes]], None]


class Flight:
    """One answer in flight. It continues as long as it has a reader.

    The first reader that needs data that has not arrived waits for the engine, and further readers wait for this
    reader.
    """

    def __init__(self, ask: Ask, land: Land, leave: Callable[[], None]) -> None:
        self._land, self._leave = land, leave
        self.chunks: list[bytes] = []
        self.is_complete = False
        self._error: Exception | None = None
        self._size = 0  # bytes
        self._readers = 0
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
        return SharedAnswer(self, self._answer)

    @property
    def is_open(self) -> bool:
        """Return whether another reader may join."""
        return self._readers > 0 and self._error is None and not self.is_complete

    def quit(self) -> None:
        """Remove a reader; the engine's request is stopped if it was the last."""
        self._readers -= 1
        if self._readers:
            return
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
        if chunk:
            self.chunks.append(chunk)
            self._size += len(chunk)
            if self._size > LARGEST_FLIGHT:
                raise OSError("the answer is too large")
        else:
            self.is_complete = True
            self._leave()
            self._land(self._answer.status, self._answer.headers, self.chunks)


class SharedAnswer:
    """A flight's answer, as read by one of its readers."""

    def __init__(self, flight: Flight, answer: BegunAnswer) -> None:
        self.status, self.headers = answer.status, answer.headers
        self._flight = flight
        self._position = 0

    async def read(self) -> bytes:
        """Return the next part as it arrived; empty at the end."""
        flight = self._flight
        while self._position == len(flight.chunks):
            if flight.is_complete:
                return b""
            await flight.advance()
        self._position += 1
        return flight.chunks[self._position - 1]

    def close(self) -> None:
        self._flight.quit()
