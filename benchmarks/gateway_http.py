"""Sends random HTTP to the gateway, and gives random files to `sweep import`, both by hypothesis.

    python -m benchmarks.gateway_http [--cases 2000] [--seed 1] [--write docs/measurements/gateway_http.md]

Each case uses a separate connection. The gateway must answer or close it within five seconds, and must stay healthy. It
must never let the engine see a request, header or path that is only in a body or a trailer. An import must end with
status 0 or 2 and at most one line of error.
"""

import argparse
import contextlib
import io
import json
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from benchmarks.documents import markdown_table, publish
from sweep.__main__ import main as sweep
from sweep.base.config import ROOT
from sweep.gateway import server
from tests.support.gateway_stand import Received, ScriptedEngine, engine, gateway, plain

SMUGGLED = b"x-smuggled"  # occurs only in bodies and trailers
INNER = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-Smuggled: 1\r\nContent-Length: 2\r\n\r\n{}"
QUESTION = b'{"model": "m", "prompt": "x"}'
SILENT = 5.0  # s
TRIES = 3
RECORDED = ROOT / "tests" / "exchange" / "recorded"
DRAW = settings(database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)

Case = tuple[str, bytes]


def _head(lines: Sequence[bytes], body: bytes) -> bytes:
    return b"\r\n".join([b"POST /v1/completions HTTP/1.1", b"Host: x", *lines, b"", b""]) + body


@st.composite
def _framing(draw: st.DrawFn) -> bytes:
    lengths = st.sampled_from([b"0", b"5", b"29", b"+29", b"-1", b"29, 29", b"0x1d", b"29 ", b"99999999999999999999"])
    encodings = st.sampled_from(
        [b"chunked", b"Chunked", b"identity", b"gzip, chunked", b"chunked, chunked", b"xchunked"]
    )
    names = (
        (b"Content-Length: ", b"Content-Length : ", b"content-length:"),
        (b"Transfer-Encoding: ", b"Transfer-Encoding\t:"),
    )
    lines = draw(st.lists(st.builds(bytes.__add__, st.sampled_from(names[0]), lengths), max_size=2))
    lines += draw(st.lists(st.builds(bytes.__add__, st.sampled_from(names[1]), encodings), max_size=2))
    chunked = b"1d\r\n" + QUESTION + b"\r\n0\r\n\r\n"
    return _head(draw(st.permutations(lines)), draw(st.sampled_from([QUESTION, chunked, b"0\r\n\r\n"])) + INNER)


@st.composite
def _chunks(draw: st.DrawFn) -> bytes:
    sizes = st.sampled_from(
        [b"1d", b"1D", b"01d", b"1d;a=b", b"1d ", b" 1d", b"-1", b"g", b"ffffffffffffffff", b"1c", b"1e"]
    )
    trailers = st.sampled_from(
        [b"", b"X-Smuggled: 1\r\n", b"Authorization: Bearer x-smuggled\r\n", b"X\r\n", b"\0: x\r\n"]
    )
    end = draw(st.sampled_from([b"\r\n", b"\n", b"\r", b""]))
    body = draw(sizes) + end + QUESTION + draw(st.sampled_from([b"\r\n", b"\n", b""])) + b"0" + end
    return _head([b"Transfer-Encoding: chunked"], body + draw(trailers) + b"\r\n")


@st.composite
def _mutated(draw: st.DrawFn) -> bytes:
    request = bytearray(_head([b"Content-Length: %d" % len(QUESTION)], QUESTION))
    for place, byte in draw(
        st.lists(st.tuples(st.integers(0, len(request) - 1), st.integers(0, 255)), min_size=1, max_size=4)
    ):
        request[place] = byte
    return bytes(request)


@st.composite
def _body(draw: st.DrawFn) -> bytes:
    content = draw(st.dictionaries(st.sampled_from(["prompt", "messages", "model", "stream", "max_tokens"]), JSON))
    body = json.dumps(content).encode(errors="surrogatepass")
    body = body[: draw(st.integers(0, len(body)))] if draw(st.booleans()) else body
    return _head([b"Content-Length: %d" % len(body)], body)


KINDS: dict[str, st.SearchStrategy[bytes]] = {
    "lengths and encodings that disagree": _framing(),
    "chunks and trailers": _chunks(),
    "bytes changed in a valid request": _mutated(),
    "bodies of other JSON, or cut off": _body(),
    "bytes": st.binary(min_size=1, max_size=400),
}


