"""scripts/gpu-check: its sections, with and without a GPU, and what it reports. Engines are tested by its rehearsal."""

import json
import sys
from pathlib import Path

import pytest

from backends.launch import gpus
from backends.launch.gpus import Gpu
from scripts import gpu_check
from sweep import provenance
from sweep.__main__ import main

EVERY = ("install", "conformance", "memory", "reset", "power", "two_gpus", "bound")


@pytest.fixture
def two_l4s(monkeypatch):
    """A machine with two GPUs and a new driver."""
    present = tuple(Gpu(f"GPU-{number}", number, "NVIDIA L4", "8.9") for number in range(2))
    for function in (gpus.present, gpus.visible):
        monkeypatch.setattr(gpus, function.__name__, lambda: present)
    monkeypatch.setattr(gpus, "driver", lambda: "580.65")
    monkeypatch.setattr(provenance, "nvcc", lambda: None)


def names(folder: Path) -> list[str]:
    return [section.name for section in gpu_check.sections(folder)]


def test_the_sections_of_a_machine_without_a_gpu_are_a_rehearsal(tmp_path):
    listed = {section.name: section for section in gpu_check.sections(tmp_path)}
    assert {name.partition(":")[0] for name in listed} == set(EVERY)
    assert listed["two_gpus"].skipped
    assert "conformance:sglang" not in listed


def test_the_sections_of_a_machine_with_gpus_are_every_engine_that_installs(two_l4s, tmp_path):
    listed = {section.name: section for section in gpu_check.sections(tmp_path)}
    installable = {name.partition(":")[2] for name in listed if name.startswith("install:")}
    assert {"vllm", "sglang", "lmdeploy", "transformers", "ctranslate2", "llamacpp", "exllama"} <= installable
    assert listed["conformance:vllm"].command[-1] == "vllm and not vllm_gptq and not vllm_offline"
    assert listed["two_gpus"].skipped is None
    assert "backend.gpus=2" in listed["two_gpus"].command
    assert "model=random-llama-2-7b" in listed["bound:vllm"].command
    assert gpu_check.environ(None)["SWEEP_TEST_ON"] == "cuda"


@pytest.mark.parametrize("gpu", [False, True])
def test_every_sweep_of_a_section_is_a_plan(gpu, tmp_path, request, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if gpu:
        request.getfixturevalue("two_l4s")
    for section in gpu_check.sections(tmp_path):
        if section.out and not section.skipped:
            assert main([*section.command[3:], "dry_run=true"]) == 0
            assert "unavailable" not in capsys.readouterr().out


def test_results_are_kept_and_reported(tmp_path, monkeypatch, capsys):
    made = [
        gpu_check.Section("good", (sys.executable, "-c", "print('12 passed')")),
        gpu_check.Section("bad", (sys.executable, "-c", "raise SystemExit('a | b')")),
        gpu_check.Section("long", (sys.executable, "-c", "import time; time.sleep(60)")),
        gpu_check.Section("none", (), skipped="1 GPUs here"),
    ]
    assert gpu_check.run(made.pop(2), tmp_path, None, limit=0.5).outcome == "timeout"
    monkeypatch.setattr(gpu_check, "sections", lambda folder: made)
    monkeypatch.setattr(gpu_check, "engines", lambda: {"vllm": "environment vllm: vllm 0.32.0"})
    assert gpu_check.main(["--folder", str(tmp_path)]) == 1
    text = (tmp_path / "report.md").read_text()
    for line in (
        "| good | ok | 0 s | 12 passed |",
        "| bad | failed | 0 s | a / b |",
        "| none | skipped | 0 s | 1 GPUs",
    ):
        assert line in text
    assert "- vllm: environment vllm: vllm 0.32.0" in text
    capsys.readouterr()
    gpu_check.main(["--folder", str(tmp_path)])
    assert capsys.readouterr().out == "", "all have a result"
    gpu_check.main(["--folder", str(tmp_path), "good"])
    assert capsys.readouterr().out.startswith("good: ok")


def test_without_network_only_the_folder_of_wheels_is_used(tmp_path):
    section = gpu_check.Section("x", (sys.executable, "-m", "pip", "config", "list"))
    assert gpu_check.run(section, tmp_path, tmp_path / "wheels").outcome == "ok"
    text = (tmp_path / "x.log").read_text()
    assert f":env:.find-links='{tmp_path / 'wheels'}'" in text
    assert ":env:.no-index='1'" in text
    assert json.loads(json.dumps(gpu_check.environ(tmp_path)))["HF_HUB_OFFLINE"] == "1"
