"""Ollama against a stand-in of its program and API: launched on its own weights, and attached to as it runs."""

import json
import sys
from pathlib import Path

import httpx
import pyarrow.parquet as pq
import pytest

from backends.base import Backend, Host, Launch
from backends.launch import server
from sweep.__main__ import main
from sweep.base.config import ROOT, build
from sweep.base.options import load_option
from tests.support.http_stub import serving
from tests.support.ollama_stand_in import Ollama

MODEL = "llama3.2:1b"


@pytest.fixture
def program(tmp_path) -> Path:
    file = tmp_path / "ollama"
    file.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m tests.support.ollama_stand_in "$@"\n')
    file.chmod(0o755)
    return file


def configured(**keys: object) -> Backend:
    backend = build({**load_option("backend", "ollama"), **keys}, "backend")
    assert isinstance(backend, Backend)
    return backend


def test_a_node_without_its_program_is_told_to_attach():
    assert "backend.url=http://127.0.0.1:11434" in (configured().unavailable(Host()) or "")
    assert configured().unavailable(Host(executables=frozenset({"ollama"}))) is None
    assert configured(url="http://127.0.0.1:11434").unavailable(Host()) is None


def test_its_own_server_has_the_model_before_it_is_ready(program, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.gguf").touch()
    (model / "config.json").write_text(json.dumps({"max_position_embeddings": 2048}))
    backend = configured(env={"binary": str(program)}, slots=4, flags={"repeat_penalty": 1.0, "num_batch": 256})
    launch = Launch(model=model, served_name="tiny", workdir=tmp_path / "attempt", binary=str(program), threads=2)
    with server.running(backend, launch, marker="test/ollama") as engine:
        facts = engine.facts()
        body = {"model": "tiny", "prompt": "a b c", "max_tokens": 3}
        answer = httpx.post(f"{engine.url}/v1/completions", json=body, trust_env=False)
        assert answer.text.count('"text"') == 3
    assert (facts["engine_version"], facts["max_model_len"], facts["dtype"]) == ("0.12.3", 2048, "float16")
    assert facts["environ"]["OLLAMA_NUM_PARALLEL"] == "4"
    lines = (tmp_path / "attempt" / "Modelfile").read_text().splitlines()
    assert lines[:3] == [f"FROM {model / 'model.gguf'}", "TEMPLATE {{ .Prompt }}", "PARAMETER num_ctx 2048"]
    assert lines[3:] == ["PARAMETER num_thread 2", "PARAMETER repeat_penalty 1.0", "PARAMETER num_batch 256"]


def test_a_running_server_is_measured_with_its_model_and_context(tmp_path, monkeypatch, capsys):
    """Its answers end at EOS, so they are as long as it likes, and the row says which context it was given."""
    monkeypatch.setenv("STAND_IN_EOS", "5")
    monkeypatch.setenv("STAND_IN_DELAY", "0.15")
    monkeypatch.setattr(Ollama, "models", {MODEL: 4096})
    monkeypatch.setattr(Ollama, "loaded", {MODEL})
    monkeypatch.setattr(Ollama, "bodies", [])
    with serving(Ollama) as url:
        words = ["backend=ollama", f"backend.url={url}", f"model={MODEL}", "workload=qa", "load=closed"]
        sizes = [
            "workload.num_requests=4",
            "workload.output_tokens=8",
            "load.concurrency=2",
            "workload.warmup_requests=0",
        ]
        assert main([*words, *sizes, "cluster=inline", "tracking=none", f"out={tmp_path}/out"]) == 0, (
            capsys.readouterr().out
        )
    (row,) = pq.read_table(tmp_path / "out" / "trials.parquet").to_pylist()
    facts = json.loads(row["engine_facts"])
    assert (row["outcome"], row["output_tokens"], row["engine_version"]) == ("ok", 20, "0.12.3")
    assert (facts["max_model_len"], facts["quantization"]) == (4096, "Q4_K_M")
    measured = Ollama.bodies[-4:]  # after the first short requests, which try out what the server takes
    assert {body["model"] for body in measured} == {MODEL}
    assert not any("ignore_eos" in body or isinstance(body["prompt"], list) for body in measured)
