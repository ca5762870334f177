"""The TGI backend: its command lines, its launchers against stand-ins, and the client on a stand-in's wire."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import httpx
import pyarrow.parquet as pq
import pytest

from backends.base import EnvironmentChoice, Host, Launch
from backends.launch import server
from backends.tgi import TGI
from sweep.base.records import Outcome, Request
from sweep.client import measurement, wire
from sweep.inputs.load import Batch, Closed
from sweep.node import verdict
from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = [sys.executable, str(ROOT / "tests" / "support" / "tgi_stand_in.py")]


def executable(path: Path, *command: str, **environment: str) -> Path:
    lines = [f"export {name}='{value}'" for name, value in environment.items()]
    quoted = " ".join(f"'{part}'" for part in command)
    path.write_text("\n".join(["#!/bin/sh", *lines, f'exec {quoted} "$@"']) + "\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def model(tmp_path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"max_position_embeddings": 4096}')
    return folder


def launch(tmp_path: Path, model: Path, **more: object) -> Launch:
    known = {"model": model, "served_name": "tiny", "workdir": tmp_path / "attempt", "max_model_len": 4096}
    return Launch(**{**known, "python": sys.executable, **more})


@pytest.fixture
def native(tmp_path, model):
    """native(flags, STAND_IN_EOS=…) -> a running engine: the stand-in as text-generation-launcher."""
    contexts = []

    def start(flags: dict | None = None, **environment: str) -> server.Engine:
        binary = executable(tmp_path / "launcher", *STAND_IN, PYTHONPATH=str(ROOT), **environment)
        backend = TGI(name="tgi", flags=flags or {}, env=EnvironmentChoice(binary=str(binary)))
        context = server.running(backend, launch(tmp_path, model, binary=str(binary)), marker=f"tgi/{os.getpid()}")
        contexts.append(context)
        return context.__enter__()

    yield start
    for context in contexts:
        context.__exit__(None, None, None)


def measure(engine, requests, load, tmp_path, api="tgi"):
    target = wire.Target(engine.url, "tgi", api=api, token_ids=False)
    return measurement.measure(
        target,
        [],
        requests,
        load.mode(len(requests), 1),
        folder=tmp_path / "job",
        should_stop=lambda: None if engine.alive() else "the engine died",
    )


def asked(count: int, tokens: int = 16, prompt: str = "one two three") -> list[Request]:
    return [Request(f"r{index}", prompt, tokens, 3) for index in range(count)]


# -- command lines


def test_the_launchers_command_line(tmp_path, model):
    backend = TGI(name="tgi", flags={"quantize": "awq", "disable-custom-kernels": True})
    line = backend.command(launch(tmp_path, model, port=8123, gpus=("0", "1"), dtype="float16"))
    assert line[0] == "text-generation-launcher"
    given = dict(zip(line[1::2], line[2::2], strict=False))
    assert given["--model-id"] == str(model)
    assert (given["--hostname"], given["--port"]) == ("127.0.0.1", "8123")
    assert (given["--num-shard"], given["--dtype"], given["--quantize"]) == ("2", "float16", "awq")
    assert (given["--max-input-tokens"], given["--max-total-tokens"]) == ("4095", "4096")
    assert given["--usage-stats"] == "off"
    assert line[-1] == "--disable-custom-kernels"
    assert given["--prometheus-port"] != given["--master-port"]


def test_its_pool_is_a_share_of_the_memory_that_it_may_use(tmp_path, model):
    backend = TGI(name="tgi", flags={"cuda-memory-fraction": 0.5})
    assert backend.memory_share(launch(tmp_path, model)) == pytest.approx(0.95 * 0.5)


@pytest.mark.parametrize(
    ("fields", "host", "words"),
    [
        ({}, Host(executables=frozenset({"docker"})), "CUDA GPU"),
        ({}, Host(gpus=("NVIDIA L4",), executables=frozenset({"docker"})), None),
        ({"env": {"binary": "/opt/tgi"}}, Host(gpus=("NVIDIA L4",)), None),
        ({"url": "http://127.0.0.1:3000"}, Host(), None),
    ],
)
def test_unavailable_with_the_remedy(fields, host, words):
    said = TGI(name="tgi", **fields).unavailable(host)
    if words is None:
        assert said is None
    else:
        assert words in said
        assert "backend.url=" in said
        assert "\n" not in said


# -- the wire, on the stand-in


@pytest.mark.parametrize("api", ["tgi", "completions"])
def test_streams_and_counts(native, tmp_path, api):
    engine = native()
    found = measure(engine, asked(8), Batch(batch_size=4), tmp_path, api).records
    assert [found.error[index] for index in range(8)] == [None] * 8
    assert list(found.output_tokens) == [16] * 8
    assert list(found.input_tokens) == [3] * 8
    assert set(found.finish_reason) == {"length"}
    facts = engine.facts()
    assert facts["engine_version"] == "3.3.7-stand-in"
    text = httpx.get(engine.url + "/metrics", trust_env=False).text
    assert all(part in text for name in engine.backend.metric_names.values() for part in name.split(" / "))


@pytest.mark.parametrize(("api", "reason"), [("tgi", "eos_token"), ("completions", "stop")])
def test_there_is_no_ignore_eos(native, tmp_path, api, reason):
    found = measure(native(STAND_IN_EOS="5"), asked(2), Batch(batch_size=2), tmp_path, api).records
    assert list(found.output_tokens) == [5, 5]
    assert set(found.finish_reason) == {reason}


@pytest.mark.parametrize("api", ["tgi", "completions"])
def test_overload_is_an_error_in_a_stream_of_status_200(native, tmp_path, api):
    engine = native({"max-concurrent-requests": 2}, STAND_IN_ITL="0.02")
    found = measure(engine, asked(6), Closed(concurrency=6), tmp_path, api).records
    refused = [error for error in found.error if error]
    assert len(refused) == 4
    assert all("Model is overloaded" in error for error in refused)
    outcome = verdict.judge_requests(found, max_failed=0.05).outcome
    assert outcome is Outcome.INVALID
    # Not so where nothing is streamed.
    with httpx.Client(base_url=engine.url, trust_env=False) as http:
        assert http.post("/generate", json={"inputs": "a b", "parameters": {"max_new_tokens": 2}}).status_code == 200


def test_too_long_is_an_error_event_and_the_server_lives_on(native, tmp_path):
    engine = native()
    found = measure(engine, asked(1, prompt="x " * 5000), Batch(batch_size=1), tmp_path).records
    assert "must have less than 4095 tokens" in found.error[0]
    assert engine.alive()


def test_beyond_1024_tokens_there_is_a_stall(native, tmp_path):
    found = measure(native(STAND_IN_STALL="0.3"), asked(1, tokens=1030), Batch(batch_size=1), tmp_path).records
    record = found[0]
    assert record.output_tokens == 1030
    gaps = [after - before for before, after in zip(record.chunk_us, record.chunk_us[1:], strict=False)]
    assert gaps.index(max(gaps)) == 1023  # between the 1,024th token and the next
    assert max(gaps) > 290_000


def test_the_shard_dies_of_an_out_of_memory(native, tmp_path):
    engine = native(STAND_IN_MEMORY="3", STAND_IN_ITL="0.01")
    found = measure(engine, asked(4), Batch(batch_size=4), tmp_path).records
    assert all("CUDA out of memory" in error for error in found.error)
    wait_until(lambda: not engine.alive(), 5)
    assert engine.ran_out_of_memory()
    assert engine.exit_reason().startswith("RuntimeError: CUDA out of memory. (exit status 1); lower load.batch_size")
    with pytest.raises(httpx.ConnectError):
        httpx.get(engine.url + "/health", trust_env=False)


@pytest.mark.slow
def test_the_whole_line_attached_to_one_that_runs(native, tmp_path):
    """`backend=tgi backend.url=...`: no GPU, no docker, nothing launched."""
    engine = native(STAND_IN_EOS="9", STAND_IN_ITL="0.1")  # slow beside the client, on any machine
    words = (
        f"backend=tgi backend.url={engine.url} model=served workload=qa workload.num_requests=6 "
        "workload.output_tokens=12 load.batch_size=3 cluster=inline tracking=none hardware=cpu "
        f"out={tmp_path / 'out'} cache_dir={tmp_path / 'cache'}"
    )
    done = subprocess.run([sys.executable, "-m", "sweep", *words.split()], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    row = pq.read_table(tmp_path / "out" / "trials.parquet").to_pylist()[0]
    assert (row["outcome"], row["num_failed"], row["output_tokens"]) == ("ok", 0, 6 * 9)
    assert row["engine_version"] == "3.3.7-stand-in"
    assert row["memory_label"] == "reserved"
    assert row["agreement_reference"] == "none: the weights of a running endpoint are unknown"
    assert engine.alive()
