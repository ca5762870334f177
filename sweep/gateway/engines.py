"""The engines behind the gateway: which one gets a request, what it answers, and whether it is well."""

import asyncio
import contextlib
import itertools
import resource
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import aiohttp

from sweep.gateway.call import HOP_BY_HOP, Call, Headers, Refused
from sweep.gateway.metrics import Metrics
from sweep.gateway.settings import Gateway

ROUTED_BLOCK = 64  # characters of a prompt that are compared as one
PREFIX_BLOCKS = 200_000  # remembered, of all engines
IMBALANCE = 4  # requests by which an engine may be busier than the least busy one and still get a prefix that it has
NOT_BEGUN = (502, 503)  # statuses of an engine that did not take the request: another may
HEALTH_TIMEOUT = 5.0  # s
MOST_IN_FLIGHT = 4096  # requests that the engines work on at once; others wait here
REACH_TIMEOUT = 30.0  # s


@dataclass(eq=False)
class EngineState:
    """One engine: its URL and what the gateway knows of it."""

    url: str
    healthy: bool = True
    in_flight: int = 0


class Router:
    """Chooses the engine for a request."""

    def __init__(self, engines: list[EngineState], routing: Literal["round_robin", "least_busy", "prefix"]) -> None:
        self.engines, self.routing = engines, routing
        self._turn = itertools.count()
        # Hash of a prompt up to the end of a block -> the engine that has it.
        self._seen: OrderedDict[int, EngineState] = OrderedDict()

    def choose(self, prompt: str, tried: set[EngineState]) -> EngineState | None:
        """A healthy engine that has not been tried; where none is healthy, one that is not. None if all were tried."""
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
        """Forget which engine has which prompts, and whose turn it is."""
        self._turn = itertools.count()
        self._seen.clear()

    def _by_prefix(self, prompt: str, able: list[EngineState], least_busy: EngineState) -> EngineState:
        """The engine that has the longest part of the prompt's beginning, unless it is much busier than another."""
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
    """A hash of the prompt's beginning for each of its whole blocks."""
    value = 0
    for end in range(ROUTED_BLOCK, len(prompt) + 1, ROUTED_BLOCK):
        value = hash((value, prompt[end - ROUTED_BLOCK : end]))
        yield value


@dataclass
class EngineAnswer:
    """An answer that has begun: nothing of it has been sent to the client yet."""

    status: int
    headers: Headers
    first: bytes  # of the body; empty if it has none
    rest: AsyncIterator[bytes]

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body, as it came in."""
        if self.first:
            yield self.first
        async for chunk in self.rest:
            yield chunk


class Engines:
    """Connections to the engines, kept open between requests."""

    def __init__(self, urls: Sequence[str], settings: Gateway, metrics: Metrics) -> None:
        self.states = [EngineState(url.rstrip("/").removesuffix("/v1")) for url in urls]
        self.settings, self.metrics = settings, metrics
        self.router = Router(self.states, settings.routing)
        self._session: aiohttp.ClientSession | None = None

    @property
    def session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=MOST_IN_FLIGHT, ssl=self.settings.verify_tls),
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=REACH_TIMEOUT, sock_read=self.settings.answer_timeout
                ),
                auto_decompress=False,  # bytes pass as they are
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    @contextlib.asynccontextmanager
    async def answer(self, call: Call) -> AsyncIterator[EngineAnswer]:
        """An engine's answer to a call, begun: another engine is asked as long as nothing of it has come.

        Raises:
            Refused: if no engine began to answer.
            aiohttp.ClientError: in the block, from the answer's chunks, if the engine fails later.
        """
        question = call.question if self.settings.routing == "prefix" else None
        prompt = question.text if question else ""
        tried: set[EngineState] = set()
        problem = "no engine is there"
        for attempt in range(self.settings.retries + 1):
            engine = self.router.choose(prompt, tried)
            if engine is None:  # all were tried: perhaps only an idle connection was stale
                tried.clear()
                engine = self.router.choose(prompt, tried)
                assert engine is not None
            tried.add(engine)
            last = attempt == self.settings.retries or (len(tried) == len(self.states) and len(self.states) > 1)
            if attempt:
                self.metrics.retries.inc()
            engine.in_flight += 1
            try:
                async with contextlib.AsyncExitStack() as stack:
                    try:
                        answer = await self._begin(engine, call, stack)
                    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                        engine.healthy = isinstance(error, aiohttp.ServerDisconnectedError)
                        problem = type(error).__name__
                        continue
                    if answer.status in NOT_BEGUN and not last and len(self.states) > 1:
                        problem = f"status {answer.status}"
                        continue
                    yield answer
                    return
            finally:
                engine.in_flight -= 1
        status = 502 if any(engine.healthy for engine in self.states) else 503
        raise Refused(status, f"no engine answered ({problem})", [(b"retry-after", b"1")])

    async def _begin(self, engine: EngineState, call: Call, stack: contextlib.AsyncExitStack) -> EngineAnswer:
        """Send a call to an engine and wait for the first part of its answer."""
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in call.headers]
        post = self.session.post(engine.url + call.path, data=call.body, headers=headers, allow_redirects=False)
        response = await stack.enter_async_context(post)
        body = response.content.iter_any()
        first = await anext(body, b"")
        engine.healthy = True
        kept = [(name, value) for name, value in response.raw_headers if name.lower() not in HOP_BY_HOP]
        return EngineAnswer(response.status, kept, first, body)

    async def get(self, path: str, headers: Headers) -> tuple[int, Headers, bytes]:
        """An engine's answer to a plain question, e.g. which models it serves."""
        engine = self.router.choose("", set())
        assert engine is not None
        plain = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers if name == b"authorization"}
        try:
            async with self.session.get(engine.url + path, headers=plain, allow_redirects=False) as response:
                kept = [(name, value) for name, value in response.raw_headers if name.lower() not in HOP_BY_HOP]
                return response.status, kept, await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Refused(502, f"no engine answered ({type(error).__name__})") from None

    async def watch(self) -> None:
        """Check each engine's health again and again."""
        while True:
            await asyncio.gather(*(self._check(engine) for engine in self.states))
            await asyncio.sleep(self.settings.health_interval)

    async def _check(self, engine: EngineState) -> None:
        timeout = aiohttp.ClientTimeout(total=HEALTH_TIMEOUT)
        try:
            async with self.session.get(f"{engine.url}/health", timeout=timeout, allow_redirects=False) as response:
                engine.healthy = response.status < 500
        except (aiohttp.ClientError, TimeoutError, OSError):
            engine.healthy = False
        self.metrics.engine(engine.url, engine.healthy, engine.in_flight)


def raise_file_limit() -> None:
    """Allow as many open connections as this process may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
