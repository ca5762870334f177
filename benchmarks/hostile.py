"""Measures the peak memory of driver, node, client and gateway under hostile input.

    python -m benchmarks.hostile [INPUT...] [--write docs/measurements/hostile.md]

Each input is given to the command as a user would, or to a gateway's process. A misbehaving engine replaces the
simulated engine, or is an endpoint. With `cluster=inline`, driver and node are one process. The largest resident memory
of each process is read every 50 ms from the kernel's own high-water mark. More than 1 GB fails the benchmark.
"""

import argparse
import base64
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil

from benchmarks.documents import markdown_table, publish
from benchmarks.memory import peak_memory
from sweep.base.config import ROOT
from sweep.client.wire import LARGEST_EVENT
from sweep.inputs.tokenizer import SHIPPED_TOKENIZER
from tests.support.gateway_stand import STREAM_HEAD, Received, Script, engine

LIMIT = 1_000_000_000  # maximum bytes
SECONDS = 150.0  # maximum seconds of a command or an attack
ROLES = {"sweep.client.process": "client", "sweep.gateway.server": "gateway", "-m sweep": "driver and node"}
QUICK = (
    *("workload=synthetic", "workload.input_tokens=8", "workload.output_tokens=8", "workload.num_requests=4"),
    *("load=closed", "load.concurrency=2", "cluster=inline", "tracking=none", "report=false", "trial_timeout=40"),
)
MIB = 1 << 20
Peaks = dict[str, int]


def watch(process: "subprocess.Popen[bytes]", seconds: float = SECONDS) -> Peaks:
    """Return the peak memory of a process and all its descendants, by role, until it ends or is killed."""
    peaks: Peaks = {}
    until = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < until:
        with contextlib.suppress(psutil.Error):
            parent = psutil.Process(process.pid)
            for member in [parent, *parent.children(recursive=True)]:
                line = " ".join(member.cmdline())
                role = next((role for words, role in ROLES.items() if words in line), None)
                if role is not None:
                    peaks[role] = max(peaks.get(role, 0), peak_memory(member))
        time.sleep(0.05)
    if process.poll() is None:
        process.terminate()
    process.wait(30)
    return peaks


