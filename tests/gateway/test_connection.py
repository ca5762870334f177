"""The gateway's connections to engines: each form in which HTTP ends a body, and each way in which an engine fails."""

import asyncio
import json
import socket
import time

import httpx
import pytest

from sweep.base.records import TunnelRefused
from sweep.gateway.call import Refused
from sweep.gateway.connection import MOST_UNREAD, EngineConnections, EngineFailed, StaleConnection
from tests.gateway.test_gateway import read_to_the_end
from tests.support.gateway_stand import STREAM_HEAD, engine, gateway, plain, stream
from tests.support.simulated_engine import behind_tls, simulated

ASK = {"model": "m", "prompt": "Hello there", "max_tokens": 2, "stream": True}
OK = b"HTTP/1.1 200 OK\r\n"


def write(data, then_close=False):
    def script(connection, request):
        connection.sendall(data)
        if then_close:
            connection.shutdown(socket.SHUT_RDWR)

    return script


def exchange(url, *headers, body=b"{}", after=None):
    """The status, headers and body of an answer, or of the second of two if `after` is awaited between."""

    async def ask():
        connections = EngineConnections(url, verify_tls=True)
        try:
            for turn in range(1 if after is None else 2):
                if turn:
                    await after()
                connection = await connections.ask(b"POST", "/v1/completions", [*headers], body)
                try:
                    content = await connection.read_all()
                finally:
                    connections.release(connection)
            return connection.status, connection.headers, content
        finally:
            connections.close()

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("answer", "then_close", "body"),
    [
        (OK + b"Content-Length: 5\r\n\r\nhello", False, b"hello"),
        (OK + b"Content-Length: 0\r\n\r\n", False, b""),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\n\r\n", False, b"hello"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Trailer: 1\r\n\r\n", False, b"hello"),
        (OK + b"\r\nhello", True, b"hello"),
        (b"HTTP/1.0 200 OK\r\n\r\nhello", True, b"hello"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 5\r\n\r\nhello", False, b"hello"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", False, b""),
    ],
)
def test_a_body_ends_where_http_says(answer, then_close, body):
    with engine(write(answer, then_close)) as behind:
        status, headers, received = exchange(behind.url)
    assert (status, received) == (204 if b"204" in answer else 200, body)
    assert {name.lower() for name, _ in headers} <= {b"content-length"}, "nothing of the connection, no trailer"


def test_a_request_is_sent_as_it_came():
    with engine(plain(b"{}")) as behind:
        exchange(f"{behind.url}/prefix", (b"x-request-id", b"r-1"), body=b'{"prompt": "x"}')
    (request,) = behind.received
    assert request.path == "/prefix/v1/completions"
    assert request.body == b'{"prompt": "x"}'
    assert request.headers["host"] == behind.url.removeprefix("http://")
    assert set(request.headers) == {"host", "x-request-id", "content-length"}


@pytest.mark.parametrize("value", [b"a\r\nx-evil: b", b"a\nb", b"a\rb", b"a\0b"])
def test_no_header_ends_a_line(value):
    with engine(plain(b"{}")) as behind, pytest.raises(Refused, match="line break"):
        exchange(behind.url, (b"x-request-id", value))
    assert not behind.received


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", StaleConnection),
        (b"HTTP/1.1 20", EngineFailed),
        (OK + b"Content-Length: 9\r\n\r\nhello", EngineFailed),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhel", EngineFailed),
        (OK + b"Transfer-Encoding: chunked\r\n\r\nnonsense\r\n", EngineFailed),
        (OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nhi", EngineFailed),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", EngineFailed),
    ],
)
def test_what_breaks_off_or_is_no_http_is_an_error(answer, error):
    with engine(write(answer, then_close=True)) as behind, pytest.raises(EngineFailed) as raised:
        exchange(behind.url)
    assert raised.type is error


def test_a_head_without_end_is_an_error():
    def script(connection, request):
        for _ in range(1000):
            connection.sendall(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1000)

    with engine(script) as behind, pytest.raises(EngineFailed, match="the headers of the engine's answer"):
        exchange(behind.url)


def test_one_connection_serves_one_request_after_the_other():
    peers = []

    def script(connection, request):
        peers.append(connection.getpeername())
        closing = b"Connection: close\r\n" if len(peers) == 3 else b""
        connection.sendall(OK + closing + b"Content-Length: 2\r\n\r\n{}")
        if closing:
            connection.shutdown(socket.SHUT_RDWR)

    with engine(script) as behind, gateway(behind.url) as url:
        for _ in range(5):
            assert httpx.post(f"{url}/v1/completions", json=ASK).json() == {}
    assert len(set(peers[:3])) == 1
    assert len(set(peers[2:])) == 2, "it was closed when the engine said so"


def test_bytes_that_nobody_asked_for_end_a_connection():
    def script(connection, request):
        connection.sendall(OK + b"Content-Length: 2\r\n\r\n{}" + OK + b"Content-Length: 4\r\n\r\nevil")

    async def wait():
        await asyncio.sleep(0.05)

    with engine(script) as behind:
        assert exchange(behind.url, after=wait)[2] == b"{}"


