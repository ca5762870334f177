"""The studies' tables and findings: against themselves, and against runs whose answer is known."""

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from analysis.quantities import labelled_column
from analysis.report.html import html
from analysis.results import RunResults
from analysis.studies.answer import choice_text
from analysis.studies.checks import (
    BestCheck,
    ConstantCheck,
    GainsCheck,
    RangeCheck,
    RatioCheck,
    RisingCheck,
    exllama_memory_is_linear,
)
from analysis.studies.findings import KEY_COLUMNS, Judged, beside, judge_finding, judge_run
from analysis.studies.fitting import FitsCheck
from analysis.studies.printed import own_table, study_differences
from analysis.studies.ruling import Ruling
from analysis.studies.tables import STUDY_FILES, Study, all_studies, study_of
from sweep.__main__ import main
from sweep.base.config import CONF
from sweep.cli.run import STUDIED
from tests.support.results import run_of, trial

CONTRADICTED = {
    "ttft-27-times",
    "gain-2.3-times",
    "almost-linear",
    "peak-above-mean",
    "filled-cache-shorter-gaps",
    "fewer-accepted-tokens",
    "vllm-memory-74-gb",
}
EXPERIMENTS = sorted({name for study in all_studies() for name in study.tables})


def run(folder: Path, name: str, rows: list[dict[str, Any]]) -> RunResults:
    return RunResults(run_of(folder, rows, name=name))


def throughput_rows(vllm: float = 1143.0, replicates: int = 2, hardware: str = "l4") -> list[dict[str, Any]]:
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
    for replicate in range(replicates):
        fitted = trial("transformers", 16, replicate, 100.0, workload="summarization", launch=f"fitted-{replicate}")
        rows.append({**fitted, "trial_id": f"fitted-{replicate}"})
    return [{**row, "settings": on(hardware)} for row in [*rows, lost]]


def on(hardware: str) -> str:
    return json.dumps({"hardware": {"name": hardware}})


def judgements(results: RunResults) -> dict[str, Judged]:
    return {each.finding.name: each for each in judge_run(results)}


def study_for(experiment: str) -> Study:
    study = study_of(experiment)
    assert study is not None
    return study


def test_every_file_names_its_source_and_experiments_that_exist() -> None:
    experiments = {path.stem for path in (CONF / "experiment").glob("*.yaml")}
    for study in all_studies():
        assert study.source
        assert study.conditions
        assert {*study.experiments} <= experiments
        assert not {*study.without_figures} & {*study.tables}
        assert len({finding.name for finding in study.findings}) == len(study.findings)
    assert {name for study in all_studies() for finding in study.findings for name in finding.experiments} == STUDIED
    names = {finding.name for study in all_studies() for finding in study.findings}
    assert names >= CONTRADICTED


def test_the_ladders_table_has_the_steps_of_the_experiment() -> None:
    ladder = yaml.safe_load((CONF / "experiment" / "serving_ladder.yaml").read_text())["ladder"]
    published = [row["ladder"] for row in study_for("serving_ladder").tables["serving_ladder"].rows]
    ours = [step["step"] for step in ladder if "gateway" in str(step["set"]) or "weights" in step["step"]]
    assert published == [step["step"] for step in ladder if step["step"] not in ours]


def test_every_published_figure_is_a_column_that_runs_have() -> None:
    for study in all_studies():
        for table in study.tables.values():
            figures = {name for row in table.rows for name in row if name not in (*KEY_COLUMNS, "outcomes")}
            assert {name for name in figures if labelled_column(name) is None} == set()


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
    total = (ladder["input_tokens"] + ladder["output_tokens"]) / ladder["duration"] / ladder["total_throughput"]
    assert total.between(0.999, 1.001).all()
    for latency in ("ttft", "tpot", "itl"):
        assert (ladder[f"{latency}_p50"] < ladder[f"{latency}_p99"]).all()
        assert (ladder[f"{latency}_mean"] < ladder[f"{latency}_p99"]).all()
    assert list(ladder[["ttft_p50", "tpot_p99", "itl_p50"]].iloc[3]) == [0.44049, 0.14159, 0.09873]
    completions = tables["completion_batches"].dropna(subset="output_length_mean")
    speed = completions["output_length_mean"] / completions["batch_latency_mean"]
    assert (speed / completions["output_throughput"]).between(0.98, 1.02).all()