def outcome(url: str, behind: ScriptedEngine, request: bytes) -> str:
    """Return what becomes of a request: its status, `closed`, or what is wrong."""
    host, _, port = url.removeprefix("http://").partition(":")
    behind.received.clear()
    answer, began = b"", time.monotonic()
    with socket.create_connection((host, int(port)), timeout=SILENT) as connection:
        try:
            connection.sendall(request)
            answer = connection.recv(65536)
            time.sleep(0.01 if answer else 0)  # for the request that follows in the same bytes
        except TimeoutError:
            return "silent"
        except ConnectionError:
            pass
    if any(SMUGGLED in repr((call.path, call.headers)).lower().encode() for call in behind.received):
        return "smuggled"
    if time.monotonic() - began > SILENT or not _is_healthy(url):
        return "silent"
    return answer[9:12].decode("latin-1") if answer.startswith(b"HTTP/1.1 ") else "closed" if not answer else "no HTTP"


def _is_healthy(url: str) -> bool:
    """Return whether the gateway answers within TRIES, since a busy machine may delay a request beyond the short limit.

    Repeated requests are printed, since a gateway that drops every other connection would pass as well.
    """
    for attempt in range(TRIES):
        if attempt:
            print("a health check is repeated", file=sys.stderr)
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{url}/health", timeout=SILENT).status_code == 200
    return False


@contextlib.contextmanager
def standing() -> Iterator[tuple[str, ScriptedEngine]]:
    """Yield a gateway with short limits, and the engine behind it."""

    def script(connection: socket.socket, received: Received) -> None:
        plain(b'{"choices": []}')(connection, received)

    server.HEADER_TIMEOUT = 0.5
    with engine(script) as behind, gateway(behind.url, request_timeout=0.5) as url:
        yield url, behind


def fuzz_gateway(kind: str, cases: int, number: int) -> Counter[str]:
    """Return the outcomes of random requests of one kind."""
    outcomes: Counter[str] = Counter()
    with standing() as (url, behind):

        @seed(number)
        @settings(DRAW, max_examples=cases)
        @given(KINDS[kind])
        def send(request: bytes) -> None:
            outcomes[outcome(url, behind, request)] += 1

        send()
    return outcomes


def _paths(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from _paths(inner, (*path, key))


def fuzz_import(name: str, cases: int, number: int) -> Counter[str]:
    """Return the outcomes of importing a recorded file that was truncated, or in which a value was changed."""
    text, outcomes = (RECORDED / name).read_text(), Counter[str]()
    paths = list(_paths(json.loads(text)))

    @seed(number)
    @settings(DRAW, max_examples=cases)
    @given(st.sampled_from(paths), JSON | st.just(...), st.integers(0, len(text)))
    def read(path: tuple[Any, ...], value: Any, cut: int) -> None:
        content = json.loads(text)
        part = content
        for key in path[:-1]:
            part = part[key]
        part[path[-1]] = value
        document = text[:cut] if value is ... else json.dumps(content)
        outcomes[imported(document)] += 1

    read()
    return outcomes


def imported(document: str) -> str:
    """Return what `sweep import` does with a file: `imported`, `refused`, or what is wrong."""
    errors = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(errors):
        file = Path(folder) / "result.json"
        file.write_text(document, encoding="utf-8", errors="surrogatepass")
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                status = sweep(["import", str(file), f"{folder}/out"])
        except Exception as error:  # noqa: BLE001 - any of them is a finding
            return f"traceback: {type(error).__name__}"
    if status not in (0, 2) or errors.getvalue().count("\n") > 1:
        return f"status {status}: {errors.getvalue()[:80]}"
    return "imported" if status == 0 else "refused"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000, help="of each kind; of imports a tenth")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    rows, wrong = [], 0
    for kind in KINDS:
        outcomes = fuzz_gateway(kind, options.cases, options.seed)
        refused = sum(count for outcome, count in outcomes.items() if outcome.startswith("4"))
        others = {key: n for key, n in outcomes.items() if key not in ("200", "closed") and not key.startswith("4")}
        rows.append([kind, outcomes.total(), outcomes["200"], refused, outcomes["closed"], others or 0])
        wrong += sum(others.values())
    for name in sorted(path.name for path in RECORDED.glob("*.json")):
        outcomes = fuzz_import(name, max(1, options.cases // 10), options.seed)
        others = {key: n for key, n in outcomes.items() if key not in ("imported", "refused")}
        rows.append(
            [f"sweep import {name}", outcomes.total(), outcomes["imported"], outcomes["refused"], 0, others or 0]
        )
        wrong += sum(others.values())
    publish(markdown_table("kind | n | 200, or imported | refused | closed | other", rows), options.write)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
