"""The gateway's ASGI application, which handles a request from start to end."""

import asyncio
import contextlib
import hmac
import json
import time

from sweep.gateway.caching.cache import Hit
from sweep.gateway.caching.keys import key_of
from sweep.gateway.caching.source import LONG_QUESTION, AnswerSource
from sweep.gateway.call import QUESTION_KEYS, Call, Headers, Receive, Refused, RequestMemory, Scope, Send
from sweep.gateway.clipping import Clipper
from sweep.gateway.engines import BegunAnswer, Engines
from sweep.gateway.metrics import Decision, Metrics
from sweep.gateway.settings import RESET_HEADER, RESET_VARIABLE, Gateway

JSON = [(b"content-type", b"application/json")]
TEXT = [(b"content-type", b"text/plain; version=0.0.4")]
CACHE_HEADER = b"x-gateway-cache"
STALL_CHECK = 1.0  # s


class BrokenAnswer(Exception):
    """An answer was cut off in the middle: the connection is closed so that the client notices."""


class Exchange:
    """One request and its answer on the client's connection."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.receive, self._send = receive, send
        self._connection = scope["extensions"]["gateway.connection"]
        self.task = asyncio.current_task()
        self.status = 0  # status of the answer; 0 before the answer has begun
        self.gone = False  # whether the client left, or left the answer unread for too long
        self.blocked_since: float | None = None
        self.ends_event = True  # whether the last part sent was the end of an event

    async def begin(self, status: int, headers: Headers) -> None:
        self.status = status
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, chunk: bytes, more: bool = True) -> None:
        self.blocked_since = time.monotonic()
        await self._send({"type": "http.response.body", "body": chunk, "more_body": more})
        self.blocked_since = None
        self.ends_event = chunk.endswith((b"\n\n", b"\r\n\r\n"))

    async def answer(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a complete answer."""
        await self.begin(status, [*headers, (b"content-length", b"%d" % len(body))])
        await self.write(body, more=False)

    def __enter__(self) -> "Exchange":
        """Cancel the block when the client disconnects, since nobody is waiting for the answer."""
        self._connection.on_leave = self.drop
        return self

    def __exit__(self, *error: object) -> None:
        self._connection.on_leave = None

    def drop(self) -> None:
        """End the exchange without an answer."""
        self.gone = True
        self._connection.transport.abort()  # closing would wait until the client has read the buffered data
        if self.task is not None:
            self.task.cancel()