def test_a_run_that_shows_the_same_reproduces_the_findings(tmp_path: Path) -> None:
    judged = judgements(run(tmp_path, "throughput_bound", throughput_rows()))
    assert judged["best-throughput-vllm"].judgement == "reproduced"
    assert judged["best-ttft-tgi"].judgement == "reproduced"
    assert judged["tgi-below-baseline-on-reasoning"].judgement == "reproduced"
    assert judged["gain-best-against-best"].judgement == "reproduced"
    assert judged["baseline-runs-out-at-16-summarization"].judgement == "reproduced"
    assert judged["baseline-runs-out-at-32-sentiment"].judgement == "not testable here"
    assert judged["ttft-27-times"].judgement == "contradicted by its own table"
    assert "No table of the study has 27x" in judged["ttft-27-times"].figures
    assert "compares vLLM's batch 128 with the baseline's 64" in judged["gain-2.3-times"].figures


def test_a_run_that_shows_otherwise_does_not(tmp_path: Path) -> None:
    judged = judgements(run(tmp_path, "throughput_bound", throughput_rows(300.0)))
    assert judged["best-throughput-vllm"].judgement == "not reproduced"
    assert judged["gain-best-against-best"].judgement == "not reproduced"


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_run_without_a_result_tests_nothing(experiment: str, tmp_path: Path) -> None:
    failed = run(tmp_path, experiment, [trial("vllm", 1, 0, None), trial("transformers", 32, 0, None)])
    judgements = {each.judgement for each in judge_run(failed)}
    assert judgements <= {"not testable here", "contradicted by its own table"}
    assert "Published findings" in html(failed, [])


FORMATS = {  # of the published study
    "ctranslate2": {"backend.quantization": "int8"},
    "llamacpp": {"backend.quantization": "Q4_0", "backend.slots": 1},
}


def test_what_the_intervals_leave_open_is_not_decided(tmp_path: Path) -> None:
    rows = [
        trial(backend, 1, replicate, speed * factor, launch=f"{backend}-{replicate}", **FORMATS.get(backend, {}))
        for backend, speed, factors in (
            ("exllama", 104.0, (0.7, 1.0, 1.3)),
            ("ctranslate2", 100.0, (1.0, 1.3, 0.7)),
            ("llamacpp", 90.0, (1.3, 0.7, 1.0)),
        )
        for replicate, factor in enumerate(factors)
    ]
    judged = judgements(run(tmp_path, "completion_batches", rows))
    assert judged["exllama-best-library"].judgement == "not decided"
    assert " to " in judged["exllama-best-library"].figures  # with its interval


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_study_reproduces_its_own_table(experiment: str) -> None:
    """Its table as if it were a run: nothing is `not reproduced`."""
    study = study_for(experiment)
    points = study.tables[experiment].exact
    findings = [finding for finding in study.findings if experiment in finding.experiments]
    judged = [judge_finding(study, finding, experiment, points) for finding in findings]
    assert judged
    assert "not reproduced" not in {each.judgement for each in judged}


def as_run(folder: Path, experiment: str, factors: tuple[float, ...], launches: int) -> RunResults:
    """A study's table as a run of it: each figure times each factor, on so many launches in turn."""
    rows = []
    for number, row in enumerate(study_for(experiment).tables[experiment].rows):
        turned = factors[number % len(factors) :] + factors[: number % len(factors)]  # no two rows have them in common
        for replicate, factor in enumerate(each ** (1 + number / 10) for each in turned):
            asked = {"backend": "vllm", "batch_size": 1, **{key: row[key] for key in KEY_COLUMNS if key in row}}
            figures = {key: value for key, value in row.items() if key not in (*KEY_COLUMNS, "outcomes")}
            scaled = {key: type(value)(value * factor) for key, value in figures.items()}
            like = trial(asked["backend"], asked["batch_size"], replicate, scaled.get("output_throughput"))
            names = {"trial_id": f"{number}-{replicate}", "launch": f"{number}-{replicate % launches}"}
            ended = {"outcome": row["outcomes"], "reason": "no memory left"} if "outcomes" in row else {}
            rows.append({**like, **asked, **scaled, **names, **ended, "load.batch_size": asked["batch_size"]})
    return run(folder, experiment, rows)


def judgements_of_figures(results: RunResults) -> set[str]:
    """How the findings that go by figures are judged; what fits in memory goes by outcomes."""
    return {each.judgement for each in judge_run(results) if not isinstance(each.finding.check, FitsCheck)}


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_findings_need_intervals_and_hold_at_their_unfavourable_ends(experiment: str, tmp_path: Path) -> None:
    """The same figures: after one launch nothing is judged; close together all hold; far apart none is decided."""
    once = as_run(tmp_path / "once", experiment, (1.0,), 1)
    assert "reproduced" not in judgements_of_figures(once)
    assert "not reproduced" not in judgements_of_figures(once)
    assert any("one replicate, no interval" in each.figures for each in judge_run(once))
    near = as_run(tmp_path / "near", experiment, (0.9999, 1.0001, 1.0), 3)
    assert "not reproduced" not in judgements_of_figures(near)
    assert "reproduced" in judgements_of_figures(near)
    far = as_run(tmp_path / "far", experiment, (0.1, 10.0, 1.0), 3)
    assert not {"reproduced", "not reproduced"} & judgements_of_figures(far)
    assert "not decided" in judgements_of_figures(far)


