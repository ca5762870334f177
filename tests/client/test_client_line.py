"""The client through the whole command: against a server that logs the truth, and ones that cannot be measured so."""

import contextlib
import gzip
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from backends.simulated_server.truth import read_log
from sweep.__main__ import main
from sweep.client.modes import ClosedLoop, Mode
from sweep.disk.run_files import RunPaths, read_trials
from sweep.inputs.load import Closed
from tests.support.simulated_engine import simulated

TTFT, ITL, STREAMS, ROUNDS = 0.05, 0.05, 256, 3
Row = dict[str, Any]


def run(out: Path, url: str, *overrides: str) -> tuple[Row, list[Row]]:
    command = ["backend=openai", f"backend.url={url}", "model=served", "workload=synthetic", "workload.input_tokens=16"]
    main([*command, "workload.warmup_requests=0", "cluster=inline", "tracking=none", f"out={out}", *overrides])
    paths = RunPaths(out)
    (row,) = read_trials(paths.trials)
    requests = paths.trial(row["deployment_id"], row["attempt"], row["trial_id"]).requests
    return dict(row), pq.read_table(requests).to_pylist() if requests.exists() else []


# The client's own turnaround -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_streams_in_step_have_the_servers_ttft_and_the_client_its_turnaround(tmp_path: Path) -> None:
    """All 256 answers end together, so that the client sends the next requests one after another: no fault of TTFT."""
    log = tmp_path / "log"
    load = ["load=closed", f"load.concurrency={STREAMS}", "load.stagger=0"]
    load += [f"workload.num_requests={ROUNDS * STREAMS}"]
    with simulated(ttft={"mean": TTFT}, itl={"mean": ITL}, log=str(log)) as (url, _):
        row, requests = run(tmp_path / "out", url, *load, "workload.output_tokens=16")
    sent = {request["request_id"] for request in requests}  # the log has the probe of the endpoint too
    truths = {key: truth for key, truth in read_log(log).items() if key[0] in sent}
    true_ttft = {request_id: (truth.writes[0] - truth.arrival) / 1e9 for (request_id, _), truth in truths.items()}
    errors = np.array([request["ttft"] - true_ttft[request["request_id"]] for request in requests])
    assert errors.size == ROUNDS * STREAMS
    assert np.median(np.abs(errors)) < 0.5e-3, "from the schedule it would be 2 ms and more"
    assert {request["scheduled"] for request in requests} == {None}
    for request in requests:
        assert request["released"] + request["turnaround"] == pytest.approx(request["sent"])
        assert request["turnaround"] >= 0
    # The server's log knows the rest: from the end of its answers in step to the arrival of the next requests.
    later = [request for request in requests if request["sent"] > TTFT]
    ends = np.sort([truth.last_write for truth in truths.values()])[: len(later)]
    arrivals = np.sort([truth.arrival for truth in truths.values()])[STREAMS:]
    true_turnaround = float((arrivals - ends).mean()) / 1e9
    assert np.mean([request["turnaround"] for request in later]) == pytest.approx(true_turnaround, rel=0.1, abs=5e-4)
    total = sum(request["turnaround"] + request["e2el"] for request in requests)
    share = sum(request["turnaround"] for request in requests) / total
    assert row["turnaround_share"] == pytest.approx(share)
    assert row["outcome"] == ("ok" if share <= 0.01 else "client_limited")
    if row["outcome"] == "ok":
        assert row["ttft_p50"] == pytest.approx(np.median(list(true_ttft.values())), abs=0.5e-3)
        assert row["lag_p99"] is row["slot_wait_p99"] is row["offered_rate"] is None


@dataclass
class SlowClosedLoop(ClosedLoop):
    """Users whose client takes 20 ms of its own before it sends."""

    def ended(self, sender: Any, dispatch: Any, instant: int) -> None:
        time.sleep(0.02)
        super().ended(sender, dispatch, instant)


class SlowUsers(Closed):
    def mode(self, count: int, seed: int, starts: Any = None) -> Mode:
        return SlowClosedLoop(self.concurrency)


@pytest.mark.slow
def test_a_slow_client_of_a_closed_loop_is_limited_and_its_latencies_are_the_servers(tmp_path: Path) -> None:
    load = ["load=closed", f"load._target_={__name__}.SlowUsers", "load.concurrency=1", "workload.num_requests=6"]
    with simulated(ttft={"mean": TTFT}, itl={"mean": ITL}) as (url, _):
        row, requests = run(tmp_path / "out", url, *load, "workload.output_tokens=4")
    assert row["outcome"] == "client_limited"
    assert "from an answer to the next send" in row["reason"]
    assert row["turnaround_share"] == pytest.approx(5 * 0.02 / (6 * 0.2 + 5 * 0.02), rel=0.5)
    assert row["ttft_p50"] is row["output_throughput"] is None
    assert np.median([request["ttft"] for request in requests]) == pytest.approx(TTFT, abs=0.015)


# Servers that cannot be measured so ----------------------------------------------------------------------------------

EVENTS = b"".join(
    b"data: %s\n\n" % json.dumps({"choices": [{"index": 0, "text": " a", "finish_reason": finish}]}).encode()
    for finish in (None, None, "length")
)
STREAM = EVENTS + b"data: [DONE]\n\n"


def http(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", "Content-Type: text/event-stream", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


@contextlib.contextmanager
def raw_server(answer: bytes, closes: bool = False) -> Iterator[str]:
    """A server that gives one answer to every POST and, if it closes, ends the connection without having said so."""

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            data = b""
            while part := connection.recv(65536):
                data += part
                head, end, rest = data.partition(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
                if not end or len(rest) < length:
                    continue
                data = rest[length:]
                connection.sendall(answer if head.startswith(b"POST") else http(b"", status="404 Not Found"))
                if closes:
                    return

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=serve, args=[connection], daemon=True).start()

    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


FEW = ["load=closed", "load.concurrency=2", "workload.num_requests=20", "workload.output_tokens=3"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "parts"),
    [
        (
            http(b"", "Location: https://engine.example/api/v1/completions", status="308 Permanent Redirect"),
            ["status: 308 redirects to https://engine.example/api/v1", "set backend.url=https://engine.example/api"],
        ),
        (
            http(b"", "Location: /api/v1/completions", status="307 Temporary Redirect"),
            ["status: 307 redirects to /api/v1/completions; set the path of backend.url to /api"],
        ),
        (
            http(gzip.compress(STREAM), "Content-Encoding: gzip"),
            ["content-encoding gzip is not supported", "disable compression of text/event-stream in the server"],
        ),
    ],
    ids=["redirect", "relative redirect", "gzip"],
)
def test_a_server_that_cannot_be_measured_is_invalid_with_the_remedy(
    answer: bytes, parts: list[str], tmp_path: Path
) -> None:
    with raw_server(answer) as url:
        row, _ = run(tmp_path / "out", url, *FEW)
    assert row["outcome"] == "invalid"
    assert "\n" not in row["reason"]
    for part in parts:
        assert part in row["reason"]


@pytest.mark.slow
def test_a_server_that_closes_without_saying_so_is_invalid_until_each_request_has_its_own(tmp_path: Path) -> None:
    with raw_server(http(STREAM), closes=True) as url:
        row, _ = run(tmp_path / "out", url, *FEW)
        assert row["outcome"] == "invalid"
        assert "after it had answered once on this connection" in row["reason"]
        assert "backend.headers={Connection: close}" in row["reason"]
        _, requests = run(tmp_path / "remedy", url, *FEW, "backend.headers={Connection: close}")
    assert [request["error"] for request in requests] == [None] * 20
