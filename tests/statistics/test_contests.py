"""One ratio of two points has one interval and one verdict, wherever it is looked up."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from analysis.compare import comparisons, side
from analysis.explain.decomposition import explanations
from analysis.quantities import labelled_column
from analysis.report.page_data import PER_GPU, page_data
from analysis.results import RunResults
from analysis.studies.smaller_form import smaller_points
from sweep.__main__ import main
from tests.support.results import printed, run_of, trial

SPEEDS = {"vllm": 120.0, "tgi": 100.0, "llamacpp": 80.0}


def three_engines(folder: Path) -> RunResults:
    """Three engines with four launches each, one task and load; a study's experiment, whose baseline is tgi."""
    draws = np.random.default_rng(1)
    rows = [
        trial(
            name,
            8,
            replicate,
            speed * float(np.exp(draws.normal(0, 0.01))),
            launch=f"{name}-{replicate}",
            config=json.dumps({"backend": {"name": name}, "model": {"name": "m"}, "load": {"batch_size": 8}}),
        )
        for replicate in range(4)
        for name, speed in SPEEDS.items()
    ]
    return RunResults(run_of(folder, rows, name="throughput_bound", baseline={"backend": "tgi"}))


def test_one_ratio_has_one_interval_in_terminal_page_compare_summary_studies_and_python(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, run = three_engines(tmp_path), str(tmp_path)
    quantity = labelled_column("output_throughput")
    assert quantity is not None
    names = list(results.points["backend"])
    pair = names.index("vllm"), names.index("tgi")
    expected = results.contests.ratios(quantity, [pair])[:, 0]
    assert expected[1] > 1, "the test is of a ratio whose verdict is one"

    point = results.points.iloc[pair[0]]
    ends = [float(point[f"output_throughput_vs_baseline{end}"]) for end in ("", "_ci_low", "_ci_high")]
    (of_study,) = [each for each in smaller_points(results) if each.point.startswith("vllm")]
    page = json.loads(json.dumps(page_data([results])))
    (tested,) = [
        each[2:]
        for each in next(each for each in page["quantities"] if each["key"] == PER_GPU)["tested"]
        if tuple(each[:2]) == pair
    ]
    assert main(["compare", f"{run}@backend=tgi", f"{run}@backend=vllm", "--format", "json"]) == 0
    compared = json.loads(capsys.readouterr().out)["comparisons"]
    (of_compare,) = [each for each in compared if each["column"] == "output_throughput"]
    assert main(["summary", run, "--format", "json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)["answers"]
    of_answer = next(each for each in answer["configurations"] if each["configuration"] == "tgi")
    lead = re.search(r"([\d.]+)× \(([\d.]+) to ([\d.]+)\) ahead of tgi", " ".join(printed(results.run, 120).split()))
    assert lead
    for place, found in {
        "summary.csv and Python": ends,
        "studies": [of_study.ratio, of_study.low, of_study.high],
        "page": tested[:3],
        "compare": [of_compare[name] for name in ("ratio", "ci_low", "ci_high")],
        "summary": [of_answer[name] for name in ("best_over_it", "best_over_it_ci_low", "best_over_it_ci_high")],
        "terminal": [float(text) for text in lead.groups()],
    }.items():
        digits = 5e-3 if place == "terminal" else 1e-4
        assert found == pytest.approx(list(expected), rel=digits), place
    verdicts = (tested[3], of_compare["verdict"], of_answer["verdict"])
    assert verdicts == ("ahead", "faster", "behind")


def test_a_severe_warning_takes_the_crown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The fastest of three gives other answers than the model: it is listed apart, and the next one wins."""
    rows = [
        trial(name, batch, launch, speed * (1 + 0.01 * launch), launch=f"{name}{launch}", agreement=agreement)
        for name, speed, agreement in (("gptq", 200.0, 0.42), ("vllm", 120.0, 1.0), ("tgi", 100.0, 1.0))
        for batch in (1, 8)
        for launch in range(3)
    ]
    run = run_of(tmp_path, rows)
    points = RunResults(run).points.set_index(["backend", "batch_size"])
    assert points.loc[("gptq", 8), "output_throughput_standing"] is None
    assert points.loc[("vllm", 8), "output_throughput_standing"] == "best"
    assert main(["summary", str(tmp_path), "--all"]) == 0
    lead, sentence, *_ = capsys.readouterr().out.splitlines()
    assert lead == "vllm is the fastest at 2 of 2 tasks; not ranked: gptq (low-agreement)"
    assert "is the fastest; 1.20×" in sentence
    assert sentence.endswith("not ranked: gptq (low-agreement)")
    assert lead in " ".join(printed(run, 200).split())
    assert main(["summary", str(tmp_path), "--format", "json"]) == 0
    (*ranked, apart), _ = (each["configurations"] for each in json.loads(capsys.readouterr().out)["answers"])
    assert [each["configuration"] for each in ranked] == ["vllm", "tgi"]
    assert (apart["configuration"], apart["verdict"], apart["warnings"]) == ("gptq", "not ranked", "low-agreement")
    assert main(["compare", f"{tmp_path}@backend=vllm", f"{tmp_path}@backend=gptq", "--format", "json"]) == 0
    compared = json.loads(capsys.readouterr().out)["comparisons"]
    verdicts = {(each["verdict"], each["reason"], each["warnings"]) for each in compared}
    assert verdicts == {("not comparable", "low-agreement", "low-agreement")}
    tested = next(each for each in page_data([RunResults(run)])["quantities"] if each["key"] == PER_GPU)
    assert {points.index[pair[0]][0] for pair in tested["tested"]} == {"vllm"}


def test_a_warning_stands_beside_its_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        trial(name, 8, launch, speed, launch=f"{name}{launch}", num_failed=failed, ttft_p50=1.0)
        for name, speed, failed in (("vllm", 120.0, 1), ("tgi", 100.0, 0))
        for launch in range(3)
    ]
    run_of(tmp_path, rows)
    assert main(["compare", f"{tmp_path}@backend=tgi", f"{tmp_path}@backend=vllm"]) == 0
    throughput, ttft, *_ = capsys.readouterr().out.splitlines()
    assert "failed-requests" not in throughput, "it is about latencies"
    assert ttft.endswith("; warnings: failed-requests")
    assert main(["summary", str(tmp_path), "--slo", "ttft=2s", "--all"]) == 0
    assert "; warnings: failed-requests" in capsys.readouterr().out.splitlines()[0]


def test_the_engines_of_a_pair_that_is_no_winners_have_the_interval_of_all_pairs(tmp_path: Path) -> None:
    """Tukey's, also where `sweep compare` names these two alone."""
    results = three_engines(tmp_path)
    quantity = labelled_column("output_throughput")
    assert quantity is not None
    names = list(results.points["backend"])
    whole, places = results.contests.shared(quantity, range(3))
    tgi, llamacpp = (int(places[names.index(name)]) for name in ("tgi", "llamacpp"))
    assert whole.won
    difference, half = whole.model.contrasts(whole.model.pairs([tgi], [llamacpp]), whole.model.tukey(3))
    sides = [side(f"{tmp_path}@backend={name}") for name in ("llamacpp", "tgi")]
    (compared,) = comparisons(sides, ["output_throughput"])
    assert [compared.low, compared.high] == pytest.approx(np.exp([difference - half, difference + half])[:, 0])


def test_a_step_of_a_ladder_has_the_interval_of_its_ratio(tmp_path: Path) -> None:
    steps = [("one", None, 100.0), ("two", "one", 150.0), ("three", "two", 160.0)]
    draws = np.random.default_rng(2)
    rows = [
        trial("vllm", 8, index, speed * float(np.exp(draws.normal(0, 0.02))), launch=f"{step}{index}")
        | {"ladder": step, "ladder_parent": parent}
        for step, parent, speed in steps
        for index in range(3)
    ]
    results = RunResults(run_of(tmp_path, rows))
    points = results.points.set_index("ladder")
    (explained,) = explanations(results.run, results.layout, ["output_throughput"])
    for part in explained.parts:
        ends = [points.loc[part.name, f"output_throughput_vs_parent{end}"] for end in ("", "_ci_low", "_ci_high")]
        assert list(part.gain) == pytest.approx(ends), part.name
