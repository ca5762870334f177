"""Single flight: of equal requests under way one asks the engine, and all get its answer as it comes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from sweep.gateway.call import Headers, Refused
from sweep.gateway.engines import EngineAnswer

LARGEST_FLIGHT = 64 << 20  # bytes of an answer that is shared

Ask = Callable[[], contextlib.AbstractAsyncContextManager[EngineAnswer]]
Land = Callable[[int, Headers, list[bytes]], None]


class Flight:
    """One answer on its way. It goes on as long as one of its readers is there, and ends with the last."""

    def __init__(self, ask: Ask, land: Land, leave: Callable[[], None]) -> None:
        self._ask, self._land, self._leave = ask, land, leave
        self._chunks: list[bytes] = []
        self._status, self._headers = 0, Headers()
        self._error: Exception | None = None
        self._over = False
        self._readers = 0
        self._news = asyncio.Event()
        self._task = asyncio.ensure_future(self._fly())

    async def _fly(self) -> None:
        try:
            async with self._ask() as answer:
                self._status, self._headers = answer.status, answer.headers
                size = 0
                async for chunk in answer.chunks():
                    self._chunks.append(chunk)
                    self._tell()
                    size += len(chunk)
                    if size > LARGEST_FLIGHT:
                        raise OSError("the answer is too large")
            self._land(self._status, self._headers, self._chunks)
        except Exception as error:  # noqa: BLE001 - raised by each reader
            self._error = error
        finally:
            self._over = True
            self._leave()
            self._tell()

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    @contextlib.asynccontextmanager
    async def join(self) -> AsyncIterator[EngineAnswer]:
        """The answer from its beginning, for one more reader.

        Raises:
            Refused: if no engine began to answer.
        """
        self._readers += 1
        try:
            while not self._chunks and not self._over:
                await self._news.wait()
            if not self._status:
                raise self._error or Refused(502, "no engine answered")
            yield EngineAnswer(self._status, self._headers, b"", self._follow())
        finally:
            self._readers -= 1
            if not self._readers:
                self._task.cancel()

    @property
    def is_open(self) -> bool:
        """True while another reader may join."""
        return not self._over and not self._task.cancelling()  # its last reader may have left a moment ago

    async def _follow(self) -> AsyncIterator[bytes]:
        position = 0
        while True:
            while position < len(self._chunks):
                yield self._chunks[position]
                position += 1
            if self._over:
                break
            await self._news.wait()
        if self._error is not None:
            raise self._error
