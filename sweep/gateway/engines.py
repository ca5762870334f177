"""The engines behind the gateway: routing requests to them, their answers, and their health."""

import asyncio
import contextlib
import itertools
import resource
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from sweep.gateway.call import Call, Headers, Refused
from sweep.gateway.connection import EngineConnection, EngineConnections, StaleConnection
from sweep.gateway.metrics import Metrics
from sweep.gateway.settings import Gateway

ROUTED_BLOCK = 64  # characters in a block of a prompt
PREFIX_BLOCKS = 200_000  # blocks remembered for all engines together
IMBALANCE = 4  # an engine with a prompt's prefix may have this many requests more than the least busy engine
NOT_BEGUN = (502, 503)  # statuses of an engine that did not accept the request, so that another engine is tried
HEALTH_TIMEOUT, PLAIN_TIMEOUT = 5.0, 30.0  # s for an engine's health, and for e.g. its list of models
MOST_IN_FLIGHT = 4096  # slots for requests at the engines; further requests wait here
CONNECTION_CHECK = 1.0  # s between two checks of the time-outs


@dataclass(eq=False)
class EngineState:
    """One engine: its URL and its state, as observed by the gateway."""

    url: str
    healthy: bool = True
    in_flight: int = 0


class Router:
    """Chooses the engine for a request."""

    def __init__(self, engines: list[EngineState], routing: Literal["round_robin", "least_busy", "prefix"]) -> None:
        self.engines, self.routing = engines, routing
        self._turn = itertools.count()
        # Hash of a prompt's prefix up to the end of a block -> the engine that has it cached.
        self._seen: OrderedDict[int, EngineState] = OrderedDict()

    def choose(self, prompt: str, tried: set[EngineState]) -> EngineState | None:
        """Return a healthy engine that has not been tried, else an unhealthy engine; None if all were tried."""
        untried = [engine for engine in self.engines if engine not in tried]
        able = [engine for engine in untried if engine.healthy] or untried
        if len(able) < 2:
            return able[0] if able else None
        if self.routing == "round_robin":
            return able[next(self._turn) % len(able)]
        least = min(engine.in_flight for engine in able)
        idle = [engine for engine in able if engine.in_flight == least]
        chosen = idle[next(self._turn) % len(idle)]
        return self._by_prefix(prompt, able, chosen) if self.routing == "prefix" else chosen

    def reset(self) -> None:
        """Reset the record of prefixes per engine, and the round-robin position."""
        self._turn = itertools.count()
        self._seen.clear()

    def _by_prefix(self, prompt: str, able: list[EngineState], least_busy: EngineState) -> EngineState:
        """Return the engine that has the prompt's longest prefix cached, unless it is much busier than another."""
        blocks = list(_blocks(prompt))
        chosen = least_busy
        for block in reversed(blocks):
            engine = self._seen.get(block)
            if engine is not None and engine in able and engine.in_flight - least_busy.in_flight <= IMBALANCE:
                chosen = engine
                break
        for block in blocks:
            self._seen[block] = chosen
            self._seen.move_to_end(block)
        while len(self._seen) > PREFIX_BLOCKS:
            self._seen.popitem(last=False)
        return chosen


