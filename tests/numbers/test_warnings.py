"""Warnings about results: what raises each and what does not, and where they are found."""

import html
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

import analysis
from analysis.load import open_run
from analysis.report.tables import deciding_table
from analysis.results import RunResults
from analysis.warnings import CHECKS, by_point
from backends.base import Launch
from sweep.base.config import build
from sweep.base.options import load_option
from sweep.node.rows import engine_facts
from sweep.numbers.warnings import TRIAL_CHECKS, trial_warnings, warning_codes
from tests.support.results import printed, report_of, run_of, trial, warnings_of

KINDS = [check.kind for check in (*TRIAL_CHECKS, *CHECKS)]
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "warnings.md"


def test_the_document_lists_every_code() -> None:
    rows = [f"| `{kind.code}` | {kind.severity} | {kind.meaning} | {kind.remedy} |" for kind in KINDS]
    table = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("| `")]
    assert table == rows, "docs/warnings.md should have the rows\n" + "\n".join(rows)
    assert len({kind.code for kind in KINDS}) == len(KINDS)


@pytest.mark.parametrize(
    ("columns", "code", "figure"),
    [
        ({"num_requests": 16}, "few-requests", 16),
        (
            {"ttft_p99": 0.302, "steady_ttft_p99": 0.2, "e2el_p50": 1.0, "steady_e2el_p50": 0.95},
            "steady-state-differs",
            0.51,
        ),
        ({"steady_num_requests": 60}, "few-steady-requests", 60),
        ({"steady_drift": 0.8}, "drift-within-steady-state", 0.8),
        ({"steady_drift_after": 1.5}, "drift-after-steady-state", 1.5),
        ({"num_requests": 200, "num_failed": 6}, "failed-requests", 0.03),
        ({"client_cpu": 0.8}, "busy-client", 0.8),
        ({"foreign_cpu_share": 0.3, "foreign_processes": "process 7 (cc1plus) 0.60 cores"}, "foreign-cpu", 0.3),
        ({"foreign_gpu_processes": 1, "foreign_processes": "process 7 (python) 2.00 GiB"}, "foreign-gpu", 1),
        ({"gpu_thermal_share": 0.2}, "gpu-thermal-limit", 0.2),
        ({"gpu_power_share": 0.2}, "gpu-power-limit", 0.2),
        ({"cpu_throttled_share": 0.2}, "cpu-throttled", 0.2),
        ({"cpu_thermal_limits": 1}, "cpu-thermal-limit", 1),
        ({"agreement": 0.42}, "low-agreement", 0.42),
        ({"agreement": 0.42, "coarser_format": "Q4_0"}, "low-agreement-of-coarser-format", 0.42),
        ({"agreement": 0.97}, "inexact-agreement", 0.97),
        ({"offered_rate": 10.0, "realised_rate": 5.0}, "rate-not-reached", 0.5),
        ({"queue_growth": 6.5}, "growing-queue", 6.5),
        ({"drift": 0.5}, "drift-over-trial", math.log(2)),
        ({"replay_hit_error": 0.02}, "other-prefixes", 0.02),
        ({"cache_hit_difference": 0.02}, "unrecorded-hits", 0.02),
        ({"missed_prefix_hits": 0.03}, "missed-hits", 0.03),
        ({"replay_exact_lengths": 0.75}, "other-recorded-lengths", 0.75),
        ({"earliest_turn": -0.003}, "early-turns", -0.003),
        ({"sessions_cut": 1}, "cut-sessions", 1),
        ({"sessions_cut": 1, "sessions_not_begun": 2}, "cut-sessions", 3),
        ({"client_offered": 100, "client_sent": 88}, "unsent-requests", 0.12),
        ({"startup_transient": True, "startup_share": 0.3}, "startup-transient", 0.3),
        ({"client_stamp_source": "user", "client_loop_lag_p99": 0.002}, "client-timestamps", 0.002),
        ({"buffered_share": 0.032}, "shared-timestamps", 0.032),
        ({"buffered_share": 0.11}, "buffered-stream", 0.11),
        ({"token_source": "final usage, events"}, "uncounted-tokens", 1),
        ({"token_source": "text"}, "own-token-count", 1),
        ({"token_source": "final usage", "recounted_share": 0.5}, "token-counts-differ", math.log(2)),
        ({"hidden_share": 0.76}, "hidden-tokens", 0.76),
        ({"tokens_per_event": 1.75, "token_source": "final usage"}, "unstamped-tokens", 1.75),
        ({"output_length_ratio": 0.98}, "other-lengths", 0.02),
        ({"output_length_ratio": 1.5}, "other-lengths", 0.5),
        ({"finish_content_filter_share": 0.25}, "filtered-answers", 0.25),
        ({"below_saturation": True, "offered_rate": 10.0}, "throughput-as-offered", 10.0),
        ({"commit": "abc+"}, "uncommitted-code", 1),
        ({"quality": 0.93, "quality_high": 0.94}, "low-quality", 0.93),
    ],
)
def test_one_trial_raises_its_warning(columns: dict[str, Any], code: str, figure: float) -> None:
    (warning,) = trial_warnings(trial("a", 1, 0, 10.0, **columns))
    assert (warning.code, warning.figure) == (code, pytest.approx(figure))
    assert warning.message
    assert not re.search(r"\b1 \w+s\b", warning.message)
    assert warning.kind.remedy
    assert warning_codes({**trial("a", 1, 0, None), **columns}) == []  # its outcome says more