def test_an_engine_that_closes_idle_connections_costs_no_request():
    """It says nothing of it: whatever arrives on the closed connection is asked again on another."""

    def script(connection, request):
        connection.sendall(OK + b"Content-Length: 2\r\n\r\n{}")
        connection.close()

    with engine(script) as behind, gateway(behind.url) as url:
        for _ in range(20):
            assert httpx.post(f"{url}/v1/completions", json=ASK).status_code == 200
        assert httpx.get(f"{url}/health").status_code == 200


def test_an_engine_that_dies_before_the_first_byte_of_a_body_is_replaced_by_another():
    with (
        engine(write(STREAM_HEAD, then_close=True)) as dying,
        engine(stream(b"data: [DONE]\n\n")) as other,
        gateway(dying.url, other.url, routing="round_robin", health_interval=1000) as url,
    ):
        answers = [httpx.post(f"{url}/v1/completions", json=ASK) for _ in range(4)]
    assert [answer.text for answer in answers] == ["data: [DONE]\n\n"] * 4
    assert dying.received


def test_requests_wait_for_those_under_way_and_health_checks_do_not(monkeypatch):
    monkeypatch.setattr("sweep.gateway.engines.MOST_IN_FLIGHT", 1)
    under_way, most = [0], [0]

    def slow(connection, request):
        under_way[0] += 1
        most[0] = max(most[0], under_way[0])
        time.sleep(0.2)
        under_way[0] -= 1
        plain(b"{}")(connection, request)

    async def ask(url):
        async with httpx.AsyncClient(timeout=20) as client:
            asks = [asyncio.ensure_future(client.post(f"{url}/v1/completions", json=ASK)) for _ in range(3)]
            await asyncio.sleep(0.1)
            health = (await client.get(f"{url}/v1/models")).status_code
            return (
                health,
                not any(each.done() for each in asks),
                [each.status_code for each in await asyncio.gather(*asks)],
            )

    def script(connection, request):
        (plain(b"{}") if request.path == "/v1/models" else slow)(connection, request)

    with engine(script) as behind, gateway(behind.url) as url:
        assert asyncio.run(ask(url)) == (200, True, [200] * 3)
    assert most == [1]


def test_an_engine_that_falls_silent_breaks_its_answer_off(monkeypatch):
    monkeypatch.setattr("sweep.gateway.engines.CONNECTION_CHECK", 0.05)

    def script(connection, request):
        if request.content["prompt"] == "begins":
            connection.sendall(STREAM_HEAD + b"4\r\ndata\r\n")
        time.sleep(20)

    with engine(script) as behind, gateway(behind.url, answer_timeout=0.2, retries=0, health_interval=1000) as url:
        begin = time.monotonic()
        assert httpx.post(f"{url}/v1/completions", json=ASK).status_code in (502, 503)
        received = read_to_the_end(url, ASK | {"prompt": "begins"})
        assert time.monotonic() - begin < 10
    assert b"\r\ndata\r\n" in received
    assert b'"code": 502' in received


def test_an_engine_waits_for_a_client_that_does_not_read():
    """What it has said is not piled up in the gateway, and its silence is not its fault."""
    sent = []

    def script(connection, request):
        connection.sendall(OK + b"Content-Length: %d\r\n\r\n" % (64 << 20))
        for _ in range(64):
            connection.sendall(b"x" * (1 << 20))
            sent.append(True)

    async def read_late(url):
        connections = EngineConnections(url, verify_tls=True)
        connection = await connections.ask(b"POST", "/", [], b"")
        await asyncio.sleep(0.5)
        begun = len(sent)
        connections.check(timeout=0.1)
        size = 0
        while part := await connection.read():
            size += len(part)
        connections.release(connection)
        connections.close()
        return begun, size

    with engine(script) as behind:
        begun, size = asyncio.run(read_late(behind.url))
    assert begun < 32, "most of it waits in the engine"
    assert size == 64 << 20
    assert MOST_UNREAD < 1 << 20


def test_an_engine_behind_tls_is_verified_unless_told_otherwise(tmp_path):
    with simulated() as (behind, _), behind_tls(behind, tmp_path) as secure:
        with gateway(secure, verify_tls=False) as url:
            answer = httpx.post(f"{url}/v1/completions", json=ASK)
        assert answer.text.count("data: ") == 3
        with gateway(secure, retries=0) as url:
            answer = httpx.post(f"{url}/v1/completions", json=ASK)
        assert answer.status_code in (502, 503)
        assert "SSLCertVerificationError" in json.loads(answer.text)["error"]["message"]


def test_a_proxy_is_reached_at_any_of_its_addresses(monkeypatch):
    """`localhost` may be ::1 first, while the proxy listens on 127.0.0.1."""
    with engine(write(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")) as proxy:
        ports = (1, int(proxy.url.rpartition(":")[2]))
        addresses = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", port)) for port in ports]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: addresses)
        monkeypatch.setenv("https_proxy", proxy.url)
        connections = EngineConnections("https://engine.test", verify_tls=True, proxy="environment")
        with pytest.raises(TunnelRefused, match="407"):
            asyncio.run(connections.ask(b"POST", "/v1/completions", [], b"{}"))


def test_a_large_request_reaches_an_engine_behind_a_stream():
    with engine(stream(b"data: [DONE]\n\n")) as behind, gateway(behind.url) as url:
        prompt = "x" * (8 << 20)
        assert httpx.post(f"{url}/v1/completions", json=ASK | {"prompt": prompt}, timeout=30).status_code == 200
    assert behind.received[0].content["prompt"] == prompt
