"""A server that answers every request for one token at once, and a plain load generator that finds its limit.

    python -m benchmarks.flat_out            the server; prints its URL
    python -m benchmarks.flat_out URL        requests per second of 64 plain connections to it

Neither parses. The answer's bytes are always the same. A request is complete once its Content-Length has arrived, and
an answer once its last chunk has. So the pair shows the most that one core per side can do.
"""

import json
import select
import socket
import sys
import time
from collections.abc import Mapping
from urllib.parse import urlsplit

from sweep.base.records import Request
from sweep.client.wire import Target, call, head

CONNECTIONS = 64
REQUESTS = 60_000
LAST_CHUNK = b"0\r\n\r\n"


def _event(content: object) -> bytes:
    data = b"data: " + (content if isinstance(content, bytes) else json.dumps(content).encode()) + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(data), data)


def _answer(text: Mapping[str, object]) -> bytes:
    """Return one token, its usage and the end mark, as an engine sends them."""
    common = {"id": "cmpl-1", "object": "text_completion", "created": 1_800_000_000, "model": "flat"}
    choice = {"index": 0, "finish_reason": "length", "logprobs": None, **text}
    usage = {"prompt_tokens": 100, "completion_tokens": 1, "total_tokens": 101}
    headers = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    events = [{**common, "choices": [choice]}, {**common, "choices": [], "usage": usage}, b"[DONE]"]
    return headers.encode() + b"".join(map(_event, events)) + LAST_CHUNK


def _complete(request: bytes) -> bool:
    body = request.find(b"\r\n\r\n") + 4
    length = request[:body].lower().find(b"content-length:") + 15  # some clients write small letters
    return body > 3 and len(request) - body >= int(request[length : request.index(b"\r", length)])


def serve() -> None:
    chat, answer = (_answer(text) for text in ({"delta": {"content": " word"}}, {"text": " word"}))
    refusal = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    print(f"listening on 127.0.0.1:{listener.getsockname()[1]}", flush=True)
    poller, connections, partial = select.epoll(), dict[int, socket.socket](), dict[int, bytes]()
    poller.register(listener.fileno(), select.EPOLLIN)
    while True:
        # It never sleeps: the sender pays for waking a sleeping process, which would cost more than the request itself.
        for fd, _ in poller.poll(0):
            connection = connections.get(fd)
            if connection is None:
                connection = listener.accept()[0]
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connections[connection.fileno()] = connection
                poller.register(connection.fileno(), select.EPOLLIN)
                continue
            try:
                data = connection.recv(16384)
            except ConnectionResetError:
                data = b""
            if not data:
                poller.unregister(fd)
                connections.pop(fd).close()
                partial.pop(fd, None)
                continue
            data = partial.pop(fd, b"") + data
            if data.startswith(b"POST") and not _complete(data):
                partial[fd] = data
                continue
            asked = data.startswith(b"POST")
            connection.sendall(refusal if not asked else chat if data.startswith(b"POST /v1/chat/") else answer)


def plain_rate(url: str) -> float:
    """Return the requests per second that the server answers if each connection sends its next request at once."""
    parts = urlsplit(url)
    target = Target(url, "flat", ignore_eos=True)
    request = head(target, None) + call(target, [Request("plain-0", " ".join(["word"] * 100), 1)])
    poller, connections = select.epoll(), dict[int, socket.socket]()
    for _ in range(CONNECTIONS):
        connection = socket.create_connection((parts.hostname, parts.port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connections[connection.fileno()] = connection
        poller.register(connection.fileno(), select.EPOLLIN)
    begin, sent, received = time.perf_counter(), CONNECTIONS, 0
    for connection in connections.values():
        connection.sendall(request)
    while received < REQUESTS:
        for fd, _ in poller.poll():
            if connections[fd].recv(16384).endswith(LAST_CHUNK):
                received += 1
                if sent < REQUESTS:
                    sent += 1
                    connections[fd].sendall(request)
    return received / (time.perf_counter() - begin)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(f"{plain_rate(sys.argv[1]):.0f}")
    else:
        serve()