@pytest.mark.parametrize(
    "columns",
    [
        {"agreement": 1.0, "client_cpu": 0.1, "commit": "abc", "client_stamp_source": "kernel"},
        {"ttft_p99": 0.302, "steady_ttft_p99": 0.28, "tpot_p50": 0.1, "steady_tpot_p50": None},
        {"offered_rate": 0.0, "realised_rate": 0.0, "client_offered": 0, "client_sent": 0},
        {"foreign_cpu_share": 0.1, "foreign_gpu_processes": 0, "foreign_processes": "", "gpu_thermal_share": 0.01},
        {"gpu_power_share": 0.0, "cpu_throttled_share": 0.0, "cpu_thermal_limits": 0},
        {"buffered_share": 0.01, "token_source": "ids", "recounted_share": 0.5, "hidden_share": 0.0},
        {"token_source": "running usage, final usage", "recounted_share": 1.04, "output_length_ratio": 1.0},
        {"below_saturation": False, "offered_rate": 10.0, "finish_content_filter_share": 0.0},
        {"client_offered": 100, "client_sent": 100},
        {"quality": 0.975, "quality_high": 0.985},  # not surely below
        {"agreement": 1.0, "coarser_format": "int8"},
        {"client_stamp_source": "kernel", "client_loop_lag_p99": 0.002},
    ],
)
def test_a_sound_trial_raises_none(columns: dict[str, Any]) -> None:
    assert warning_codes(trial("a", 1, 0, 10.0, **columns)) == []


def test_tables_show_the_steady_figure_where_the_whole_runs_differs(tmp_path: Path) -> None:
    steady = {"steady_begin": 1.0, "steady_end": 2.0, "steady_ttft_p50": 0.051, "steady_tpot_p50": 0.02}
    run = run_of(tmp_path, [trial("a", 1, 0, 10.0, ttft_p50=0.302, tpot_p50=0.0215, **steady)])
    text, report = printed(run, 120), report_of(run)
    assert re.search(r"\b51\.0° +21\.5\b", text)
    assert "° steady state: the whole run's value" in text
    assert "302" not in text.partition("steady-state-differs")[0]
    assert re.search(r"51\.0°.*whole run 302", report)


@pytest.mark.parametrize(
    ("name", "changed", "coarser"),
    [
        ("vllm", {}, None),
        ("vllm", {"flags": {"kv-cache-dtype": "fp8"}}, "fp8"),
        ("vllm_gptq", {}, "gptq"),
        ("transformers", {"dtype": "float32"}, None),
        ("transformers_4bit", {}, "nf4"),
        ("llamacpp", {"quantization": "Q4_0"}, "Q4_0"),
        ("llamacpp", {"quantization": "F16"}, None),
        ("ctranslate2", {"quantization": "int8"}, "int8"),
    ],
)
def test_low_agreement_of_a_format_declared_coarser_costs_and_is_no_fault(
    tmp_path: Path, name: str, changed: dict[str, Any], coarser: str | None
) -> None:
    """The row has the format; without one an engine that gives other answers is severe."""
    backend = build(load_option("backend", name), "backend").model_copy(update=changed)
    launch = Launch(model=tmp_path, served_name="m", workdir=tmp_path, image="i", max_model_len=512)
    node = SimpleNamespace(name="n", environment=SimpleNamespace(versions={}))
    running: Any = SimpleNamespace(facts={"coarser_format": backend.coarser(launch)}, node=node, launch="l")
    column = engine_facts(running, None).coarser_format
    assert (column is None) == (coarser is None)
    assert coarser is None or (column is not None and coarser in column)
    (warning,) = trial_warnings(trial("a", 1, 0, 10.0, agreement=0.42, coarser_format=column))
    assert (warning.kind.severity, "cannot be compared" in warning.kind.remedy) == (
        ("severe", True) if coarser is None else ("warning", False)
    )
    assert coarser is None or coarser in warning.message