class GatewayApp:
    """The application: one instance for the life of the server."""

    def __init__(
        self,
        settings: Gateway,
        engines: Engines,
        clipper: Clipper,
        source: AnswerSource | None,
        metrics: Metrics,
        reset_key: str = "",
    ) -> None:
        self.settings, self.engines, self.clipper, self.source = settings, engines, clipper, source
        self.metrics, self.reset_key = metrics, reset_key
        self.event_interval = settings.cache.event_interval if settings.cache else 0.0
        self.memory = RequestMemory(settings.bodies)
        self._exchanges: set[Exchange] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        exchange = Exchange(scope, receive, send)
        self._exchanges.add(exchange)
        try:
            if scope["method"] == "POST" and scope["path"] in QUESTION_KEYS:
                with exchange:
                    await self._tell(scope, exchange)
            else:
                await self._control(scope, exchange)
        except asyncio.CancelledError:
            if not exchange.gone:
                raise
            raise BrokenAnswer from None  # makes the server close the connection
        finally:
            self._exchanges.discard(exchange)

    async def _tell(self, scope: Scope, exchange: Exchange) -> None:
        """Handle a request from start to end, including errors, and log it."""
        decision = Decision("")
        limits = self.settings.largest_body, self.settings.request_timeout
        try:
            async with self.memory.read_call(scope, exchange.receive, *limits) as call:
                await self._answer(call, exchange, decision)
        except (Refused, RecursionError) as error:
            deep = "the request's body is nested too deeply"  # it could be parsed, but not serialized
            refusal = error if isinstance(error, Refused) else Refused(400, deep)
            decision.error = refusal.message
            if exchange.status:
                raise BrokenAnswer from error
            await exchange.answer(refusal.status, [*JSON, *refusal.headers], refusal.body)
        except OSError as error:
            decision.error = type(error).__name__
            raise BrokenAnswer from error
        finally:
            decision.status = 499 if exchange.gone or not exchange.status else exchange.status
            self.metrics.decided(decision)

    async def _answer(self, call: Call, exchange: Exchange, decision: Decision) -> None:
        decision.request_id = call.request_id
        if self.clipper.tokenizer is not None and len(call.body) > LONG_QUESTION:  # this takes over a millisecond
            call, clipped = await asyncio.to_thread(self.clipper.clip, call)
        else:
            call, clipped = self.clipper.clip(call)
        decision.input_before, decision.input_after, decision.output_before, decision.output_after = clipped
        notes = [(b"x-gateway-clipped", clipped.header)] if clipped.header else []
        key = key_of(call) if self.source is not None else None
        if self.source is None or key is None:
            decision.cache = "off" if self.source is None else "uncacheable"
            await self._pass_on(await self.engines.answer(call), notes, exchange)
            return
        hit, vector = await self.source.find(call, key)
        if hit is not None:
            await self._replay(hit, notes, exchange, decision)
            return
        flight, shared = self.source.board(call, key, vector, lambda: self.engines.answer(call))
        decision.cache = "shared" if shared else "miss"
        notes.append((CACHE_HEADER, decision.cache.encode()))
        await self._pass_on(await flight.join(), notes, exchange)

    async def _pass_on(self, begun: BegunAnswer, notes: Headers, exchange: Exchange) -> None:
        """Forward an engine's answer as it arrives, byte for byte."""
        with contextlib.closing(begun) as answer:
            await exchange.begin(answer.status, [*answer.headers, *notes])
            while True:
                try:
                    chunk = await answer.read()
                except OSError:
                    await self._report_break(answer, exchange)
                    raise
                if not chunk:
                    break
                await exchange.write(chunk)
        await exchange.write(b"", more=False)

    async def _replay(self, hit: Hit, notes: Headers, exchange: Exchange, decision: Decision) -> None:
        """Serve a stored answer in its original form; a stream is sent event by event."""
        answer = hit.entry.answer
        decision.cache = "exact" if hit.exact else "semantic"
        decision.similarity, decision.origin = round(hit.similarity, 4), answer.origin
        decision.cached_input_tokens, decision.cached_output_tokens = answer.input_tokens, answer.output_tokens
        facts = [(CACHE_HEADER, decision.cache.encode()), (b"x-gateway-similarity", b"%.4f" % hit.similarity)]
        kind = (b"content-type", answer.content_type.encode("latin-1"))
        if not answer.is_stream:
            await exchange.answer(200, [kind, *facts, *notes], b"".join(answer.replay()))
            return
        await exchange.begin(200, [kind, *facts, *notes])
        for number, part in enumerate(answer.replay()):
            if number:
                await asyncio.sleep(self.event_interval)
            await exchange.write(part)
        await exchange.write(b"", more=False)

    async def _report_break(self, answer: BegunAnswer, exchange: Exchange) -> None:
        """Send an error event to a stream's client: the engine failed after the status had been sent."""
        if any(name.lower() == b"content-type" and b"event-stream" in value for name, value in answer.headers):
            refusal = Refused(502, "the engine failed before its answer was complete")
            await exchange.write((b"" if exchange.ends_event else b"\n\n") + b"data: " + refusal.body + b"\n\n")

    # -- requests other than completions

    async def _control(self, scope: Scope, exchange: Exchange) -> None:
        method, path = scope["method"], scope["path"]
        try:
            if path == "/metrics":
                await exchange.answer(200, TEXT, self.metrics.text())
            elif path == "/health":
                healthy = any(engine.healthy for engine in self.engines.states)
                await exchange.answer(200 if healthy else 503, JSON, json.dumps({"healthy": healthy}).encode())
            elif path == "/gateway/state":
                await exchange.answer(200, JSON, json.dumps(self.metrics.state()).encode())
            elif path == "/gateway/reset" and method == "POST":
                await self._reset(scope, exchange)
            elif path in ("/v1/models", "/version") and method == "GET":
                status, headers, body = await self.engines.get(path, scope["headers"])
                kept = [pair for pair in headers if pair[0].lower() != b"content-length"]
                await exchange.answer(status, kept, body)
            elif path in QUESTION_KEYS:
                raise Refused(405, f"{method}: expected POST", [(b"allow", b"POST")])
            else:
                raise Refused(404, f"no such path; the gateway serves {', '.join(QUESTION_KEYS)} and /v1/models")
        except Refused as refusal:
            await exchange.answer(refusal.status, [*JSON, *refusal.headers], refusal.body)

    async def _reset(self, scope: Scope, exchange: Exchange) -> None:
        """Reset the gateway for a benchmark's next trial; the request must have the key from the gateway's start.

        Checking the address would not help: behind a proxy on this machine, all clients have this machine's address.
        """
        key = next((value for name, value in scope["headers"] if name == RESET_HEADER.encode()), b"")
        if not self.reset_key or not hmac.compare_digest(key, self.reset_key.encode()):
            raise Refused(403, f"needs the header {RESET_HEADER}, with the key in {RESET_VARIABLE}")
        self.metrics.reset()
        self.engines.router.reset()
        if self.source is not None:
            self.source.clear()
        await exchange.answer(200, JSON, b"{}")

    # -- background tasks

    async def watch_clients(self) -> None:
        """Drop clients that do not read their answer, to free their slot at the engine."""
        while True:
            await asyncio.sleep(STALL_CHECK)
            latest = time.monotonic() - self.settings.stall_timeout
            for exchange in list(self._exchanges):
                if exchange.blocked_since is not None and exchange.blocked_since < latest:
                    exchange.drop()
