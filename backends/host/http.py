"""A minimal HTTP/1.1 server on asyncio streams, since engine environments share no web framework."""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

MAX_BODY = 256 * 2**20


class HTTPError(Exception):
    """An answer with a status other than 200, in the format of OpenAI's errors."""

    def __init__(self, status: int, message: str, kind: str = "BadRequestError") -> None:
        super().__init__(message)
        self.status = status
        self.body = error_body(message, kind, status)


def error_body(message: str, kind: str, status: int) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}


@dataclass(frozen=True)
class Query:
    method: str
    path: str
    headers: dict[str, str]  # names in lower case
    body: bytes

    def json(self) -> dict[str, Any]:
        try:
            content = json.loads(self.body)
        except ValueError as error:
            raise HTTPError(400, f"the body is not JSON: {error}") from error
        if not isinstance(content, dict):
            raise HTTPError(400, "the body is not a JSON object")
        return content


class HostConnection:
    """A client's connection. An answer is sent whole or as a stream of server-sent events."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.streaming = False

    @property
    def gone(self) -> bool:
        """Whether the client has closed its side of the connection."""
        return self.reader.at_eof() or self.writer.is_closing()

    async def answer(self, body: dict[str, Any] | str, status: int = 200) -> None:
        kind = "text/plain; version=0.0.4" if isinstance(body, str) else "application/json"
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: {kind}\r\n"
        self.writer.write(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
        await self.writer.drain()

    async def send_events(self, events: Sequence[dict[str, Any] | str]) -> None:
        """Send server-sent events in one write. The first call opens the stream."""
        if not events:
            return  # an empty chunk would end the answer
        data = b"".join(b"data: " + (e if isinstance(e, str) else json.dumps(e)).encode() + b"\n\n" for e in events)
        head = b""
        if not self.streaming:
            head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            self.streaming = True
        self.writer.write(head + f"{len(data):x}\r\n".encode() + data + b"\r\n")
        await self.writer.drain()

    async def end_events(self) -> None:
        await self.send_events(["[DONE]"])
        self.writer.write(b"0\r\n\r\n")
        await self.writer.drain()
        self.streaming = False


Handler = Callable[[Query, HostConnection], Awaitable[None]]


async def read_query(reader: asyncio.StreamReader) -> Query | None:
    """Return the next request on a connection, or None once the client has closed it."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    except asyncio.LimitOverrunError as error:
        raise HTTPError(431, "the headers are too long") from error
    first, *lines = head.decode("latin-1").rstrip().split("\r\n")
    parts = first.split(" ")
    if len(parts) != 3:
        raise HTTPError(400, f"not an HTTP request line: {first[:100]}")
    pairs = (line.partition(":") for line in lines)
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    if "chunked" in headers.get("transfer-encoding", ""):
        raise HTTPError(411, "the body has no content-length, which this server requires")
    length = headers.get("content-length") or "0"
    if not length.isdecimal() or int(length) > MAX_BODY:
        raise HTTPError(413, f"content-length must be a whole number of at most {MAX_BODY} bytes")
    return Query(parts[0], parts[1].partition("?")[0], headers, await reader.readexactly(int(length)))


def serve_connections(handle: Handler) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    """Return a callback for asyncio.start_server that answers a connection's requests one by one."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = HostConnection(reader, writer)
        with contextlib.closing(writer), contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            try:
                while query := await read_query(reader):
                    try:
                        await handle(query, connection)
                    except HTTPError as error:
                        await connection.answer(error.body, error.status)
                    if query.headers.get("connection", "").lower() == "close":
                        return
            except HTTPError as error:  # the beginning of the next request is unknown, so the connection ends
                await connection.answer(error.body, error.status)

    return serve
