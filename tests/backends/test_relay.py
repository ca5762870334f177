"""An engine on loopback, reached through an address of the node by those who have the token, and by nobody else."""

import socket

import httpx
import pytest

from backends.launch.relay import LARGEST_FIRST_HEAD, TOKEN_HEADER, is_authorized, relaying
from tests.support.http_stub import page, serving

ELSEWHERE = "127.0.0.9"  # as another address of this machine


def status_of(url, token):
    return httpx.get(f"{url}/page", headers={TOKEN_HEADER: token} if token else {}, trust_env=False).status_code


@pytest.mark.parametrize(
    ("header", "passes"),
    [
        ("", False),
        ("x-sweep-token: right", True),
        ("X-Sweep-Token:right", True),
        ("x-sweep-token: righ", False),
        ("x-sweep-token: right\r\nx-sweep-token: wrong", False),
        ("x-other: x-sweep-token: right", False),
    ],
)
def test_who_is_let_in(header, passes):
    head = f"GET / HTTP/1.1\r\nhost: x-sweep-token: right\r\n{header}\r\n\r\n".encode()
    assert is_authorized(head, "right") == passes


def test_only_connections_with_the_token_reach_the_engine():
    with serving(page("/page", "answer")) as engine, relaying([engine], ELSEWHERE, "right") as (url,):
        assert [status_of(url, token) for token in ("right", "wrong", "")] == [200, 401, 401]
        with httpx.Client(headers={TOKEN_HEADER: "right"}, trust_env=False) as client:
            assert [client.get(f"{url}/page").text for _ in range(3)] == ["answer"] * 3
        port = httpx.URL(engine).port
        with pytest.raises(OSError, match="refused"):
            socket.create_connection((ELSEWHERE, port))
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((ELSEWHERE, httpx.URL(url).port))


def test_an_endless_head_is_cut_off():
    with serving(page("/page", "answer")) as engine, relaying([engine], ELSEWHERE, "right") as (url,):
        with socket.create_connection((ELSEWHERE, httpx.URL(url).port)) as connection:
            connection.settimeout(20)
            try:
                connection.sendall(b"GET /page HTTP/1.1\r\nx: " + b"y" * 4 * LARGEST_FIRST_HEAD)
                assert connection.recv(1) == b""
            except ConnectionError:
                pass
        assert status_of(url, "right") == 200, "and others are served"


def test_a_dead_engine_closes_the_connection():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with relaying([f"http://127.0.0.1:{port}"], ELSEWHERE, "right") as (url,), pytest.raises(httpx.TransportError):
        status_of(url, "right")