def test_a_sound_run_raises_none(tmp_path: Path) -> None:
    rows = [trial(name, 8, index, 10.0 + index / 100) for name in "ab" for index in range(3)]
    assert warnings_of(run_of(tmp_path, rows)) == {}


def test_each_warning_is_printed_and_reported_with_its_figure_and_remedy(tmp_path: Path) -> None:
    rows = [
        trial("a", 1, 0, 10.0, num_requests=16, commit="abc", client_cpu=0.8),
        trial("a", 8, 0, 10.0, commit="def+", num_failed=3),
        trial("b", 8, 0, 10.0, commit="def+", agreement=0.42, offered_rate=10.0, realised_rate=5.0),
        {**trial("b", 16, 0, None), "outcome": "client_limited"},
    ]
    run = run_of(tmp_path, rows, replaced=["model: tiny"], baseline={"backend": "c"})
    results = RunResults(run)
    text, document = " ".join(printed(run, 100).split()), html.unescape(report_of(run))
    for message in (
        *("model: tiny", "baseline (backend = c)", "one replicate, no interval [all points]", "replicates=3"),
        *("p99 over only 16 requests", "3.0% of requests failed", "80% of a core", "50% of the requested rate"),
        *("the client was the bottleneck in 1 trial", "2 versions of this code", "uncommitted code (def+)"),
        "low-agreement: agreement with the reference is 42% [1 of 3 points: b, qa, batch size 8]",
    ):
        assert message in text, message
        assert message.partition(": agreement")[0] in document, message
    for warning in results.warnings:
        assert warning.kind.remedy in text
        assert warning.kind.remedy in document


def test_warnings_are_data(tmp_path: Path) -> None:
    rows = [trial("a", 8, 0, 10.0, num_requests=16), trial("a", 8, 1, 10.0), trial("b", 8, 0, 10.0)]
    rows = [{**row, "warnings": warning_codes(row)} for row in rows]
    run = run_of(tmp_path, rows)
    assert [list(codes) for codes in analysis.load(tmp_path)["warnings"]] == [["few-requests"], [], []]
    results = RunResults(run)
    few = next(warning for warning in results.warnings if warning.code == "few-requests")
    assert (few.trials, few.points, few.figure) == ((rows[0]["trial_id"],), (0,), 16)
    analysis.write_all(results)
    summary = pd.read_csv(run.paths.summary).set_index("backend")
    assert summary["warnings"].to_dict() == {"a": "few-requests", "b": "single-replicate"}


def test_a_run_without_the_column_is_judged_by_its_rows(tmp_path: Path) -> None:
    run_of(tmp_path, [trial("a", 8, index, 10.0, num_requests=16) for index in range(3)])
    assert [warning.code for warning in RunResults(open_run(tmp_path)).warnings] == ["few-requests"] * 3


def test_of_several_alike_the_worst_is_shown(tmp_path: Path) -> None:
    rows = [trial("a", batch, index, 10.0, num_requests=batch) for batch in (8, 16, 32, 64) for index in range(3)]
    warning = warnings_of(run_of(tmp_path, [*rows, trial("b", 128, 0, 10.0)]))["few-requests"]
    assert warning == "p99 over only 8 requests [4 of 5 points of a; the worst: a, qa, batch size 8]"


def test_a_mean_of_survivors_is_flagged(tmp_path: Path) -> None:
    rows = [trial("a", 8, 0, 10.0), trial("a", 8, 1, 10.1), trial("a", 8, 2, None), trial("b", 8, 0, None)]
    warnings = warnings_of(run_of(tmp_path, rows))
    assert warnings["missing-replicates"] == "2 of 3 replicates have a result [a, qa]"


