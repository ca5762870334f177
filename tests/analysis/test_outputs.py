"""What summary, compare, explain, studies and report print, in every format, beside kept files (tests/analysis/golden).

`SWEEP_GOLDEN=write python -m pytest tests/analysis/test_outputs.py` writes the files anew; read their diff.
"""

import os
from pathlib import Path

import pytest

from sweep.__main__ import main
from tests.support.results import run_of, trial
from tests.support.synthetic_run import make_completion_batches, make_run

GOLDEN = Path(__file__).parent / "golden"
COMPARED = ("night@backend=transformers", "night@backend=vllm")
COMMANDS = {
    "summary.text": ("summary", "night"),
    "summary.slo.text": ("summary", "night", "--slo", "ttft=200ms"),
    **{f"summary.{name}": ("summary", "night", "--format", name) for name in ("markdown", "csv", "json")},
    "compare.text": ("compare", *COMPARED, "--fail-if", "output_throughput < -3%"),
    **{f"compare.{name}": ("compare", *COMPARED, "--format", name) for name in ("markdown", "csv", "json")},
    "explain.text": ("explain", "ladder"),
    **{f"explain.{name}": ("explain", "ladder", "--format", name) for name in ("markdown", "csv", "json")},
    "studies.text": ("studies", "completion_batches"),
    "studies.markdown": ("studies", "completion_batches", "--format", "markdown"),
    "studies.csv": ("studies", "completion_batches", "--format", "csv"),
    "studies.catalogue.text": ("studies",),
    "report.text": ("report", "night"),
    "report.vllm.text": ("report", "night", "--metrics", "vllm"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("outputs")
    make_run(results / "night", replicates=3, batches=(1, 8), workloads=("qa",))
    make_completion_batches(results / "completion_batches")
    steps = [
        trial("vllm", 8, launch, speed + launch, launch=f"{step}{launch}", ladder=step, ladder_parent=parent)
        for step, parent, speed in (("plain", None, 100), ("fp8", "plain", 150), ("fp8, suffix", "fp8", 180))
        for launch in range(3)
    ]
    run_of(results / "ladder", steps)
    return results


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_prints_its_golden_file(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "100")
    assert main([*COMMANDS[name]]) in (0, 1)
    printed = capsys.readouterr().out
    golden = GOLDEN / name
    if os.environ.get("SWEEP_GOLDEN") == "write":
        golden.write_text(printed, encoding="utf-8")
    assert printed == golden.read_text(encoding="utf-8")
