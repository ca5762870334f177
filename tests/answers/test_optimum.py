"""The sentence of a run without rivals, and the title of its figure, beside the study's published points."""

from pathlib import Path

import pytest

from analysis.answers.deciding import answers
from analysis.answers.optimum import leading_sentence
from analysis.plotting.drawing import against_load
from analysis.results import RunResults
from tests.support.results import run_of, trial


@pytest.mark.parametrize("replaced", [False, True])
def test_one_engine_over_lengths_has_an_optimum(tmp_path: Path, replaced: bool) -> None:
    rows = [
        trial("vllm_offline", 64, index, speed * (1 + index / 100), launch=f"{length}-{index}")
        | {"workload.input_tokens": length, "trial_id": f"{length}-{index}"}
        for length, speed in ((512, 900), (32, 150), (128, 1400))
        for index in range(3)
    ]
    run = run_of(tmp_path, rows, name="sequence_length", replaced=["model: another"] if replaced else [])
    results = RunResults(run)
    assert list(results.points["workload.input_tokens"]) == [32, 128, 512]
    sentence = leading_sentence(results, answers([results]))
    assert sentence.startswith("vllm_offline is fastest at input tokens 128: 1,414 tokens/s, 1.56× (")
    assert sentence.endswith(") that at input tokens 512")
    doubtful = [row | {"agreement": 0.4 if row["workload.input_tokens"] == 128 else 1.0} for row in rows]
    other = RunResults(run_of(tmp_path / "other", doubtful))
    assert leading_sentence(other, answers([other])).startswith("vllm_offline is fastest at input tokens 512: ")
    figure = against_load(run, results.layout, "output_throughput")
    assert figure is not None
    assert figure.get_label() == "Throughput is highest at input tokens 128: 1,414 tokens/s"
    hollow = [list(line.get_ydata()) for line in figure.axes[0].lines if line.get_marker() == "D"]
    assert hollow == ([] if replaced else [[146, 1413, 895]])
