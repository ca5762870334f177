"""Control requests: a reply that never ends, drips, or expands costs neither time nor memory."""

import gzip
import time

import httpx
import pytest

from backends.launch import control_client
from backends.launch.control_client import ControlClient
from sweep.__main__ import main
from sweep.disk.run_files import read_trials
from sweep.node.telemetry import EngineMetrics, Sampler
from tests.drive.test_outages import ENDPOINT
from tests.support.http_stub import Stub, serving

EVENT = b'data: {"choices": [{"index": 0, "text": " w"}]}\n\n'


class Hostile(Stub):
    """Answers completions, and every other request with `content` again and again."""

    content, pause = b"x" * 65536, 0.0

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        try:
            while True:
                self.wfile.write(self.content)
                time.sleep(self.pause)
        except OSError:
            pass

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        events = EVENT * 4 + b"data: [DONE]\n\n"
        self.reply(200, events, {"Content-Type": "text/event-stream"})


class Dripping(Hostile):
    content, pause = b" ", 0.02


class Expanding(Hostile):
    def do_GET(self):
        self.reply(200, gzip.compress(gzip.compress(bytes(1 << 24))), {"Content-Encoding": "gzip, gzip"})


@pytest.mark.parametrize(
    ("handler", "problem"),
    [(Hostile, "exceeds 4,194,304 bytes"), (Dripping, "bytes or 0.2 s"), (Expanding, "is compressed (gzip, gzip)")],
)
def test_a_reply_has_bounds(handler, problem, monkeypatch):
    monkeypatch.setattr(control_client, "LONGEST_REPLY", 0.2 if handler is Dripping else 60.0)
    with serving(handler) as url, ControlClient(timeout=10) as client:
        with pytest.raises(httpx.HTTPError) as raised:
            client.get(f"{url}/v1/models")
        metrics = Sampler([EngineMetrics([f"{url}/metrics"], {"kv_cache_usage": "kv"})], 10)
        assert metrics.read_once() == []
    assert problem in str(raised.value)
    assert problem in metrics.described


@pytest.mark.slow
@pytest.mark.parametrize("handler", [Hostile, Dripping])
def test_an_endpoint_whose_list_of_models_never_ends_is_measured(handler, tmp_path, monkeypatch):
    """It held the launch for as long as it sent, and took all the node's memory."""
    monkeypatch.setattr(control_client, "LONGEST_REPLY", 0.2 if handler is Dripping else 60.0)
    with serving(handler) as url:
        status = main([*ENDPOINT, f"backend.url={url}", "load.concurrency=1", f"out={tmp_path}"])
    (row,) = read_trials(tmp_path / "trials.parquet")
    assert row["outcome"] in ("ok", "client_limited"), row["reason"]  # the latter on a busy machine
    assert status == int(row["outcome"] != "ok")