def test_engines_of_one_launch_each_are_not_told_apart(tmp_path: Path) -> None:
    """Their figures differ by half and hardly vary within a launch; how much launches differ is not known."""
    once = judge_run(as_run(tmp_path / "once", "completion_batches", (0.9999, 1.0001, 1.0), 1))
    twice = judge_run(as_run(tmp_path / "twice", "completion_batches", (0.9999, 1.0001, 1.0), 2))
    for name in ("gptq-no-help-at-batch-1", "exllama-best-library", "8bit-slower-than-32bit"):
        (first,), (second,) = ([each for each in judged if each.finding.name == name] for judged in (once, twice))
        assert (first.judgement, second.judgement) == ("not testable here", "reproduced")
        assert "no interval of a new launch, e.g. since each has one launch" in first.figures


@pytest.mark.parametrize(("launches", "judgement"), [(("a", "a"), "reproduced"), (("a", "b"), "not testable here")])
def test_loads_of_one_launch_have_its_interval(launches: tuple[str, str], judgement: str, tmp_path: Path) -> None:
    """Over batch sizes an engine may keep its launch, or have another one for each."""
    rows = [
        trial("llamacpp", size, replicate, 10.0 + 0.001 * replicate, launch=launch, **FORMATS["llamacpp"])
        for size, launch in zip((1, 4, 64), (*launches, launches[0]), strict=True)
        for replicate in range(3)
    ]
    judged = judgements(run(tmp_path, "completion_batches", rows))
    assert judged["llamacpp-flat"].judgement == judgement
    assert ("of these launches" in judged["llamacpp-flat"].figures) == (judgement == "reproduced")


def test_a_range_says_that_its_interval_is_of_these_launches() -> None:
    share = RangeCheck(kind="range", column="share", where={}, at_least=0.1)
    once = pd.DataFrame({"share": [0.3], "share_ci_low": [0.2], "share_ci_high": [0.4], "launches": [frozenset({1})]})
    figures = "0.3 (0.2 to 0.4); of these launches (judged by: at least 0.1)"
    assert share.answer(once) == (Ruling.HOLDS, figures, True)


def test_the_ladders_table_stands_beside_a_run_of_all_workloads(tmp_path: Path) -> None:
    """Stories are another workload of the same steps: neither their rows nor their figures are the study's."""
    steps = study_for("serving_ladder").tables["serving_ladder"].rows
    rows = []
    for step in steps:
        for workload, factor in (("random_tokens", 1.0), ("natural_text", 0.5)):  # stories are twice as fast
            for replicate in range(2):
                figures = {key: step[key] * factor for key in ("ttft_mean", "itl_mean")}
                figures |= {"request_throughput": step["request_throughput"] / factor, "launch": f"{replicate}"}
                asked = {"workload": workload, "ladder": step["ladder"], "trial_id": f"{workload}{len(rows)}"}
                rows.append({**trial("vllm", 1, replicate, step["output_throughput"]), **figures, **asked})
    results = run(tmp_path, "serving_ladder", rows)
    stand = {(each.point, each.column): each for each in beside(results)}
    for step in steps:
        row = stand[f"{step['ladder']}, random_tokens", "request_throughput"]
        assert row.measured == pytest.approx(step["request_throughput"])
        assert row.measured_ratio == pytest.approx(row.published_ratio)
    judged = judgements(results)
    for name in ("step-3-shortest-gaps", "step-4-shortest-ttft", "step-7-fastest", "fp8-cache-faster"):
        assert "natural_text" not in judged[name].figures
        assert judged[name].judgement == "reproduced"


