"""A persistent HTTP/1.1 connection that timestamps received data with the kernel's time of arrival.

A plain non-blocking socket, watched by a `Poller`: `recvmsg` gives the bytes and the kernel's receive stamp
(SO_TIMESTAMPNS), httptools the framing, `wire.Answer` the tokens. The start is stamped when the request is written. TLS
runs through ssl.MemoryBIO over the same socket, so that the kernel stamps its bytes too. A stamp belongs to the last
segment of a read: token events in one read share it, so such reads are counted.
"""

import asyncio
import socket
import ssl
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httptools

from sweep.base.clock import STAMP_OPTION, StampClock
from sweep.base.records import HTTP2_ONLY, LARGEST_HEAD, TunnelRefused, is_http2, open_tunnel, tls_remedy
from sweep.client.poller import Poller
from sweep.client.wire import Answer

READ_SIZE = 64 << 10
PATIENT_READ_SIZE = 4 << 10  # bytes to read when one token is expected: a small buffer is cheaper to create
STALE_AFTER = 1_000_000_000  # ns idle after which a kept-alive connection is checked before it is used
_STAMP = struct.Struct("qq")
_ANCILLARY = socket.CMSG_SPACE(_STAMP.size)
_CR, _LF = b"\r\n"


def _chunk_head(length: int) -> bytes | tuple[()]:
    """Return the header of an HTTP chunk that takes `length` bytes in total; () if no chunk has this length.

    RFC 9112, 7.1: the size in hexadecimal digits, CR LF, as many bytes, CR LF. The last chunk, of size 0, is excluded.
    """
    for digits in range(1, 8):
        size = length - digits - 4
        if size > 0 and len(f"{size:x}") == digits:
            return b"%x\r\n" % size
    return ()


_CHUNK_HEADS = [_chunk_head(length) for length in range(PATIENT_READ_SIZE)]


@dataclass(slots=True)
class Counters:
    """Counts the reads of all connections of one client process."""

    multi_event_reads: int = 0  # reads that contained more than one token event of a prompt
    kernel_stamps: int = 0  # reads that the kernel stamped
    user_stamps: int = 0  # reads that the kernel did not stamp


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """The server's address, resolved once, before the clock starts."""

    family: int
    sockaddr: tuple[str | int | bytes, ...]
    hostname: str
    tls: ssl.SSLContext | None
    connect_timeout: float  # s
    keep_alive: bool = True  # False if requests ask the server to close: each has a separate connection
    # Asks the proxy at this address for a tunnel to the server; empty if there is no proxy. It may hold a password.
    tunnel: bytes = field(default=b"", repr=False)


