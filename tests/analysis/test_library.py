"""docs/library.md: each of its samples runs, one after the other, on runs of the names it uses."""

import re
from pathlib import Path

import pytest

from analysis.statistics.intervals import Estimate
from sweep.base.config import ROOT, ConfigError
from tests.explain.test_explain import ladder
from tests.support.synthetic_run import make_run

SAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "library.md").read_text(), re.DOTALL)


def test_every_sample_of_the_document_runs(tmp_path: Path, monkeypatch, capsys) -> None:
    make_run(tmp_path / "results" / "night", batches=(1, 4), workloads=("qa",))
    ladder(tmp_path / "results" / "ladder")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for sample in SAMPLES:
        exec(sample, names)
    assert names["throughput"].index.names == ["task", "configuration", "load"]
    assert (names["throughput"]["low"] < names["throughput"]["value"]).any()
    assert "<table" in names["r"]._repr_html_()
    assert len(names["slowest"]) == 5
    assert names["figure"].axes[0].get_xlabel().startswith("Batch size")
    with pytest.raises(ConfigError, match="by=backend: unknown; .*batch_size"):
        names["r"].plot(by="backend")
    assert len(names["trials"])
    assert len(names["requests"])
    assert len(names["telemetry"])
    assert isinstance(names["best"].figure, Estimate)
    printed = capsys.readouterr().out
    assert "vllm is the" in printed
    assert "ladder" in printed, "the last sample explains one"