def command(*arguments: str, folder: Path) -> Peaks:
    """Return the peaks of a sweep command, run in a separate folder."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (folder / "output.txt").open("wb") as output:
        line = [sys.executable, "-m", "sweep", *arguments]
        return watch(subprocess.Popen(line, cwd=folder, env=environ, stdout=output, stderr=output))


# Engines and endpoints ------------------------------------------------------------------------------------------------


def flooding_log(folder: Path) -> Peaks:
    """An engine that logs 2.5 GB before it is ready."""
    python = folder / "python"
    flood = (
        "case \"$*\" in *simulated_server*) yes 'x of a log that somebody left at debug' | head -c 2500000000;; esac"
    )
    python.write_text(f'#!/bin/bash\n{flood}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    options = ("backend=simulated", f"backend.env.python={python}", "model=tiny-llama", "backend.launch_timeout=140")
    return command("run", *options, *QUICK, folder=folder)


def endpoint(folder: Path, answer: Callable[[socket.socket], None]) -> Peaks:
    """Return the peaks of a run against an endpoint whose answers `answer` sends."""

    def script(connection: socket.socket, received: Received) -> None:
        if received.path == "/v1/models":
            body = b'{"data": [{"id": "m", "max_model_len": 4096}]}'
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        else:
            answer(connection)

    with engine(script) as behind:
        options = ("backend=openai", f"backend.url={behind.url}", "model=m")
        return command("run", *options, *QUICK, folder=folder)


def _stream(connection: socket.socket, parts: Iterator[bytes]) -> None:
    connection.sendall(STREAM_HEAD)
    for part in parts:  # without the chunk that would end the answer
        connection.sendall(b"%x\r\n%b\r\n" % (len(part), part))


def endless_answer(folder: Path) -> Peaks:
    """An answer of 8 tokens that never ends."""
    event = b'data: {"id":"x","choices":[{"index":0,"text":" a"}]}\n\n' * 100
    return endpoint(folder, lambda connection: _stream(connection, (event for _ in range(10**9))))


def endless_event(folder: Path) -> Peaks:
    """One event of an answer that never ends."""
    parts = [b"data: ", *[b"x" * MIB] * 4096]
    return endpoint(folder, lambda connection: _stream(connection, iter(parts)))


def nested_event(folder: Path) -> Peaks:
    """Events just below the largest size, of more than a million empty lists."""
    event = b'data: {"choices": [' + b"[]," * (LARGEST_EVENT // 3 - 20) + b"[]]}\n\n"
    return endpoint(folder, lambda connection: _stream(connection, iter([event] * 4)))


def endless_head(folder: Path) -> Peaks:
    """An answer whose head never ends."""

    def answer(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        for _ in range(2048):
            connection.sendall((b"X-Long: " + b"x" * 1000 + b"\r\n") * 1000)

    return endpoint(folder, answer)


# Clients of the gateway -----------------------------------------------------------------------------------------------


def gateway(script: Script, attack: Callable[[str], None], **settings: object) -> Peaks:
    """Return the peaks of a gateway in front of an engine, while `attack` sends to it."""
    with engine(script) as behind:
        line = [sys.executable, "-m", "sweep.gateway.server", "--to", behind.url, "--settings", json.dumps(settings)]
        line += ["--tokenizer", str(SHIPPED_TOKENIZER)]
        process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE)
        assert process.stdout is not None
        url = process.stdout.readline().split()[2].decode().strip(",")
        peaks: Peaks = {}
        watching = threading.Thread(target=lambda: peaks.update(watch(process)))
        watching.start()
        try:
            attack(url)
        finally:
            process.terminate()
            watching.join()
        return peaks


def _held(connection: socket.socket, received: Received) -> None:
    time.sleep(20)


def _connected(url: str) -> socket.socket:
    host, _, port = url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=40)


def long_heads(folder: Path) -> Peaks:
    """100 connections, each with a head of 10 MiB."""

    def attack(url: str) -> None:
        for _ in range(100):
            with contextlib.suppress(OSError), _connected(url) as connection:
                connection.sendall(b"POST /v1/completions HTTP/1.1\r\n" + b"X-Long: " + b"x" * (10 * MIB))

    return gateway(_held, attack)


def _post_all(bodies: Sequence[bytes], at_once: int) -> Callable[[str], None]:
    def send(url: str, body: bytes) -> None:
        with contextlib.suppress(httpx.HTTPError):
            httpx.post(f"{url}/v1/completions", content=body, timeout=60)

    def attack(url: str) -> None:
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(lambda body: send(url, body), bodies))

    return attack


def large_bodies(folder: Path) -> Peaks:
    """60 requests of 15 MiB in flight."""
    return gateway(_held, _post_all([b'{"prompt": "%b"}' % (b"x" * (15 * MIB))] * 60, 60))


def nested_bodies(folder: Path) -> Peaks:
    """20 requests of 15 MiB in flight, each of five million empty lists."""
    return gateway(_held, _post_all([b'{"prompt": "x", "y": [' + b"[]," * (5 * MIB) + b"[]]}"] * 20, 20))


def large_answers(folder: Path) -> Peaks:
    """A cache of exact answers that is asked 250 questions, with answers of 3.9 MiB."""
    events = [b'data: {"choices":[{"index":0,"text":"%b"}]}\n\n' % (b"x" * 1000)] * 3900
    last = b'data: {"choices":[{"finish_reason":"stop","text":"","index":0}]}\n\ndata: [DONE]\n\n'

    def answer(connection: socket.socket, received: Received) -> None:
        _stream(connection, iter([b"".join(events) + last]))
        connection.sendall(b"0\r\n\r\n")

    bodies = [b'{"prompt": "%d", "temperature": 0, "stream": true}' % number for number in range(250)]
    return gateway(answer, _post_all(bodies, 4), cache={"mode": "exact"})


def wide_bodies(folder: Path) -> Peaks:
    """60 requests of 15 MiB in flight, whose texts take four bytes for each character."""
    return gateway(_held, _post_all(['{"prompt": "%s\U0001f600"}'.encode() % (b"x" * (15 * MIB))] * 60, 60))


def endless_trailers(folder: Path) -> Peaks:
    """100 connections, each with a trailer of 10 MiB."""

    def send(url: str) -> None:
        with contextlib.suppress(OSError), _connected(url) as connection:
            head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"
            connection.sendall(head + b"X-Long: ")
            for _ in range(160):
                connection.sendall(b"x" * (64 << 10))

    return gateway(_held, lambda url: _at_once(send, [url] * 100))


def pipelined_requests(folder: Path) -> Peaks:
    """100 connections, each with 10,000 requests behind one that is answered slowly."""
    body = b'{"prompt": "x"}'
    first = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)

    def send(url: str) -> None:
        with contextlib.suppress(OSError), _connected(url) as connection:
            connection.sendall(first + b"GET /health HTTP/1.1\r\n\r\n" * 10_000)
            connection.recv(1)

    return gateway(_held, lambda url: _at_once(send, [url] * 100))


def endless_list(folder: Path) -> Peaks:
    """A list of models of 200 MiB, which 10 clients ask for."""

    def answer(connection: socket.socket, received: Received) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        for _ in range(200):
            connection.sendall(b"x" * MIB)

    def send(url: str) -> None:
        with contextlib.suppress(httpx.HTTPError):
            httpx.get(f"{url}/v1/models", timeout=60)

    return gateway(answer, lambda url: _at_once(send, [url] * 10))


def long_prompts(folder: Path) -> Peaks:
    """8 prompts of 15 MiB that are clipped to 100 tokens."""
    bodies = [b'{"prompt": "%b"}' % (b"many words " * (15 * MIB // 11))] * 8
    return gateway(_held, _post_all(bodies, 8), clip={"input_tokens": 100})


def many_words(folder: Path) -> Peaks:
    """4 questions of 15 MiB to a semantic cache, of short words and of one long word."""
    texts = [b"to be or " * (15 * MIB // 9), b"x" * (2 * MIB)] * 2
    bodies = [b'{"prompt": "%d %b", "temperature": 0}' % (number, text) for number, text in enumerate(texts)]
    return gateway(_held, _post_all(bodies, 2), cache={"mode": "semantic"})


def large_flights(folder: Path) -> Peaks:
    """40 answers of 50 MiB under way at once, through a cache."""

    def answer(connection: socket.socket, received: Received) -> None:
        _stream(connection, iter([b"data: " + b"x" * MIB + b"\n\n"] * 50))
        time.sleep(20)

    def send(url: str) -> None:
        body = {"prompt": uuid.uuid4().hex, "temperature": 0, "stream": True}
        with contextlib.suppress(httpx.HTTPError), httpx.stream("POST", f"{url}/v1/completions", json=body) as reply:
            for _ in reply.iter_raw():
                pass

    return gateway(answer, lambda url: _at_once(send, [url] * 40), cache={"mode": "exact"})


def _at_once(send: Callable[[str], None], urls: Sequence[str]) -> None:
    with ThreadPoolExecutor(len(urls)) as pool:
        list(pool.map(send, urls))


# Files ----------------------------------------------------------------------------------------------------------------


def endless_trace(folder: Path) -> Peaks:
    """`load.path=/dev/zero`."""
    options = ("backend=simulated", "model=tiny-llama", "workload=synthetic", "load=trace", "load.path=/dev/zero")
    return command("run", *options, "cluster=inline", "tracking=none", "dry_run=true", folder=folder)


def packed_lock(folder: Path) -> Peaks:
    """A capsule whose lock is 6 GB once it is unpacked."""
    packer, packed = zlib.compressobj(9), b""
    for _ in range(6000):
        packed += packer.compress(b"#" * 10**6)
    packed += packer.flush()
    config = {group: {"_target_": "x", "name": "x"} for group in ("backend", "model", "workload", "load", "gateway")}
    lines: dict[str, object] = {key: {} for key in ("coordinates", "settings", "digests", "figures", "noise")} | {
        "capsule": "run#1",
        "trial": {"trial_id": "1", "seed": 1},
        "config": config,
        "circumstances": {},
        "locks": {"x.txt": base64.b64encode(packed).decode()},
    }
    (folder / "capsule.txt").write_text("".join(f"{key}: {json.dumps(content)}\n" for key, content in lines.items()))
    return command("rerun", "capsule.txt", folder=folder)


def nested_import(folder: Path) -> Peaks:
    """A file of another tool with 40 million empty lists."""
    (folder / "result.json").write_bytes(b"[" + b"[]," * (40 * MIB) + b"[]]")
    return command("import", "result.json", "imported", folder=folder)


INPUTS: tuple[Callable[[Path], Peaks], ...] = (
    *(flooding_log, endless_answer, endless_event, nested_event, endless_head),
    *(long_heads, large_bodies, nested_bodies, wide_bodies, large_answers, large_flights),
    *(endless_trailers, pipelined_requests, endless_list, long_prompts, many_words),
    *(endless_trace, packed_lock, nested_import),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [attack.__name__ for attack in INPUTS]
    parser.add_argument("inputs", metavar="INPUT", nargs="*", choices=[*names, []], help=", ".join(names))
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    roles, rows, largest = list(dict.fromkeys(reversed(ROLES.values()))), [], 0
    for attack in INPUTS:
        if options.inputs and attack.__name__ not in options.inputs:
            continue
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="sweep-hostile-") as folder:
            peaks = attack(Path(folder))
            log = Path(folder) / "output.txt"
            words = log.read_text(errors="replace").strip().splitlines()[-1:] if log.exists() else []
        print(attack.__name__, peaks, f"{time.monotonic() - began:.0f} s", *words, file=sys.stderr, flush=True)
        largest = max([largest, *peaks.values()])
        cells = [f"{peaks[role] / MIB:,.0f}" if role in peaks else "" for role in roles]
        rows.append([(attack.__doc__ or "").strip().rstrip("."), *cells])
    lines = markdown_table(" | ".join(["input", *(f"{role}, MiB" for role in roles)]), rows)
    publish(lines, options.write)
    return 1 if largest > LIMIT else 0


if __name__ == "__main__":
    sys.exit(main())
