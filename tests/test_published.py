"""The studies' tables and findings: against themselves, and against runs whose answer is known."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from analysis.report.html import html
from analysis.results import RunResults
from analysis.studies.findings import beside, judge_finding, judge_run
from analysis.studies.printed import own_table
from analysis.studies.tables import STUDY_FILES, all_studies, study_of
from sweep.__main__ import main
from sweep.config import CONF
from tests.results import run_of, trial

CONTRADICTED = {
    "ttft-27-times",
    "gain-2.3-times",
    "almost-linear",
    "vllm-fastest-at-batch-1",
    "peak-above-mean",
    "filled-cache-shorter-gaps",
}


def run(folder: Path, name: str, rows: list[dict[str, Any]]) -> RunResults:
    return RunResults(run_of(folder, rows, name=name))


def throughput_rows(vllm: float = 1143.0, replicates: int = 2) -> list[dict[str, Any]]:
    """A run of the first study, in which each engine repeats its figures within 0.1 %."""
    rows = []
    for backend, workload, batch, speed, ttft in (
        ("transformers", "qa", 128, 360.0, 0.92),
        ("tgi", "qa", 128, 575.0, 0.153),
        ("vllm", "qa", 128, 537.0, 0.593),
        ("transformers", "reasoning", 64, 487.0, 1.1),
        ("tgi", "reasoning", 128, 194.0, 0.167),
        ("vllm", "reasoning", 128, vllm, 0.6),
    ):
        for replicate in range(replicates):
            figures = {"ttft_mean": ttft, "launch": f"{backend}-{replicate}"}
            row = trial(backend, batch, replicate, speed * (1 + 0.001 * replicate), workload=workload, **figures)
            rows.append({**row, "trial_id": f"{backend}-{workload}-{batch}-{replicate}"})
    lost = {**trial("transformers", 32, 0, None, workload="summarization"), "outcome": "oom_run"}
    fitted = trial("transformers", 16, 0, 100.0, workload="summarization")
    return [*rows, lost, {**fitted, "trial_id": "fitted"}]


def test_every_file_names_its_source_and_experiments_that_exist() -> None:
    experiments = {path.stem for path in (CONF / "experiment").glob("*.yaml")}
    for study in all_studies():
        assert study.source
        assert study.conditions
        named = {*study.tables, *(name for finding in study.findings for name in finding.experiments)}
        assert named <= experiments
        assert len({finding.name for finding in study.findings}) == len(study.findings)
    names = {finding.name for study in all_studies() for finding in study.findings}
    assert names >= CONTRADICTED


def test_the_ladders_table_has_the_steps_of_the_experiment() -> None:
    ladder = yaml.safe_load((CONF / "experiment" / "serving_ladder.yaml").read_text())["ladder"]
    study = study_of("serving_ladder")
    assert study is not None
    published = [row["ladder"] for row in study.tables["serving_ladder"].rows]
    assert published == [step["step"] for step in ladder if "gateway" not in step["set"]]


def test_what_a_studys_own_table_contradicts_is_said() -> None:
    contradicted = {
        finding.name
        for study in all_studies()
        for finding in study.findings
        if own_table(study, finding).startswith("contradicts")
    }
    assert contradicted == CONTRADICTED
    assert all(finding.note for study in all_studies() for finding in study.findings if finding.name in CONTRADICTED)


def test_published_rows_agree_with_themselves() -> None:
    """Figures that follow from others in the same table do so within its rounding: no slip of the pen in copying."""
    tables = {name: table.frame for study in all_studies() for name, table in study.tables.items()}
    cost = tables["throughput_bound"].dropna()
    assert ((2.93 / 3600 / cost["output_throughput"] * 1e6) / cost["cost_per_million_tokens"]).between(0.99, 1.01).all()
    ladder = tables["serving_ladder"]
    assert (183_806 / ladder["duration"] / ladder["output_throughput"]).between(0.999, 1.001).all()
    assert (500 / ladder["duration"] / ladder["request_throughput"]).between(0.998, 1.002).all()
    completions = tables["completion_batches"].dropna(subset="tokens")
    speed = completions["tokens"] / completions["batch_latency_mean"]
    assert (speed / completions["output_throughput"]).between(0.98, 1.02).all()


def test_a_run_that_shows_the_same_reproduces_the_findings(tmp_path: Path) -> None:
    judged = {each.finding.name: each for each in judge_run(run(tmp_path, "throughput_bound", throughput_rows()))}
    assert judged["best-throughput-vllm"].judgement == "reproduced"
    assert judged["best-ttft-tgi"].judgement == "reproduced"
    assert judged["tgi-below-baseline-on-reasoning"].judgement == "reproduced"
    assert judged["gain-best-against-best"].judgement == "reproduced"
    assert judged["baseline-runs-out-at-16-summarization"].judgement == "reproduced"
    assert judged["baseline-runs-out-at-32-sentiment"].judgement == "not testable here"
    assert judged["ttft-27-times"].judgement == "contradicted by its own table"
    assert "27x is in no table" in judged["ttft-27-times"].figures
    assert "this run: 6.01x" in judged["ttft-27-times"].figures
    assert "compares vLLM's batch 128 with the baseline's 64" in judged["gain-2.3-times"].figures


def test_a_run_that_shows_otherwise_does_not(tmp_path: Path) -> None:
    judged = {each.finding.name: each for each in judge_run(run(tmp_path, "throughput_bound", throughput_rows(300.0)))}
    assert judged["best-throughput-vllm"].judgement == "not reproduced"
    assert judged["gain-best-against-best"].judgement == "not reproduced"


@pytest.mark.parametrize("experiment", sorted({name for study in all_studies() for name in study.tables}))
def test_a_run_without_a_result_tests_nothing(experiment: str, tmp_path: Path) -> None:
    failed = run(tmp_path, experiment, [trial("vllm", 1, 0, None), trial("transformers", 32, 0, None)])
    judgements = {each.judgement for each in judge_run(failed)}
    assert judgements <= {"not testable here", "contradicted by its own table"}
    assert "Published findings" in html(failed, [])


def test_what_cannot_be_told_apart_is_not_reproduced(tmp_path: Path) -> None:
    rows = [
        trial(backend, 1, replicate, speed * factor, launch=f"{backend}-{replicate}")
        for backend, speed in (("vllm", 105.0), ("vllm_gptq", 100.0), ("exllama", 104.0), ("ctranslate2", 100.0))
        for replicate, factor in enumerate((0.7, 1.0, 1.3))
    ]
    judged = {each.finding.name: each for each in judge_run(run(tmp_path, "completion_batches", rows))}
    assert judged["exllama-best-library"].judgement == "not reproduced"
    assert " to " in judged["exllama-best-library"].figures  # with its interval


@pytest.mark.parametrize("experiment", sorted({name for study in all_studies() for name in study.tables}))
def test_a_study_reproduces_its_own_table(experiment: str) -> None:
    """Its table as if it were a run: nothing is `not reproduced`."""
    study = study_of(experiment)
    assert study is not None
    points: pd.DataFrame = study.tables[experiment].frame
    judged = [
        judge_finding(study, finding, experiment, points)
        for finding in study.findings
        if experiment in finding.experiments
    ]
    assert judged
    assert "not reproduced" not in {each.judgement for each in judged}


def test_the_studys_table_stands_beside_ours_as_ratios(tmp_path: Path) -> None:
    rows = {(each.point, each.column): each for each in beside(run(tmp_path, "throughput_bound", throughput_rows()))}
    row = rows["vllm, qa, 128", "output_throughput"]
    assert (row.published, row.published_ratio) == (537.6, pytest.approx(537.6 / 360.51))
    assert row.measured == pytest.approx(537.0, rel=2e-3)
    assert row.measured_ratio == pytest.approx(537 / 360, rel=2e-3)
    assert rows["vllm, reasoning, 128", "output_throughput"].measured_ratio is None  # the baseline has no such batch


@pytest.mark.slow
def test_a_run_is_found_by_its_name_under_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "results" / "night", "throughput_bound", throughput_rows())
    monkeypatch.chdir(tmp_path)
    for command in ("studies", "report", "status"):
        assert main([command, "night"]) == 0


@pytest.mark.slow
def test_the_command_and_the_report_print_the_judgements(tmp_path: Path, capsys: Any) -> None:
    results = run(tmp_path, "throughput_bound", throughput_rows())
    assert main(["studies", str(tmp_path)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "contradicted by its own table" in text
    assert "537.6" in text
    assert main(["studies", str(tmp_path), "--markdown"]) == 0
    assert "| The highest throughput is vLLM's, on reasoning at batch 128. | reproduced |" in capsys.readouterr().out
    page = html(results, [])
    assert "Published findings" in page
    assert "contradicted by its own table" in page
    assert "Published findings" not in html(run(tmp_path / "other", "my_study", throughput_rows()), [])
    assert main(["studies"]) == 0
    assert "ttft-27-times" in capsys.readouterr().out
    assert main(["studies", str(tmp_path / "none")]) == 2


def test_a_run_may_be_given_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    run(tmp_path / "results" / "night", "throughput_bound", throughput_rows())
    monkeypatch.chdir(tmp_path)
    assert main(["studies", "night"]) == 0
    assert main(["compare", "night", "night"]) == 0
    capsys.readouterr()
    assert main(["studies", "nights"]) == 2
    assert "results/nights: no run here" in capsys.readouterr().err


def test_data_is_in_the_wheel() -> None:
    assert {path.stem for path in STUDY_FILES.glob("*.yaml")} == {study.name for study in all_studies()}
    assert json.dumps([study.model_dump(mode="json") for study in all_studies()])