@pytest.mark.parametrize(("experiment", "title"), [("kv_cache", "Decomposing"), ("serving", "VLLM demo")])
def test_experiments_without_figures_name_their_study(experiment: str, title: str, tmp_path: Path, capsys: Any) -> None:
    run(tmp_path, experiment, [trial("vllm", 1, 0, 5.0)])
    assert main(["studies", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert text.startswith(title)
    assert f"{experiment} repeats the study's " in text
    assert main(["studies", str(tmp_path), "--format", "markdown"]) == 0
    assert f"{experiment} repeats the study's " in capsys.readouterr().out


def points(column: str, figures: dict[float, float | tuple[float, float, float]], **asked: Any) -> pd.DataFrame:
    """Points along the batch size, each with its figure, or with it and the ends of its interval."""
    rows = []
    for size, figure in figures.items():
        value, low, high = figure if isinstance(figure, tuple) else (figure, figure, figure)
        ends = {f"{column}_new_launch_low": low, f"{column}_new_launch_high": high}
        rows.append({"batch_size": size, column: value, **ends, **asked})
    return pd.DataFrame(rows)


def test_a_choice_with_several_values_lists_them() -> None:
    assert choice_text({"backend": ["tgi", "vllm"], "batch_size": 128}) == "backend=tgi or vllm, batch_size=128"


def test_a_step_that_may_fall_is_no_rise() -> None:
    rising = RisingCheck(kind="rising", column="speed", over="batch_size", ends=(1, 4), at_least=1)
    assert rising.answer(points("speed", {1: 1.0, 2: 2.0, 4: 3.0})).ruling is Ruling.HOLDS
    assert rising.answer(points("speed", {1: 1.0, 2: 2.0, 4: (3.0, 1.9, 4.0)})).ruling is Ruling.OPEN
    assert rising.answer(points("speed", {1: 1.0, 2: 4.0, 4: 3.0})).ruling is Ruling.FAILS
    assert rising.answer(points("speed", {1: 1.0, 2: 2.0})).ruling is Ruling.UNKNOWN  # not up to the end
    unknown = rising.answer(points("speed", {1: 1.0, 2: (2.0, float("nan"), float("nan")), 4: 3.0}))
    assert unknown.ruling is Ruling.UNKNOWN
    assert "no interval" in unknown.figures


def test_memory_that_grows_in_a_straight_line() -> None:
    for figures, ruling in (
        ({1: 11.0, 4: 14.0, 64: 74.0}, Ruling.HOLDS),
        ({1: 11.0, 32: 20.0, 64: 74.0}, Ruling.FAILS),  # 42 would be
        ({1: 11.0, 4: (14.0, 12.0, 16.0), 64: 74.0}, Ruling.OPEN),
        ({1: 11.0, 4: 11.0, 64: 11.0}, Ruling.FAILS),  # constant
        ({1: 11.0, 64: 74.0}, Ruling.UNKNOWN),
    ):
        memory = points("memory_mean_bytes", figures, backend="exllama")
        assert exllama_memory_is_linear(memory).ruling is ruling, figures


def test_who_gains_most_is_not_who_is_fastest() -> None:
    fields: dict[str, Any] = {"kind": "gains", "column": "speed", "over": "batch_size"}
    fields |= {"ends": (1, 8), "lines": ("backend",)}
    fast = points("speed", {1: 100.0, 8: 300.0}, backend="fast")
    steep = points("speed", {1: 10.0, 8: 60.0}, backend="steep")
    short = points("speed", {1: 1.0, 4: 90.0}, backend="short")  # without the larger size
    table = pd.concat([fast, steep, short], ignore_index=True)
    both = ({"backend": "fast"}, {"backend": "steep"})
    assert GainsCheck(**fields, expected={"backend": "steep"}, among=both).answer(table).ruling is Ruling.HOLDS
    assert GainsCheck(**fields, expected={"backend": "fast"}, among=both).answer(table).ruling is Ruling.FAILS
    every = (*both, {"backend": "short"})
    assert GainsCheck(**fields, expected={"backend": "steep"}, among=every).answer(table).ruling is Ruling.UNKNOWN
    unsure = pd.concat([fast, points("speed", {1: 10.0, 8: (60.0, 20.0, 99.0)}, backend="steep")], ignore_index=True)
    assert GainsCheck(**fields, expected={"backend": "steep"}, among=both).answer(unsure).ruling is Ruling.OPEN


def test_ends_of_different_settings_are_no_gain() -> None:
    """A run with a further axis has several points at each end: the last of one setting over another's first."""
    ends: dict[str, Any] = {"column": "speed", "over": "batch_size"}
    both = ({"backend": "a"}, {"backend": "b"})
    gains = GainsCheck(kind="gains", ends=(1, 8), lines=("backend",), expected={"backend": "a"}, among=both, **ends)
    slow, fast = (points("speed", {1: 1.0 * factor, 8: 3.0 * factor}, backend="a", dtype=factor) for factor in (1, 9))
    other = points("speed", {1: 10.0, 8: 40.0}, backend="b")
    mixed = pd.concat([slow.iloc[:1], fast, slow.iloc[1:], other], ignore_index=True)
    assert gains.answer(pd.concat([slow, other], ignore_index=True)).ruling is Ruling.FAILS
    assert gains.answer(mixed) == (Ruling.UNKNOWN, "needs a single point of each backend at a batch_size", False)
    assert RisingCheck(kind="rising", ends=(1, 8), at_least=2, **ends).answer(mixed).ruling is Ruling.UNKNOWN
    memory = points("memory_mean_bytes", {1: 11.0, 4: 14.0, 64: 74.0}, backend="exllama")
    assert exllama_memory_is_linear(pd.concat([memory, memory], ignore_index=True)).ruling is Ruling.UNKNOWN


def test_rivals_of_one_name_all_count() -> None:
    """Two points that differ in a setting without a place in their name: the slower one does not hide the faster."""
    both = ({"backend": "a"}, {"backend": "b"})
    best = BestCheck(kind="best", column="speed", better="higher", expected={"backend": "a"}, among=both)
    rivals = pd.concat([points("speed", {1: speed}, backend="b", other=speed) for speed in (9.0, 2.0)])
    table = pd.concat([points("speed", {1: 5.0}, backend="a"), rivals], ignore_index=True)
    assert best.answer(table).ruling is Ruling.FAILS


def test_a_peak_is_above_every_other_value_for_sure() -> None:
    among = ({}, {"batch_size": 1}, {"batch_size": 8})
    peak = BestCheck(kind="best", column="speed", better="higher", expected={"batch_size": 4}, among=among)
    assert peak.answer(points("speed", {1: 1.0, 4: 5.0, 8: 4.0})).ruling is Ruling.HOLDS
    assert peak.answer(points("speed", {1: 1.0, 4: 5.0, 8: (4.0, 3.0, 5.5)})).ruling is Ruling.OPEN
    assert peak.answer(points("speed", {1: (1.0, 0.5, 6.0), 4: 5.0, 8: 4.0})).ruling is Ruling.OPEN  # wide, though low
    assert peak.answer(points("speed", {1: 1.0, 2: 6.0, 4: 5.0, 8: 4.0})).ruling is Ruling.FAILS
    assert peak.answer(points("speed", {2: 1.0, 4: 5.0, 8: 4.0})).ruling is Ruling.UNKNOWN  # a size is missing


def test_a_range_holds_with_the_whole_interval() -> None:
    share = RangeCheck(kind="range", column="share", where={}, at_least=0.1)
    assert share.answer(points("share", {1: (0.3, 0.2, 0.4)})).ruling is Ruling.HOLDS
    assert share.answer(points("share", {1: (0.3, 0.0, 0.6)})).ruling is Ruling.OPEN
    assert share.answer(points("share", {1: (0.05, 0.0, 0.09)})).ruling is Ruling.FAILS


@pytest.mark.parametrize(
    ("outcomes", "ruling"),
    [
        ({16: "ok 3", 32: "ok 3", 64: "oom_run 3"}, Ruling.FAILS),
        ({16: "ok 3", 32: "oom_run 3", 64: "censored 3"}, Ruling.HOLDS),
        ({16: "ok 3", 64: "ok 3"}, Ruling.FAILS),
        ({16: "ok 3", 32: "oom_load 2, oom_run 1"}, Ruling.HOLDS),
        ({16: "ok 3", 32: "hung 3", 64: "oom_run 3"}, Ruling.UNKNOWN),  # memory is not what ended 32
        ({16: "ok 3", 32: "not run 3", 64: "oom_run 3"}, Ruling.UNKNOWN),
        ({16: "ok 3", 128: "oom_run 3"}, Ruling.UNKNOWN),  # nobody ran 32
        ({16: "ok 3", 24: "hung 3", 32: "oom_run 3"}, Ruling.UNKNOWN),
        ({8: "oom_run 3", 16: "ok 3"}, Ruling.UNKNOWN),  # a loss below the largest is no limit
        ({16: "ok 2, hung 1", 32: "oom_run 1, not run 2"}, Ruling.HOLDS),
        ({16: "ok 3", 32: "ok 1, oom_run 2"}, Ruling.UNKNOWN),
        ({16: "ok 3", 32: "hung 1, oom_run 2"}, Ruling.UNKNOWN),
        ({16: "ok 2, oom_run 1", 32: "oom_run 3"}, Ruling.UNKNOWN),
    ],
)
def test_the_largest_size_is_that_before_the_first_that_ran_out(outcomes: dict[int, str], ruling: Ruling) -> None:
    fits = FitsCheck(kind="fits", where={"backend": "x"}, over="batch_size", largest=16, lost=32)
    table = pd.DataFrame({"backend": "x", "batch_size": list(outcomes), "outcomes": list(outcomes.values())})
    assert fits.answer(table).ruling is ruling


def test_sixteen_and_128_say_nothing_of_64() -> None:
    cannot = FitsCheck(kind="fits", where={"backend": "x"}, over="batch_size", lost=64)
    table = pd.DataFrame({"backend": "x", "batch_size": [16, 128], "outcomes": ["ok 3", "oom_run 3"]})
    assert cannot.answer(table).ruling is Ruling.UNKNOWN
    assert cannot.answer(table.replace(128, 64)).ruling is Ruling.HOLDS
    every = pd.DataFrame({"backend": "x", "batch_size": [1, 32, 64], "outcomes": ["ok 3", "oom_run 3", "ok 3"]})
    assert cannot.answer(every).ruling is Ruling.FAILS


def test_what_fits_is_judged_on_the_studys_hardware_only(tmp_path: Path) -> None:
    elsewhere = judgements(run(tmp_path / "t4", "throughput_bound", throughput_rows(hardware="t4")))
    assert elsewhere["baseline-runs-out-at-16-summarization"].judgement == "not testable here"
    assert "needs hardware l4, but the run has t4" in elsewhere["baseline-runs-out-at-16-summarization"].figures
    there = judgements(run(tmp_path / "l4", "throughput_bound", throughput_rows()))
    assert there["baseline-runs-out-at-16-summarization"].judgement == "reproduced"
    assert "We derived the prompts' lengths" in there["baseline-runs-out-at-16-summarization"].figures


def memory_rows(label: str) -> list[dict[str, Any]]:
    """Eight methods at batch 1 of which vLLM takes the most memory, of this kind; the others' is of the GPU."""
    methods = [*study_for("completion_batches").tables["completion_batches"].rows[:8]]
    return [
        trial(method["backend"], 1, replicate, 10.0)
        | {key: value for key, value in method.items() if key.startswith("backend.")}
        | {"launch": f"{method['backend']}-{replicate}", "settings": on("a100-80g")}
        | {"memory_mean_bytes": method["memory_mean_bytes"] + replicate, "memory_label": kind}
        for method in methods
        for kind in (label if method["backend"].startswith("vllm") else "gpu",)
        for replicate in range(2)
    ]


def test_memory_of_different_kinds_is_not_ranked(tmp_path: Path) -> None:
    same = judgements(run(tmp_path / "same", "completion_batches", memory_rows("gpu")))
    different = judgements(run(tmp_path / "different", "completion_batches", memory_rows("reserved")))
    for name in ("vllm-takes-most-memory", "exllama-memory-low"):
        assert (same[name].judgement, different[name].judgement) == ("reproduced", "not testable here")
        assert "memory of different kinds: gpu, reserved" in different[name].figures


def test_the_same_at_any_size_is_so_at_every_size() -> None:
    constant = ConstantCheck(kind="constant", column="speed", over="batch_size", at_least=0.8, at_most=1.25)
    assert constant.answer(points("speed", {1: 1.0, 4: 1.1, 64: 1.0})).ruling is Ruling.HOLDS
    humped = constant.answer(points("speed", {1: 1.0, 4: 5.0, 64: 1.0}))
    assert (humped.ruling, "5.00x from batch_size 1 to 4" in humped.figures) == (Ruling.FAILS, True)
    assert constant.answer(points("speed", {1: 1.0, 64: 1.0})).ruling is Ruling.UNKNOWN


def test_the_best_of_a_comparison_is_ahead_of_all_of_it(tmp_path: Path) -> None:
    """With an engine of the study missing nothing shows that it would not have been faster."""
    rows = [row for row in throughput_rows() if row["backend"] != "tgi"]
    judged = judgements(run(tmp_path, "throughput_bound", rows))
    assert judged["best-throughput-vllm"].judgement == "not testable here"
    assert "backend=tgi" in judged["best-throughput-vllm"].figures
    names = ({"backend": "a"}, {"backend": "b"}, {"backend": "c"})
    two = pd.concat([points("speed", {1: 1.0}, backend=name) for name in ("a", "b")], ignore_index=True)
    every: dict[str, Any] = {"of": {}, "to": {}, "same": ("batch_size",), "pick": "largest", "at_most": 1.1}
    spread = RatioCheck(kind="ratio", column="speed", among=names, **every)
    assert spread.answer(two).figures == "needs backend=c with speed"
    third = points("speed", {1: 3.0}, backend="c")
    assert spread.answer(pd.concat([two, third], ignore_index=True)).ruling is Ruling.FAILS


@pytest.mark.parametrize(
    ("finding", "row", "judgement"),
    [
        ("best-throughput-vllm", ("vllm", "reasoning", 64, 2000.0, 0.6), "not reproduced"),  # not at batch 128
        ("best-throughput-vllm", ("vllm", "sentiment", 128, 2000.0, 0.6), "not reproduced"),
        ("best-ttft-tgi", ("tgi", "sentiment", 128, 200.0, 0.05), "not reproduced"),  # not on QA
        ("tgi-below-baseline-on-reasoning", ("tgi", "reasoning", 32, 900.0, 0.6), "reproduced"),  # its 128 is judged
    ],
)
def test_the_best_is_of_the_task_and_the_batch_that_the_finding_names(
    finding: str, row: tuple[str, str, int, float, float], judgement: str, tmp_path: Path
) -> None:
    backend, workload, batch, speed, ttft = row
    better = [
        trial(backend, batch, replicate, speed, workload=workload, ttft_mean=ttft, launch=f"{backend}-{replicate}")
        | {"trial_id": f"better-{replicate}", "settings": on("l4")}
        for replicate in range(2)
    ]
    judged = judgements(run(tmp_path, "throughput_bound", [*throughput_rows(), *better]))
    assert judged[finding].judgement == judgement


@pytest.mark.parametrize(
    ("backend", "sizes", "judgement"),
    [
        ("vllm_offline", (1, 2, 32), "reproduced"),
        ("vllm_offline", (1, 2), "not testable here"),
        ("vllm", (1, 2, 32), "not testable here"),
    ],
)
def test_batches_1_and_2_are_not_1_to_32(backend: str, sizes: tuple[int, ...], judgement: str, tmp_path: Path) -> None:
    rows = [
        trial(backend, size, replicate, 10.0 * size + 0.01 * replicate, launch=f"{replicate}")
        for size in sizes
        for replicate in range(2)
    ]
    judged = judgements(run(tmp_path, "batch_size", rows))["larger-batches-faster"]
    assert judged.judgement == judgement
    assert "claimed" not in judged.figures


def test_a_further_setting_of_a_library_is_no_rival(tmp_path: Path) -> None:
    """llama.cpp with slots and CTranslate2 in 16 bits are points of ours, not of the study."""
    rows = [
        trial(backend, size, replicate, speed * gain, launch=f"{backend}-{replicate}", **other)
        | {"trial_id": f"{backend}-{size}-{replicate}-{other}"}
        for backend, speed, steep, other in (
            ("exllama", 50.0, 8.0, {}),
            ("ctranslate2", 40.0, 4.0, FORMATS["ctranslate2"]),
            ("ctranslate2", 45.0, 20.0, {"backend.quantization": "float16"}),
            ("llamacpp", 30.0, 1.0, FORMATS["llamacpp"]),
            ("llamacpp", 60.0, 20.0, {"backend.quantization": "Q4_0", "backend.slots": 64}),
        )
        for size, gain in ((1, 1.0), (64, steep))
        for replicate in range(2)
    ]
    judged = judgements(run(tmp_path, "completion_batches", rows))
    for name in ("exllama-best-library", "exllama-scales-best-of-libraries"):
        assert judged[name].judgement == "reproduced"


def test_up_to_is_one_of_the_ratios_and_never_is_all_of_them() -> None:
    table = pd.concat([points("speed", {1: 1.0, 2: 1.0}, backend="a"), points("speed", {1: 3.0, 2: 0.5}, backend="b")])
    sides = {"of": {"backend": "b"}, "to": {"backend": "a"}, "same": ("batch_size",)}
    ratio = {"kind": "ratio", "column": "speed", **sides}
    up_to = RatioCheck.model_validate({**ratio, "pick": "largest", "at_least": 2})
    always = RatioCheck.model_validate({**ratio, "pick": "smallest", "at_least": 1})
    table = table.reset_index(drop=True)
    assert (up_to.answer(table).ruling, always.answer(table).ruling) == (Ruling.HOLDS, Ruling.FAILS)


@pytest.mark.parametrize(("shares", "judgement"), [((0.5, 0.51), "reproduced"), ((0.0, 0.01), "not testable here")])
def test_a_premise_that_a_run_lacks_makes_its_finding_not_testable(
    shares: tuple[float, float], judgement: str, tmp_path: Path
) -> None:
    rows = [
        trial("vllm", 1, replicate, 10.0, ladder=step, workload="random_tokens", launch=f"{step}-{replicate}")
        | {"trial_id": f"{step}-{replicate}", "request_throughput": speed, "kv_cache_full_share": share}
        for step, speed in (("1 baseline", 2.0), ("2 seqs 128", 3.0))
        for replicate, share in enumerate(shares)
    ]
    judged = judgements(run(tmp_path, "serving_ladder", rows))["fewer-sequences-faster"]
    assert judged.judgement == judgement
    assert ("its premise" in judged.figures) == (judgement == "not testable here")


def test_throughput_as_offered_is_not_ranked(tmp_path: Path) -> None:
    """An open loop that asks for little makes all steps equally fast; one that asks for more makes them faster."""
    rows = [
        trial("vllm", 1, replicate, 10.0, ladder=step["ladder"], workload="random_tokens")
        | dict.fromkeys(("launch", "trial_id"), f"{number}-{replicate}")
        | {"request_throughput": step["request_throughput"] + 0.001 * replicate}
        | {"below_saturation": step["ladder"].startswith("7")}
        for number, step in enumerate(study_for("serving_ladder").tables["serving_ladder"].rows)
        for replicate in range(2)
    ]
    judged = judgements(run(tmp_path, "serving_ladder", rows))
    assert judged["step-7-fastest"].judgement == "not testable here"
    assert "ladder=7 seqs 512 with request_throughput that is not as offered" in judged["step-7-fastest"].figures
    assert judged["fp8-cache-faster"].judgement == "reproduced"


@pytest.mark.slow
def test_the_smaller_form_shows_its_own_ratios(tmp_path: Path, capsys: Any) -> None:
    """Where nothing stands beside the published rows; the baseline is that of the experiment."""
    rows = [
        trial(backend, 8, replicate, speed * (1 + 0.01 * replicate), launch=f"{backend}-{replicate}")
        for backend, speed in (("transformers", 10.0), ("vllm", 20.0))
        for replicate in range(2)
    ]
    run_of(tmp_path / "small", rows, name="throughput_bound", baseline={"backend": "transformers"})
    for form in ([], ["--format", "markdown"]):
        assert main(["studies", str(tmp_path / "small"), *form]) == 0
        assert re.search(r"vllm, qa, 8 +(\| )?20.1 +(\| )?2.00 \(", capsys.readouterr().out)
    run_of(tmp_path / "same", throughput_rows(), name="throughput_bound", baseline={"backend": "transformers"})
    assert main(["studies", str(tmp_path / "same")]) == 0
    assert "Its own ratios" not in capsys.readouterr().out


def test_the_studys_table_stands_beside_ours_as_ratios(tmp_path: Path) -> None:
    rows = {(each.point, each.column): each for each in beside(run(tmp_path, "throughput_bound", throughput_rows()))}
    row = rows["vllm, qa, 128", "output_throughput"]
    assert (row.published, row.published_ratio) == (537.6, pytest.approx(537.6 / 360.51))
    assert row.measured == pytest.approx(537.0, rel=2e-3)
    assert row.measured_ratio == pytest.approx(537 / 360, rel=2e-3)
    assert rows["vllm, reasoning, 128", "output_throughput"].measured_ratio is None  # the baseline has no such batch


@pytest.mark.slow
def test_the_command_and_the_report_print_the_judgements(tmp_path: Path, capsys: Any) -> None:
    results = run(tmp_path, "throughput_bound", throughput_rows())
    assert main(["studies", str(tmp_path)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "537.6" in text
    assert main(["studies", str(tmp_path), "--format", "markdown"]) == 0
    text = capsys.readouterr().out
    assert "No table of the study has 27x" in text
    assert "| vLLM has the highest throughput, on reasoning at batch 128. | reproduced |" in text
    page = html(results, [])
    assert "Published findings" in page
    assert "No table of the study has 27x" in page
    assert "Published findings" not in html(run(tmp_path / "other", "my_study", throughput_rows()), [])
    assert main(["studies"]) == 0
    assert "ttft-27-times" in capsys.readouterr().out
    assert main(["studies", str(tmp_path / "none")]) == 2


@pytest.mark.slow
def test_a_run_may_be_given_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    run(tmp_path / "results" / "night", "throughput_bound", throughput_rows())
    monkeypatch.chdir(tmp_path)
    for command in ("studies", "report", "status", "compare"):
        assert main([command, "night", *(["night"] if command == "compare" else [])]) == 0
    capsys.readouterr()
    assert main(["studies", "nights"]) == 2
    assert "results/nights: no run here" in capsys.readouterr().err


def test_data_is_in_the_wheel() -> None:
    assert {path.stem for path in STUDY_FILES.glob("*.yaml")} == {study.name for study in all_studies()}
    assert json.dumps([study.model_dump(mode="json") for study in all_studies()])


def test_differences_from_the_study_stand_once_below_the_judgements_and_in_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    differences = yaml.safe_load((CONF / "study_differences" / "first_study.yaml").read_text())
    RunResults(run_of(tmp_path, throughput_rows(), name="throughput_bound", study_differences=differences))
    assert main(["studies", str(tmp_path)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert main(["report", str(tmp_path)]) == 0
    report = (tmp_path / "report.html").read_text()
    for difference in (
        "all engines: each prompt begins with a header of random words",
        "vllm: --max-model-len 4096 is omitted",
        "tgi: PREFIX_CACHING=0",
    ):
        assert printed.count(f"not as published: {difference}") == 1
        assert report.count(difference) == 2, "with the findings and in the provenance"
    begun = run_of(tmp_path / "begun", [*throughput_rows()[:2], *throughput_rows()[4:6]], study_differences=differences)
    assert "transformers, vllm: the engine is today's locked release" in "; ".join(study_differences(RunResults(begun)))