@pytest.mark.slow
def test_engines_are_compared_by_the_prompts_that_both_answered(tmp_path: Path) -> None:
    """Replicates have prompts of their own, here up to a third longer: an engine with one of three is not unequal."""
    lengths = {0: 3000, 1: 3500, 2: 4000}
    rows = [trial("a", 8, index, 10.0, input_tokens=tokens) for index, tokens in lengths.items()]
    fewer = trial("b", 8, 2, 10.0, input_tokens=lengths[2])
    assert "unequal-inputs" not in warnings_of(run_of(tmp_path / "alike", [*rows, fewer]))
    more = {**fewer, "input_tokens": 4400}
    assert "up to 1.10 times" in warnings_of(run_of(tmp_path / "more", [*rows, more]))["unequal-inputs"]


def test_answers_of_unequal_length_are_flagged(tmp_path: Path) -> None:
    long, short = {"output_tokens": 20_000}, {"output_tokens": 12_500}
    rows = [trial("a", 8, 0, 10.0, **long), trial("b", 8, 0, 10.0, **short, num_failed=0)]
    assert "up to 1.6 times as many tokens" in warnings_of(run_of(tmp_path, rows))["unequal-answers"]
    failed = {**trial("b", 8, 0, 10.0, output_tokens=10_000), "num_failed": 50}  # as long, of half the requests
    assert "unequal-answers" not in warnings_of(run_of(tmp_path, [rows[0], failed]))
    other = trial("b", 16, 0, 10.0, **short)  # asked another thing
    assert "unequal-answers" not in warnings_of(run_of(tmp_path, [rows[0], other]))


def test_different_kinds_of_memory_are_flagged(tmp_path: Path) -> None:
    pool, used = ({"memory_peak_bytes": 2.0**30, "memory_label": label} for label in ("reserved", "process"))
    rows = [trial("a", 8, 0, 10.0, **pool), trial("b", 8, 0, 10.0, **used)]
    run = run_of(tmp_path, rows)
    assert "memory reserved (a); memory of the processes (b)" in warnings_of(run)["different-memory"]
    cells = [row[-1].text for row in deciding_table(RunResults(run)).body]
    assert cells == ["1.00 reserved", "1.00"]
    assert "different-memory" not in warnings_of(run_of(tmp_path, [rows[0], trial("b", 8, 0, 10.0, **pool)]))


def test_a_batch_of_one_has_no_form(tmp_path: Path) -> None:
    def rows(form_of_b: str) -> list[dict[str, Any]]:
        forms = {"a": "list", "b": form_of_b}
        return [
            trial(name, batch, 0, 10.0, batch_form="streams" if batch == 1 else form)
            for name, form in forms.items()
            for batch in (1, 8)
        ]

    assert "different-batch-forms" not in warnings_of(run_of(tmp_path, rows("list")))
    message = warnings_of(run_of(tmp_path, rows("streams")))["different-batch-forms"]
    assert "one call with a list of prompts (a) or simultaneous requests (b)" in message
    assert "a, qa, batch size 8; b, qa, batch size 8" in message


def test_unknown_agreement_is_flagged_beside_known(tmp_path: Path) -> None:
    unknown = trial("b", 8, 0, 10.0, agreement_reference="none: the engine's answer: timed out")
    rows = [trial("a", 8, 0, 10.0, agreement=1.0), unknown, trial("c", 8, 0, 10.0)]
    message = warnings_of(run_of(tmp_path, rows))["unknown-agreement"]
    assert "for b (none: the engine's answer: timed out), c (no reason given)" in message
    assert "unknown-agreement" not in warnings_of(run_of(tmp_path, [unknown]))


def test_versions_that_differ_are_all_named(tmp_path: Path) -> None:
    rows = [trial(name, 8, index, 10.0, engine_version=f"{index}") for name in "ab" for index in range(2)]
    message = warnings_of(run_of(tmp_path, rows))["mixed-engine-versions"]
    assert message.startswith("measured a in 2 versions (0, 1); b in 2 versions (0, 1)")


def test_a_point_has_the_warnings_of_its_own_trials(tmp_path: Path) -> None:
    rows = [trial("a", 8, index, 10.0, num_failed=index, agreement=1.0) for index in range(3)]
    rows += [trial("b", 8, index, 10.0, agreement=0.5) for index in range(3)]
    concerned = by_point(RunResults(run_of(tmp_path, rows)).warnings)
    assert {point: [warning.message for warning in alike] for point, alike in concerned.items()} == {
        0: ["2.0% of requests failed"],
        1: ["agreement with the reference is 50%"],
    }
