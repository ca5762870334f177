"""Persistent HTTP/1.1 connections to one engine, on httptools, with only the features that the gateway needs.

On a busy machine, aiohttp's client took 0.28 ms to send a request, and this client 0.05 ms. The gateway may add only 1
ms in total to the time to first token.
"""

import asyncio
import socket
from collections import deque
from typing import cast
from urllib.parse import urlsplit

import httptools

from backends.launch.relay import TOKEN_HEADER
from sweep.base.records import LARGEST_HEAD, ProxyUse, open_tunnel, proxy_of, request_path, tls_context
from sweep.gateway.call import HOP_BY_HOP, Headers, Refused

REACH_TIMEOUT = 30.0  # s to connect
LONGEST_IDLE = 15.0  # s after which an idle connection is not reused
LARGEST_PLAIN = 4 << 20  # maximum bytes of an answer that is read whole, e.g. a list of models
MOST_UNREAD = 256 << 10  # unread bytes of an answer above which its engine is paused


class EngineFailed(ConnectionError):
    """The engine dropped the connection, or its answer is not HTTP."""


class StaleConnection(EngineFailed):
    """The engine closed the connection instead of answering, probably because it had been idle."""


class EngineConnection(asyncio.Protocol):
    """Handles one request at a time: `send` it, wait until its answer has `begun`, and `read` the body."""

    def __init__(self) -> None:
        self.status, self.headers = 0, Headers()
        self.is_open = True
        self.last_active = 0.0  # the loop's time at which the engine last sent bytes, or the request was sent
        self.answered = 0  # number of requests
        self.loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self._error: Exception | None = None
        self._parts: list[bytes] = []
        self._unread = self._framing = 0  # bytes; the latter in a row that are in no body
        self._is_busy = self._has_head = self._is_sized = self._is_complete = self._is_paused = False
        self._is_lasting = False  # whether the engine keeps the connection open

    # -- called by the requester

    def send(self, head: bytes, body: bytes) -> None:
        """Send a request. Raises StaleConnection if the engine has closed the connection."""
        if not self.is_open:
            raise StaleConnection("the engine closed the connection instead of answering")
        self.status, self.headers, self._error = 0, [], None
        self._unread = self._framing = 0
        self._is_busy, self._has_head, self._is_sized, self._is_complete = True, False, False, False
        self.last_active = self.loop.time()
        self._transport.write(head + body)

    async def begun(self) -> None:
        """Wait for the answer's first bytes after its head, or for its end. Raises EngineFailed if none begins."""
        while not self._parts and not self._is_complete:
            await self._wait()

    async def read(self) -> bytes:
        """Return the next bytes of the body as they arrived; empty at its end.

        Raises EngineFailed or TimeoutError if the answer was cut off.
        """
        while not self._parts:
            if self._is_complete:
                return b""
            await self._wait()
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self._unread = 0
        if self._is_paused:
            self._is_paused = False
            self._transport.resume_reading()
            self.last_active = self.loop.time()
        return data

    async def read_all(self) -> bytes:
        """Return the whole body. Raises the same errors as `read`."""
        body = bytearray()
        while part := await self.read():
            body += part
            if len(body) > LARGEST_PLAIN:
                raise EngineFailed(f"the engine's answer exceeds {LARGEST_PLAIN} bytes")
        return bytes(body)

    async def _wait(self) -> None:
        if self._error is not None:
            raise self._error
        self._waiter = self.loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    @property
    def is_waiting(self) -> bool:
        """Return whether more bytes are expected from the engine."""
        return self._is_busy and not self._is_complete and not self._is_paused

    def finish(self) -> bool:
        """End the exchange; return whether the connection can be used again. Otherwise it is closed."""
        is_over = self._is_complete and self._error is None and not self._transport.get_write_buffer_size()
        self._is_busy = False
        self._parts.clear()
        if is_over and self.is_open and not self._is_paused and self._is_lasting:
            self.answered += 1
            self.last_active = self.loop.time()
            return True
        self.abort()
        return False

    def abort(self) -> None:
        """Close at once; unsent and unread data are lost."""
        self.is_open = False
        self._transport.abort()

    def fail(self, error: Exception) -> None:
        """Interrupt the answer with an error, unless it is complete."""
        if not self._is_complete and self._error is None:
            self._error = error
        self._wake()
        self.abort()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # -- called by the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's class is not a subclass of asyncio's

    def data_received(self, data: bytes) -> None:
        if not self._is_busy or self._is_complete:
            self.abort()  # bytes that nobody requested
            return
        self.last_active = self.loop.time()
        self._framing += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.fail(EngineFailed("the engine's answer is not HTTP"))
            return
        if self._framing > LARGEST_HEAD and not self._is_complete:
            self.fail(EngineFailed(f"the headers of the engine's answer exceed {LARGEST_HEAD} bytes"))
            return
        if self._parts or self._is_complete:
            self._wake()
        if self._unread > MOST_UNREAD and not self._is_paused and not self._is_complete:
            self._is_paused = True
            self._transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        if self._has_head and not self._is_sized and exc is None:
            self._is_complete = True  # the body ends when the connection does
            self._wake()
        elif not self._has_head and not self._framing and (exc is None or self.answered):
            self.fail(StaleConnection("the engine closed the connection instead of answering"))
        else:
            self.fail(EngineFailed("the engine closed the connection before the end of its answer"))

    # -- called by the parser

    def on_message_begin(self) -> None:
        if self._is_complete:
            raise ValueError("a second answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._has_head:
            return  # a trailer
        lower = name.lower()
        if lower in (b"content-length", b"transfer-encoding"):
            self._is_sized = True
        if lower not in HOP_BY_HOP:
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:  # an interim answer
            self.headers, self._is_sized = [], False
        else:
            self.status, self._has_head, self._framing = status, True, 0

    def on_body(self, data: bytes) -> None:
        self._parts.append(data)
        self._unread += len(data)
        self._framing = 0

    def on_message_complete(self) -> None:
        if self._has_head:
            self._is_complete = True
            self._is_lasting = self._parser.should_keep_alive()


class EngineConnections:
    """The connections to one engine. The most recently used connection is reused first, since it is the warmest."""

    def __init__(self, url: str, verify_tls: bool, proxy: ProxyUse = "none", token: str = "") -> None:
        parts, via = urlsplit(url), proxy_of(url, proxy)
        self._url, self._authority = url, parts.netloc.rpartition("@")[2].encode()
        self._tls = tls_context(verify_tls) if parts.scheme == "https" else None
        self._server = parts.hostname or "", parts.port or (443 if self._tls else 80)
        self._address = via.address if via else self._server
        self._tunnel = via.connect_request(*self._server) if via and self._tls else b""
        forwarded = via and not self._tls
        self._origin = b"http://" + self._authority if forwarded else b""  # a proxy gets the whole address
        self._key_lines = [via.authorization.rstrip().encode()] if via and forwarded and via.authorization else []
        self._key_lines += [f"{TOKEN_HEADER}: {token}".encode()] if token else []
        self._idle: deque[EngineConnection] = deque()
        self._busy: set[EngineConnection] = set()

    async def ask(self, method: bytes, path: str, headers: Headers, body: bytes = b"") -> EngineConnection:
        """Send a request; return the connection once its answer has begun. Return it with `release`.

        Raises OSError if the engine cannot be reached, or its answer does not begin.
        """
        head = self._head(method, path, headers, body)
        connection = self._idle_connection() or await self._connect()
        self._busy.add(connection)
        try:
            connection.send(head, body)
            await connection.begun()
        except BaseException:
            self._busy.discard(connection)
            connection.abort()
            raise
        return connection

    def release(self, connection: EngineConnection) -> None:
        """End the exchange on a connection, whether or not its answer was read to the end."""
        self._busy.discard(connection)
        if connection.finish():
            self._idle.append(connection)

    def check(self, timeout: float) -> None:
        """Interrupt answers whose engine has been silent for `timeout` seconds, and close idle connections."""
        now = asyncio.get_running_loop().time()
        for connection in [each for each in self._busy if each.is_waiting]:
            if now - connection.last_active > timeout:
                connection.fail(TimeoutError(f"the engine was silent for {timeout:g} s"))
        while self._idle and (not self._idle[0].is_open or now - self._idle[0].last_active > LONGEST_IDLE):
            self._idle.popleft().abort()

    def close(self) -> None:
        for connection in (*self._idle, *self._busy):
            connection.abort()

    def _idle_connection(self) -> EngineConnection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open and connection.loop.time() - connection.last_active < LONGEST_IDLE:
                return connection
            connection.abort()
        return None

    async def _connect(self) -> EngineConnection:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(REACH_TIMEOUT):
            if not self._tunnel:
                _, connection = await loop.create_connection(EngineConnection, *self._address, ssl=self._tls)
                return connection
            addresses = await loop.getaddrinfo(*self._address, type=socket.SOCK_STREAM)
            for number, (family, kind, protocol, _, address) in enumerate(addresses, 1):
                sock = socket.socket(family, kind, protocol)
                try:
                    sock.setblocking(False)
                    await loop.sock_connect(sock, address)
                    break
                except BaseException as error:
                    sock.close()
                    if number == len(addresses) or not isinstance(error, OSError):
                        raise
            try:
                await open_tunnel(loop, sock, self._tunnel)
                _, connection = await loop.create_connection(
                    EngineConnection, sock=sock, ssl=self._tls, server_hostname=self._server[0]
                )
            except BaseException:
                sock.close()
                raise
        return connection

    def _head(self, method: bytes, path: str, headers: Headers, body: bytes) -> bytes:
        address = self._origin + request_path(self._url, path).encode()
        lines = [b"%b %b HTTP/1.1\r\nhost: %b" % (method, address, self._authority), *self._key_lines]
        lines += [b"%b: %b" % pair for pair in headers]
        lines.append(b"content-length: %d\r\n\r\n" % len(body))
        head = b"\r\n".join(lines)
        line_ends = len(lines) + 2  # `lines[0]` contains one more, and two end the head
        if head.count(b"\n") != line_ends or head.count(b"\r") != line_ends or b"\0" in head:
            raise Refused(400, "a header of the request contains a line break")
        return head
