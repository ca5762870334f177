"""A client's socket: reads requests with kernel timestamps and writes the bytes of their answers."""

import asyncio
import socket
import struct
import time
from collections.abc import Callable

import httptools

from backends.simulated_server.answers import plain_answer

TRICKLE_EVERY = 0.05  # seconds between the single bytes of a trickling answer


class ClientConnection:
    """Reads and timestamps requests, and writes without blocking."""

    def __init__(
        self,
        sock: socket.socket,
        loop: asyncio.AbstractEventLoop,
        offset: Callable[[], int],  # kernel timestamps minus the monotonic clock, in ns
        on_request: "Callable[[ClientConnection, bytes, bytes, bytes, int], None]",  # url, body, id, arrival
    ) -> None:
        self.sock, self.loop = sock, loop
        self.offset, self.on_request = offset, on_request
        self.on_close: Callable[[], None] = lambda: None
        self._unsent = bytearray()
        self._parser = httptools.HttpRequestParser(self)
        self._arrival = 0
        self._url, self._request_id, self._body = b"", b"", b""
        self._trickle: asyncio.TimerHandle | None = None
        loop.add_reader(sock.fileno(), self._readable)

    def _readable(self) -> None:
        try:
            data, ancillary, _, _ = self.sock.recvmsg(1 << 18, 64)
        except BlockingIOError:
            return
        except OSError:
            data, ancillary = b"", []
        if not data:
            self.close()
            return
        self._arrival = time.monotonic_ns()
        if ancillary:
            seconds, nanoseconds = struct.unpack("qq", ancillary[0][2])
            self._arrival = seconds * 1_000_000_000 + nanoseconds - self.offset()
        self._received(data)

    def _received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            self.write(plain_answer(400, {"error": {"message": f"{type(cause).__name__}: {cause}", "code": 400}}))
        except httptools.HttpParserError:
            self.close()

    def write(self, data: bytes) -> None:
        if self._unsent or self.sock.fileno() < 0:
            self._unsent += data
            return
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return
        if sent < len(data):
            self._unsent += data[sent:]
            self.loop.add_writer(self.sock.fileno(), self._writable)

    def _writable(self) -> None:
        try:
            del self._unsent[: self.sock.send(self._unsent)]
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if not self._unsent:
            self.loop.remove_writer(self.sock.fileno())

    def trickle(self, data: bytes) -> None:
        """Send these bytes, then single spaces until the client disconnects."""
        if self.sock.fileno() < 0:
            return
        self.write(data)
        self._trickle = self.loop.call_later(TRICKLE_EVERY, self.trickle, b" ")

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        if self.sock.fileno() < 0:
            return
        if self._trickle:
            self._trickle.cancel()
        self.loop.remove_reader(self.sock.fileno())
        self.loop.remove_writer(self.sock.fileno())
        self.sock.close()
        self.on_close()

    # -- parser callbacks

    def on_message_begin(self) -> None:
        self._url, self._request_id, self._body = b"", b"", b""

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"x-request-id":
            self._request_id = value

    def on_body(self, data: bytes) -> None:
        self._body += data

    def on_message_complete(self) -> None:
        self.on_request(self, self._url, self._body, self._request_id, self._arrival)