def _blocks(prompt: str) -> Iterator[int]:
    """Yield a hash of the prompt up to each block. A message has blocks of its own, so that a short one counts, too."""
    value, (text, *messages) = 0, prompt.split("\0")
    for part in (text[: len(text) // ROUTED_BLOCK * ROUTED_BLOCK], *messages):
        for begin in range(0, len(part), ROUTED_BLOCK):
            value = hash((value, part[begin : begin + ROUTED_BLOCK]))
            yield value


class BegunAnswer(Protocol):
    """The interface of an answer that has begun, but has not been sent to the client yet."""

    status: int
    headers: Headers

    async def read(self) -> bytes:
        """Return the next bytes of the body as they arrived; empty at its end. Raises OSError if it was cut off."""
        ...

    def close(self) -> None:
        """Stop the engine's request unless it is done."""
        ...


class EngineAnswer:
    def __init__(self, engine: EngineState, connections: EngineConnections, connection: EngineConnection) -> None:
        self._engine, self._connections, self._connection = engine, connections, connection
        self.status, self.headers, self.read = connection.status, connection.headers, connection.read
        self.slots: asyncio.Semaphore | None = None  # the answer holds a slot until it is closed

    def close(self) -> None:
        self._engine.in_flight -= 1
        self._connections.release(self._connection)
        if self.slots is not None:
            self.slots.release()


class Engines:
    """The engines, and the connections to them."""

    def __init__(
        self, urls: Sequence[str], settings: Gateway, metrics: Metrics, path: str | None = None, token: str = ""
    ) -> None:
        """`path`: where requests go at the engines; None: the path of the client's request. `token`: for a relay."""
        self._path = path
        self.states = [EngineState(url.rstrip("/").removesuffix("/v1")) for url in urls]
        self.settings, self.metrics = settings, metrics
        self.router = Router(self.states, settings.routing)
        self._slots = asyncio.Semaphore(MOST_IN_FLIGHT)
        self._connections = {
            engine: EngineConnections(engine.url, settings.verify_tls, settings.proxy, token) for engine in self.states
        }

    def close(self) -> None:
        for connections in self._connections.values():
            connections.close()

    async def answer(self, call: Call) -> BegunAnswer:
        """Return an engine's answer to a call once it has begun; if an engine fails before that, try the next.

        Raises Refused if no engine began to answer.
        """
        await self._slots.acquire()
        try:
            answer = await self._first_answer(call)
        except BaseException:
            self._slots.release()
            raise
        answer.slots = self._slots
        return answer

    async def _first_answer(self, call: Call) -> EngineAnswer:
        prompt = call.opening if self.settings.routing == "prefix" and len(self.states) > 1 else ""
        tried: set[EngineState] = set()
        problem = "no engine is configured"
        for attempt in range(self.settings.retries + 1):
            engine = self.router.choose(prompt, tried)
            if engine is None:  # all were tried, but a connection may just have been stale
                tried.clear()
                engine = self.router.choose(prompt, tried)
                assert engine is not None
            tried.add(engine)
            last = attempt == self.settings.retries or (len(tried) == len(self.states) and len(self.states) > 1)
            if attempt:
                self.metrics.retries.inc()
            try:
                answer = await self._begin(engine, call)
            except (OSError, ValueError) as error:
                engine.healthy = isinstance(error, StaleConnection)
                problem = type(error).__name__
                continue
            engine.healthy = True
            if answer.status not in NOT_BEGUN or last or len(self.states) == 1:
                return answer
            answer.close()
            problem = f"status {answer.status}"
        status = 502 if any(engine.healthy for engine in self.states) else 503
        raise Refused(status, f"no engine answered ({problem})", [(b"retry-after", b"1")])

    async def _begin(self, engine: EngineState, call: Call) -> EngineAnswer:
        """Send a call to an engine and wait for the first part of its answer. Raises OSError if it does not begin."""
        connections = self._connections[engine]
        engine.in_flight += 1
        try:
            connection = await connections.ask(b"POST", self._path or call.path, call.headers, call.body)
        except BaseException:
            engine.in_flight -= 1
            raise
        return EngineAnswer(engine, connections, connection)

    async def get(self, path: str, headers: Headers) -> tuple[int, Headers, bytes]:
        """Return an engine's answer to a plain request, e.g. for its list of models."""
        engine = self.router.choose("", set())
        assert engine is not None
        try:
            async with asyncio.timeout(PLAIN_TIMEOUT):
                return await self._get(engine, path, [pair for pair in headers if pair[0] == b"authorization"])
        except (OSError, ValueError) as error:
            raise Refused(502, f"no engine answered ({type(error).__name__})") from None

    async def _get(self, engine: EngineState, path: str, headers: Headers) -> tuple[int, Headers, bytes]:
        connections = self._connections[engine]
        connection = await connections.ask(b"GET", path, headers)
        try:
            return connection.status, connection.headers, await connection.read_all()
        finally:
            connections.release(connection)

    async def watch(self) -> None:
        """Check each engine's health repeatedly."""
        while True:
            await asyncio.gather(*(self._check(engine) for engine in self.states))
            await asyncio.sleep(self.settings.health_interval)

    async def watch_connections(self) -> None:
        """Interrupt the answers of engines that are silent for too long."""
        while True:
            await asyncio.sleep(CONNECTION_CHECK)
            for connections in self._connections.values():
                connections.check(self.settings.answer_timeout)

    async def _check(self, engine: EngineState) -> None:
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT):
                status, _, _ = await self._get(engine, "/health", [])
            engine.healthy = status < 500
        except (OSError, ValueError):
            engine.healthy = False
        self.metrics.engine(engine.url, engine.healthy, engine.in_flight)


def raise_file_limit() -> None:
    """Raise the limit on open files (connections) to this process's hard limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
