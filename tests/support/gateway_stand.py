"""A gateway in this process, and engines that do as they are told, for tests."""

import asyncio
import contextlib
import json
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httptools
import uvloop

from sweep.gateway.server import Service
from sweep.gateway.settings import RESET_HEADER, Gateway
from tests.support.http_stub import running


@dataclass
class Received:
    """One request as an engine got it."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def content(self) -> Any:
        return json.loads(self.body)


RESET = {RESET_HEADER: "key"}  # header of a request to begin anew
Script = Callable[[socket.socket, Received], None]


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 128


@dataclass
class ScriptedEngine:
    """An engine whose answers are a function on the socket."""

    script: Script
    received: list[Received] = field(default_factory=list)
    url: str = ""

    def handle(self, connection: socket.socket) -> None:
        file = connection.makefile("rb")
        while line := file.readline():
            headers = {}
            while (header := file.readline()) not in (b"\r\n", b""):
                name, _, value = header.decode().partition(":")
                headers[name.lower()] = value.strip()
            body = file.read(int(headers.get("content-length", 0)))
            path = line.split()[1].decode()
            if path == "/health":
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                continue
            self.received.append(Received(path, headers, body))
            self.script(connection, self.received[-1])


@contextlib.contextmanager
def engine(script: Script) -> Iterator[ScriptedEngine]:
    scripted = ScriptedEngine(script)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError, ValueError):
                scripted.handle(self.request)

    with running(server := Server(("127.0.0.1", 0), Handler)):
        scripted.url = f"http://127.0.0.1:{server.server_address[1]}"
        yield scripted


@contextlib.contextmanager
def gateway(*urls: str, log: Any = None, tokenizer: Any = None, **settings: Any) -> Iterator[str]:
    """The URL of a gateway in front of these engines, for the length of the block."""
    ready: Any = threading.Event()
    path = None if log is None else str(log)
    service = Service(Gateway.model_validate(settings), urls, tokenizer=tokenizer, log=path, reset_key="key")

    def on_ready(url: str, server: Any) -> None:
        ready.url, ready.server = url, server
        ready.set()

    def serve() -> None:
        loop = uvloop.new_event_loop()
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(service.serve(on_ready))
        finally:
            loop.close()

    thread = threading.Thread(target=serve)
    thread.start()
    assert ready.wait(60)
    try:
        yield ready.url
    finally:
        ready.server.should_exit = True
        thread.join()


def chunked(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def stream(*events: bytes) -> Script:
    """A script that answers with a stream of these events, each written by itself."""

    def script(connection: socket.socket, request: Received) -> None:
        connection.sendall(STREAM_HEAD)
        for event in events:
            connection.sendall(b"%x\r\n%b\r\n" % (len(event), event))
        connection.sendall(b"0\r\n\r\n")

    return script


def plain(body: bytes, status: bytes = b"200 OK", kind: bytes = b"application/json") -> Script:
    head = b"HTTP/1.1 %b\r\nContent-Type: %b\r\nContent-Length: %d\r\nX-Engine: yes\r\n\r\n" % (status, kind, len(body))
    return lambda connection, request: connection.sendall(head + body)


STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"


@contextlib.contextmanager
def tee(url: str) -> Iterator[tuple[str, list[bytes]]]:
    """A wire to a server that keeps what the server says: its URL, and the bytes of each connection in order."""
    host, port = url.removeprefix("http://").split(":")
    kept: list[bytes] = []

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            index = len(kept)
            kept.append(b"")
            with socket.create_connection((host, int(port))) as behind:
                up = threading.Thread(target=self.forward, args=(self.request, behind))
                up.start()
                while part := behind.recv(65536):
                    kept[index] += part
                    self.request.sendall(part)
                with contextlib.suppress(OSError):
                    self.request.shutdown(socket.SHUT_RDWR)
                up.join()

        @staticmethod
        def forward(source: socket.socket, sink: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while part := source.recv(65536):
                    sink.sendall(part)
                sink.shutdown(socket.SHUT_WR)

    with running(server := Server(("127.0.0.1", 0), Handler)):
        yield f"http://127.0.0.1:{server.server_address[1]}", kept


def bodies(connections: list[bytes]) -> list[bytes]:
    class Bodies:
        def __init__(self) -> None:
            self.parts: list[bytes] = []

        def on_message_begin(self) -> None:
            self.parts.append(b"")

        def on_body(self, body: bytes) -> None:
            self.parts[-1] += body

    found = []
    for data in connections:
        parsed = Bodies()
        httptools.HttpResponseParser(parsed).feed_data(data)
        found += parsed.parts
    return found
