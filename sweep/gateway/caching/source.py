"""The cache's interface to the gateway's application: find answers, join requests in flight, store answers."""

import asyncio
import time
from collections.abc import Callable

from sweep.gateway.caching.answer import complete_answer
from sweep.gateway.caching.cache import AnswerCache, Entry, Hit
from sweep.gateway.caching.embedding import Embedder, Vector
from sweep.gateway.caching.flight import Ask, Flight, FlightMemory
from sweep.gateway.caching.keys import AnswerKey
from sweep.gateway.call import Call, Headers
from sweep.gateway.metrics import Metrics
from sweep.gateway.settings import Cache

LONG_QUESTION = 4000  # characters of a text that is embedded in a thread, since it takes more than a millisecond


class AnswerSource:
    """Serves requests without the engine: from stored answers, or by sharing an answer in flight."""

    def __init__(self, settings: Cache, metrics: Metrics, clock: Callable[[], float] = time.time) -> None:
        self.settings, self.metrics, self.clock = settings, metrics, clock
        self._embedder = None if settings.mode == "exact" else Embedder()
        self._cache = AnswerCache(settings, self._embedder.dimensions if self._embedder else 0, clock)
        self._flights: dict[AnswerKey, Flight] = {}
        self._memory = FlightMemory(settings.bytes)  # for flights, as much as for stored answers
        metrics.entries.set(0)

    async def find(self, call: Call, key: AnswerKey) -> tuple[Hit | None, Vector | None]:
        """Return the answer to this prompt or a similar one, and this prompt's vector if it was computed."""
        if hit := self._cache.same(key):
            return hit, None
        question = call.question
        if self._embedder is None or question is None or not question.is_text:
            return None, None
        if len(question.text) > LONG_QUESTION:
            vector = await asyncio.to_thread(self._embedder.embed, question.text)
        else:
            vector = self._embedder.embed(question.text)
        return self._cache.similar(key, vector), vector

    def board(self, call: Call, key: AnswerKey, vector: Vector | None, ask: Ask) -> tuple[Flight, bool]:
        """Return the flight that carries the answer, and whether an earlier request started it."""
        flight = self._flights.get(key) if self.settings.single_flight else None
        if flight is not None and flight.is_open:
            return flight, True

        def land(status: int, headers: Headers, chunks: list[bytes]) -> None:
            answer = complete_answer(status, headers, chunks, call.request_id)
            if answer is not None:
                self._cache.add(Entry(key, vector, answer, self.clock()))
                self.metrics.entries.set(len(self._cache))

        def leave() -> None:
            if self._flights.get(key) is flight:
                del self._flights[key]

        flight = Flight(ask, land, leave, self._memory)
        self._flights[key] = flight
        return flight, False

    def clear(self) -> None:
        self._cache.clear()
        self.metrics.entries.set(0)
