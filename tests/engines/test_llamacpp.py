"""What only llama.cpp has: slots, weights that are quantised by its own tool, and connections that it closes."""

import http.client
import json
import os
import threading
import time

import httpx
import pytest

from backends.base import EnvironmentChoice
from backends.launch import server
from sweep.base.records import Outcome
from tests.engines.conftest import configured, make_launch, stream

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

PROMPT = "The river rose in the night, and by morning"


@pytest.fixture
def run(model, environments, tmp_path):
    """run(slots=1, ...) -> a running engine as a `with` block."""

    def running(**changes):
        backend = configured("backend", "llamacpp").model_copy(update=changes)
        launch = make_launch(backend, model, environments(backend), tmp_path / "attempt")
        return server.running(backend, launch, marker=f"test/{os.getpid()}/llamacpp")

    return running


def most_at_once(engine, streams: int) -> tuple[float, float]:
    """Most sequences that ran and most that waited while so many streams were asked for at the same time."""
    threads = [threading.Thread(target=stream, args=(engine, [100 + i] * 40, 400)) for i in range(streams)]
    for thread in threads:
        thread.start()
    running = waiting = 0.0
    while any(thread.is_alive() for thread in threads):
        lines = httpx.get(f"{engine.url}/metrics", timeout=10, trust_env=False).text.splitlines()
        values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        running = max(running, float(values[engine.backend.metric_names["requests_running"]]))
        waiting = max(waiting, float(values[engine.backend.metric_names["requests_waiting"]]))
        time.sleep(0.01)
    return running, waiting


def test_one_slot_serves_one_by_one_and_more_slots_together(run):
    with run(slots=1) as engine:
        assert most_at_once(engine, 3) == (1, 2)
    with run(slots=4) as engine:
        running, waiting = most_at_once(engine, 3)
        assert running >= 2
        assert waiting == 0


@pytest.mark.parametrize("quantization", ["Q8_0", "Q4_K_M"])
def test_quantised_weights_say_what_the_others_say(run, quantization):
    """The model's choices have wide margins: eight or four bits do not change its greedy text. (AMX kernels, which this
    build leaves out, died here.)"""
    with run() as engine:
        ((expected,), _) = stream(engine, PROMPT, 32)
    with run(quantization=quantization) as engine:
        assert engine.facts()["quantization"] == quantization
        ((found,), _) = stream(engine, PROMPT, 32)
    assert found.text == expected.text


def test_it_says_that_it_closes_a_connection_when_it_is_asked_to(run):
    """Left to itself it promises to keep each connection and closes it after the stream."""
    body = json.dumps({"model": "tiny", "prompt": [100], "max_tokens": 2, "stream": True})
    with run() as engine:
        connection = http.client.HTTPConnection("127.0.0.1", engine.launch.port)
        connection.request("POST", "/v1/completions", body, engine.backend.headers)
        answer = connection.getresponse()
        assert answer.getheader("Connection") == "close"
        assert answer.read().endswith(b"data: [DONE]\n\n")


def test_a_cache_that_does_not_fit_is_out_of_memory_at_load(run, environments, tmp_path):
    binary = environments(configured("backend", "llamacpp")).binary
    limited = tmp_path / "llama-server"
    limited.write_text(f'#!/bin/sh\nulimit -v 600000\nexec {binary} "$@"\n')  # KiB
    limited.chmod(0o755)
    flags = {"ctx-size": 1_000_000}  # 2 KiB of keys and values each
    with pytest.raises(server.LaunchError) as caught, run(flags=flags, env=EnvironmentChoice(binary=str(limited))):
        pytest.fail("it must not become ready")
    assert caught.value.outcome is Outcome.OOM_LOAD
    assert "failed to initialize the context" in caught.value.reason