@dataclass(slots=True, eq=False)
class StampedConnection:
    """Handles one request at a time: `begin` writes it; at the end, `on_done` gets the connection and its Answer.

    The connection reopens itself after the server has closed it. Every failure becomes the Answer's error.
    """

    _loop: asyncio.AbstractEventLoop
    _poller: Poller
    _address: ServerAddress
    _stamps: StampClock
    _counters: Counters
    _on_done: Callable[["StampedConnection", Answer], None]
    answer: Answer | None = None  # the answer in flight
    begun: int = 0  # ns, time of the call of `begin`
    idle_since: int = 0
    context: object = None  # the caller's data about the request in flight
    _sock: socket.socket | None = None
    _tls: "_Tls | None" = None
    _opening: asyncio.Task[None] | None = None
    _parser: Any = None  # httptools' parser, one for each socket
    _request: bytes = b""
    _unsent: memoryview | bytes = b""
    _patient: bool = False  # whether the socket may wait for the next round of reads
    _arrived: int = 0  # ns; stamp of the read that the parser is processing
    _sized: bool = False  # whether the response declares where it ends
    _answered: bool = False
    _keep_alive: bool = False
    _answers: int = 0  # responses on this socket
    _connecting: int = 0  # ns, when this socket was created
    _connected: int = 0  # ns, when the socket was connected
    _part: bytes = b""  # the part of the body that the parser returned last
    _between_chunks: bool = False  # whether the next byte begins a chunk
    _framing: int = 0  # bytes in a row that are in no body: headers, trailers, chunk sizes

    @property
    def is_open(self) -> bool:
        return self._sock is not None

    async def open(self) -> None:
        """Connect unless connected. Raises OSError if that fails."""
        if self._sock is not None:
            return
        if self._opening is None:
            self._opening = self._loop.create_task(self._open())
        await asyncio.shield(self._opening)

    async def _open(self) -> None:
        sock: socket.socket | None = None  # inside the try: if no file descriptor is free, `_opening` is cleared too
        self._connecting = time.monotonic_ns()
        try:
            sock = socket.socket(self._address.family, socket.SOCK_STREAM)
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, STAMP_OPTION, 1)
            async with asyncio.timeout(self._address.connect_timeout):
                await self._loop.sock_connect(sock, self._address.sockaddr)
                if self._address.tunnel:
                    await open_tunnel(self._loop, sock, self._address.tunnel)
                if self._address.tls:
                    self._tls = _Tls(self._address.tls, self._address.hostname)
                    await self._tls.handshake(self._loop, sock)
        except BaseException:
            self._tls = None
            if sock is not None:
                sock.close()
            raise
        finally:
            self._opening = None
        self._sock = sock
        self._parser = httptools.HttpResponseParser(self)
        self._between_chunks, self._answers = False, 0
        self.idle_since = self._connected = time.monotonic_ns()
        self._poller.add(sock.fileno(), self._readable)

    def close(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
        if self._sock is not None:
            self._poller.remove(self._sock.fileno(), self._patient)
            self._patient = False
            self._loop.remove_writer(self._sock.fileno())
            self._sock.close()
            self._sock = self._tls = None

    def begin(self, request: bytes, answer: Answer) -> None:
        """Send a request: at once if the connection is open, otherwise once it is."""
        self.answer, self._request, self.begun = answer, request, time.monotonic_ns()
        self._answered, self._unsent, self._framing = False, b"", 0
        if self._sock is not None and self.begun - self.idle_since > STALE_AFTER and self._gone():
            self.close()
        if self._sock is not None:
            self._send()
        else:
            self._loop.create_task(self._open_and_send(answer))

    def abandon(self, error: str | None) -> None:
        """Abandon the request in flight, and close the socket, since more bytes of the answer may still arrive."""
        answer = self.answer
        if answer is not None:
            if error is not None:
                answer.fail(error)
            self.close()
            self._finish(answer)

    def _abandon(self, answer: Answer, error: str) -> None:
        if self.answer is answer:
            self.abandon(error)

    async def _open_and_send(self, answer: Answer) -> None:
        try:
            await self.open()
        except asyncio.CancelledError:
            return  # the request was abandoned while the connection opened
        except (OSError, TimeoutError) as error:
            if self.answer is answer:
                problem = "" if isinstance(error, TunnelRefused) else "connect: "  # a proxy's refusal is not an outage
                answer.fail(f"{problem}{_in_one_line(error)}{tls_remedy(error)}")
                self._finish(answer)
            return
        if self.answer is answer:
            self._send()

    def _send(self) -> None:
        assert self._sock is not None
        assert self.answer is not None
        data = self._tls.encrypt(self._request) if self._tls else self._request
        self._request = b""
        if not self._answers:
            self.answer.connecting, self.answer.connected = self._connecting, self._connected
        self.answer.sent = time.monotonic_ns()
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            # Not at once: `on_done` must not be called before `begin` has returned.
            self._loop.call_soon(self._abandon, self.answer, self._explain(f"reset: {_in_one_line(error)}"))
            return
        if sent < len(data):
            self._unsent = memoryview(data)[sent:]
            self._loop.add_writer(self._sock.fileno(), self._writable)
        self._be_patient(self.answer.patient_until > 0)

    def _be_patient(self, patient: bool) -> None:
        if patient != self._patient and self._sock is not None:
            self._poller.set_patient(self._sock.fileno(), patient)
            self._patient = patient

    def _writable(self) -> None:
        assert self._sock is not None
        try:
            self._unsent = self._unsent[self._sock.send(self._unsent) :]
        except BlockingIOError:
            return
        except OSError as error:
            self.abandon(self._explain(f"reset: {_in_one_line(error)}"))
            return
        if not self._unsent:
            self._loop.remove_writer(self._sock.fileno())

    def _gone(self) -> bool:
        """Return whether the server has closed an idle connection whose end the loop has not noticed yet."""
        assert self._sock is not None
        try:
            return self._sock.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _finish(self, answer: Answer) -> None:
        self.answer = None
        self.idle_since = time.monotonic_ns()
        self._on_done(self, answer)

    def _stamped(self, stamp: bytes, now: int) -> int:
        """Return when the kernel received a chunk, in ns of the monotonic clock; `now` at the latest."""
        self._counters.kernel_stamps += 1
        seconds, nanoseconds = _STAMP.unpack(stamp)
        received: int = seconds * 1_000_000_000 + nanoseconds
        if received - self._stamps.offset > now:  # the wall clock was set after the offset was taken
            self._stamps.refresh()
        return min(now, received - self._stamps.offset)

    def _readable(self) -> None:
        assert self._sock is not None
        size = PATIENT_READ_SIZE if self._patient else READ_SIZE
        try:
            data, ancillary, _, _ = self._sock.recvmsg(size, _ANCILLARY)
        except BlockingIOError:
            return
        except OSError as error:
            self._lost(self._explain(f"reset: {_in_one_line(error)}"))
            return
        if len(data) == size:  # there may be more data
            self._be_patient(False)
        now = time.monotonic_ns()
        if ancillary:
            arrived = self._stamped(ancillary[0][2], now)
        else:
            arrived = now
            self._counters.user_stamps += data != b""  # the kernel never stamps the end of a connection
        if data and self._tls:
            try:
                data, ended = self._tls.decrypt(data)
            except ssl.SSLError as error:
                self._lost(f"reset: TLS: {_in_one_line(error)}")
                return
            if not data and not ended:
                return
        if not data:
            self._end_of_file(arrived)
            return
        answer = self.answer
        if answer is None or not answer.sent:
            self.close()  # bytes without a request, e.g. the 408 that some servers send before they close
            return
        before, shared = answer.chunks, answer.shared
        try:
            self._feed(data, arrived, answer)
        except httptools.HttpParserCallbackError:
            raise
        except httptools.HttpParserError as error:
            http2 = not answer.status and is_http2(data)
            self.abandon(f"protocol: {HTTP2_ONLY if http2 else _in_one_line(error)}")
            return
        if (answer.is_unreadable or answer.chunks > answer.limit) and not self._answered:
            self.abandon(f"protocol: {answer.chunks} events without an end; far fewer tokens were requested")
            return
        if answer.chunks - before > 1 and (len(answer.streams) == 1 or answer.shared != shared):
            self._counters.multi_event_reads += 1
            self._poller.alert(now / 1e9)
        if self._patient and answer.tokens >= answer.patient_until:
            self._be_patient(False)
        if self._answered:
            if self._unsent or not self._keep_alive:
                answer.closed = not self._keep_alive
                self.close()
            self._answered = False
            self._finish(answer)

    def _feed(self, data: bytes, arrived: int, answer: Answer) -> None:
        """Remove the HTTP framing.

        In the middle of an answer a read is nearly always one whole chunk. After such a chunk, the parser is between
        two chunks and can skip the next. (The parser is fast, but its state for each connection has left the CPU caches
        when the next token arrives.)
        """
        head = _CHUNK_HEADS[len(data)] if len(data) < len(_CHUNK_HEADS) else ()  # startswith(()) is False
        is_chunk = data.startswith(head) and data[-1] == _LF and data[-2] == _CR
        if is_chunk and self._between_chunks:
            answer.body(data[len(head) : -2], arrived)
            return
        self._part, self._arrived = b"", arrived
        self._parser.feed_data(data)
        self._framing = 0 if self._part else self._framing + len(data)
        if self._framing > LARGEST_HEAD:
            raise httptools.HttpParserError(f"{self._framing} bytes of headers without an end")
        self._between_chunks = is_chunk and self._part == data[len(head) : -2]

    def _end_of_file(self, arrived: int) -> None:
        answer = self.answer
        if answer is not None and answer.status and not self._sized:  # the body ends when the connection does
            self.close()
            answer.closed = True
            answer.complete(arrived)
            self._finish(answer)
        else:
            early = answer is not None and not answer.status
            self._lost(self._explain("closed: by the server" + (" before its answer began" if early else "")))

    def _explain(self, error: str) -> str:
        """Return a connection's error; if the connection has answered before, with the likely cause."""
        if not self._answers or self.answer is None or self.answer.status:
            return error
        times = "once" if self._answers == 1 else f"{self._answers} times"
        return (
            f"{error}, after it had answered {times} on this connection: if the server closes connections without "
            "notice, set backend.headers={Connection: close}, so that each request opens a new connection"
        )

    def _lost(self, error: str) -> None:
        """Handle a lost connection: fail the request in flight, or else reopen for the next request."""
        if self.answer is not None:
            self.abandon(error)
        else:
            self.close()
        self.reopen()

    def reopen(self) -> None:
        """Reopen in the background; if that fails, the next `begin` tries again and reports the failure."""
        if self._sock is None and self._opening is None:
            task = self._loop.create_task(self.open())
            task.add_done_callback(_forget_failure)

    def on_message_begin(self) -> None:
        self._sized = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self._sized = True
        if self.answer is not None and not self._answered:
            self.answer.header(name, value)

    def on_headers_complete(self) -> None:
        if self.answer is not None and not self._answered:
            self.answer.status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        self._part = data
        if self.answer is not None and not self._answered:  # other bytes follow the end of an answer
            self.answer.body(data, self._arrived)

    def on_message_complete(self) -> None:
        if self.answer is not None and self.answer.status >= 200 and not self._answered:
            self.answer.complete(self._arrived)
            self._answered = True
            self._answers += 1
            self._keep_alive = self._address.keep_alive and self._parser.should_keep_alive()  # unknown before


class _Tls:
    """The client side of a TLS session between two memory buffers."""

    def __init__(self, context: ssl.SSLContext, hostname: str) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._session = context.wrap_bio(self._incoming, self._outgoing, server_hostname=hostname)

    async def handshake(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        while True:
            done = True
            try:
                self._session.do_handshake()
            except ssl.SSLWantReadError:
                done = False
            if data := self._outgoing.read():
                await loop.sock_sendall(sock, data)
            if done:
                return
            data = await loop.sock_recv(sock, READ_SIZE)
            if not data:
                raise ConnectionError("closed during the TLS handshake")
            self._incoming.write(data)

    def encrypt(self, data: bytes) -> bytes:
        self._session.write(data)
        return self._outgoing.read()

    def decrypt(self, data: bytes) -> tuple[bytes, bool]:
        """Return decrypted bytes, and whether the peer has ended the session."""
        self._incoming.write(data)
        plain = bytearray()
        try:
            while part := self._session.read(READ_SIZE):
                plain += part
        except ssl.SSLWantReadError:
            return bytes(plain), False
        except ssl.SSLZeroReturnError:
            pass
        return bytes(plain), True


def _forget_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()


def _in_one_line(error: BaseException) -> str:
    return " ".join((str(error) or type(error).__name__).split())
