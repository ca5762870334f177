"""Answers that are none, or differ, through the whole command: what an endpoint does to look better than it is."""

import itertools
import json
import socket
import socketserver
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import analysis
from sweep.__main__ import main
from tests.client.test_tokens import BUSY, sweep
from tests.support.http_stub import Stub, running, serving
from tests.support.token_server import Script, token_server

pytestmark = [BUSY, pytest.mark.slow]
SEVERAL = ("workload.num_requests=24", "load.concurrency=12", "workload.output_tokens=16")
ANY_LENGTH = (*SEVERAL, "workload.ignore_eos=false")
SUSPICIONS = {"odd-answers", "other-model", "padded-first-token", "buffered-stream", "prompt-tokens-differ"}
CHAT = "backend.api=chat"


@pytest.mark.parametrize(
    ("script", "codes", "overrides"),
    [
        pytest.param(Script(text="own"), set(), SEVERAL, id="honest"),
        pytest.param(Script(tokens=1, finish="stop", ttft=0.3), set(), ANY_LENGTH, id="honest, one token"),
        pytest.param(Script(lengths=(3, 16, 9, 2), text="own"), set(), ANY_LENGTH, id="honest, of any length"),
        pytest.param(Script(model=("org/SERVED",)), set(), SEVERAL, id="honest, one word again and again"),
        pytest.param(Script(text="own", odd_every=4), {"odd-answers"}, SEVERAL, id="errors as answers"),
        pytest.param(Script(text="canned"), {"odd-answers"}, SEVERAL, id="one answer to all"),
        pytest.param(Script(model=("served-fallback",)), {"other-model"}, SEVERAL, id="another model"),
        pytest.param(Script(model=("served", "served-0613")), {"other-model"}, SEVERAL, id="two models"),
        pytest.param(
            Script(early={"text": "(one moment)"}, ttft=0.3), {"padded-first-token"}, SEVERAL, id="placeholder"
        ),
        pytest.param(Script(replay=0.0003), {"buffered-stream"}, SEVERAL, id="held back, then event by event"),
        pytest.param(Script(replay=0.0003, burst=4), {"buffered-stream"}, SEVERAL, id="held back in bursts"),
        pytest.param(Script(prompt_tokens=4), {"prompt-tokens-differ"}, SEVERAL, id="prompts cut"),
        pytest.param(Script(prompt_tokens=64), {"prompt-tokens-differ"}, SEVERAL, id="prompts counted fourfold"),
    ],
)
def test_what_is_odd_is_named_and_what_is_honest_is_not(
    script: Script, codes: set[str], overrides: tuple[str, ...], tmp_path: Path
) -> None:
    row = sweep(tmp_path, script, overrides=overrides)
    assert row.outcome == "ok"
    assert SUSPICIONS & set(row.warnings) == codes
    assert "unverified-tokens" in row.warnings
    assert script.model == () or row.served_model == ", ".join(sorted(script.model))
    requests = analysis.requests(tmp_path / "out")
    assert (requests.characters > 0).all()
    assert requests.text_hash.notna().any() == (script.text != "same")
    if "prompt-tokens-differ" in codes:
        assert pd.isna(row.total_throughput)
        assert "total_throughput" not in pd.read_csv(tmp_path / "out" / "summary.csv").dropna(axis=1)
    if "buffered-stream" in codes:
        assert pd.isna(row.tpot_p50)


@pytest.mark.parametrize(
    ("early", "overrides"),
    [
        ({"text": " "}, []),
        ({"text": "\u200b\n"}, []),
        ({"text": ""}, []),
        ({"delta": {"role": "assistant", "content": ""}}, [CHAT]),
        ({"delta": {"reasoning_content": "…"}}, [CHAT]),
    ],
    ids=["space", "zero width", "empty", "role", "placeholder reasoning"],
)
@pytest.mark.parametrize("usage", ["final", "running"])
def test_a_chunk_without_visible_text_is_no_first_token(
    early: Any, overrides: list[str], usage: Any, tmp_path: Path
) -> None:
    row = sweep(tmp_path, Script(ttft=0.2, early=early, usage=usage), overrides=overrides)
    assert row.ttft_p50 == pytest.approx(0.2, rel=0.1)
    assert row.tpot_p50 == pytest.approx(0.02, rel=0.1)
    assert row.output_tokens == 6 * 32


def test_lengths_that_are_right_on_average_only_are_invalid(tmp_path: Path) -> None:
    row = sweep(tmp_path, Script(lengths=(24, 8)), overrides=SEVERAL, status=1)
    assert row.outcome == "invalid"
    assert "100% of the answers (8 to 24 tokens) are over 10% longer or shorter" in row.reason


@pytest.mark.parametrize("script", [Script(tokens=4, hidden=12, details=False), Script(tokens_per_event=4)])
def test_hidden_or_merged_tokens_of_a_final_usage_give_no_time_per_token(script: Script, tmp_path: Path) -> None:
    row = sweep(tmp_path, script, overrides=[*SEVERAL, "slo={tpot: 50ms}"])
    assert pd.isna(row.tpot_p50)
    assert pd.isna(row.goodput)
    assert "unstamped-tokens" in row.warnings
    assert analysis.requests(tmp_path / "out").tpot.isna().all()


def test_a_count_that_does_not_grow_with_the_prompts_is_told(tmp_path: Path) -> None:
    lengths = ["workload=serving", "workload.input_tokens=20", "workload.spread=0.5"]
    row = sweep(tmp_path, Script(prompt_tokens=20), overrides=[*SEVERAL, *lengths])
    assert row.tokens_per_word == pytest.approx(1, abs=0.3)
    assert "prompt-tokens-differ" in row.warnings


def test_a_server_that_counts_double_is_seen_by_its_characters(tmp_path: Path) -> None:
    sweep(tmp_path, Script(usage="running"), Script(usage="running", tokens=8, overcount=2.0), overrides=SEVERAL)
    points = pd.read_csv(tmp_path / "out" / "summary.csv")
    assert points["warnings"].str.contains("unequal-characters").all()


def run(out: Path, *overrides: str) -> tuple[int, dict[str, Any]]:
    line = ["backend=openai", "model=served", "workload=synthetic", "workload.input_tokens=16", "tracking=none"]
    status = main([*line, "hardware=cpu", "cluster=inline", "load=closed", *overrides, f"out={out}"])
    (row,) = analysis.load(out).to_dict("records")
    return status, {str(name): value for name, value in row.items()}


@pytest.mark.parametrize("load", [["load=closed", "load.concurrency=4"], ["load=constant", "load.rate=8"]])
def test_a_server_that_closes_after_each_answer_has_its_set_up_in_ttft(load: list[str], tmp_path: Path) -> None:
    sizes = ["workload.num_requests=16", "workload.output_tokens=8"]
    with slow_handshakes(Script(close=True), tmp_path, delay=0.3) as url:
        row = run(tmp_path / "out", *sizes, *load, f"backend.url={url}", "backend.verify_tls=false")[1]
    assert row["outcome"] == "ok", row["reason"]
    assert row["connect_p50"] >= 0.3
    assert row["service_ttft_p50"] < 0.2
    assert row["ttft_p50"] == pytest.approx(row["connect_p50"] + row["service_ttft_p50"], abs=0.05)
    assert "closed-connections" in row["warnings"]


@contextmanager
def slow_handshakes(script: Script, folder: Path, delay: float) -> Iterator[str]:
    """The endpoint behind TLS that takes `delay` s for each handshake."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    request = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-subj",
        "/CN=localhost",
        "-days",
        "2",
    ]
    subprocess.run([*request, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    with token_server(script) as inner, socket.create_server(("127.0.0.1", 0)) as listener:

        def converse(accepted: socket.socket) -> None:
            time.sleep(delay)
            with suppress(OSError), context.wrap_socket(accepted, server_side=True) as client:
                request = client.recv(1 << 16)
                with socket.create_connection(("127.0.0.1", int(inner.rpartition(":")[2]))) as server:
                    server.sendall(request)
                    while data := server.recv(1 << 16):
                        client.sendall(data)

        def accept() -> None:
            with suppress(OSError):
                while True:
                    threading.Thread(target=converse, args=(listener.accept()[0],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield f"https://127.0.0.1:{listener.getsockname()[1]}"


def test_failures_of_earlier_attempts_count_in_the_point(tmp_path: Path) -> None:
    """The first attempt fails by 5 of 24 requests, the second by none."""
    with serving(failing(set(range(3, 8)))) as url:
        line = ["workload.num_requests=24", "load.concurrency=4", "workload.output_tokens=4", f"backend.url={url}"]
        line += ["workload.warmup_requests=0", "backend.api=completions", "retry=next_run"]
        row = next(row for status, row in (run(tmp_path / "out", *line) for _ in range(8)) if not status)
    assert (row["outcome"], row["num_failed"], row["earlier_attempts"]) == ("ok", 0, 1)
    assert row["earlier_failed"] == 5
    assert "overloaded" in row["earlier_reasons"]
    assert "earlier-attempts" in row["warnings"]
    assert pd.read_csv(tmp_path / "out" / "summary.csv")["failed"][0] == 5


def failing(numbers: set[int]) -> type[Stub]:
    """An endpoint whose requests of these numbers fail, from 1."""
    requests = itertools.count(1)

    class Endpoint(Stub):
        def do_GET(self) -> None:
            self.reply(404)

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["max_tokens"]
            probe = self.headers["x-request-id"] == "probe"
            if not probe and next(requests) in numbers:
                self.reply(503, b"overloaded")
                return
            time.sleep(0.5)  # beside it the client's own time is small, also on a busy machine
            ends = [None] * (asked - 1) + ["length"]
            choices = [{"choices": [{"index": 0, "text": " w", "finish_reason": end}]} for end in ends]
            usage = {"choices": [], "usage": {"prompt_tokens": 16, "completion_tokens": asked}}
            body = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in [*choices, usage])
            self.reply(200, body + b"data: [DONE]\n\n", {"Content-Type": "text/event-stream"})

    return Endpoint


def test_a_server_of_http_2_alone_is_named(tmp_path: Path) -> None:
    class Settings(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            if self.request.recv(1 << 16):
                self.request.sendall(b"\x00\x00\x12\x04\x00\x00\x00\x00\x00" + bytes(18))

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Settings) as server, running(server):
        url = f"http://127.0.0.1:{server.server_address[1]}"
        status, row = run(tmp_path / "out", f"backend.url={url}", "workload.num_requests=4", "load.concurrency=2")
    assert status == 1
    assert "the server supports only HTTP/2" in row["reason"]


def test_one_refused_probe_is_no_death(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    connect, refused = socket.create_connection, itertools.cycle([True, False])

    def sometimes(*address: Any, **options: Any) -> socket.socket:
        if next(refused):
            raise ConnectionResetError("reset")
        return connect(*address, **options)

    monkeypatch.setattr(socket, "create_connection", sometimes)
    row = sweep(tmp_path, Script(ttft=0.5), overrides=["workload.num_requests=18", "load.concurrency=6"])
    assert (row.outcome, row.num_failed) == ("ok", 0)
