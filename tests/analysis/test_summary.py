"""The points of a run: means, intervals, ratios, and the best."""

import math
import re
import time
from pathlib import Path

import pandas as pd
import pytest

import analysis
from analysis.load import open_run
from analysis.results import open_results
from analysis.statistics.contests import Standing
from analysis.statistics.estimates import estimate
from analysis.statistics.ratios import baseline_points
from analysis.summary import summarise
from sweep.disk import run_files
from sweep.disk.run_files import RunPaths
from tests.plan.test_plan import planned
from tests.support.results import printed, report_of, rows_of, run_of, trial, warnings_of


def test_summary_has_means_intervals_and_the_ratio_to_the_baseline(tmp_path: Path) -> None:
    rows = [trial("plain", 8, 0, 9.0), trial("plain", 8, 1, 11.0), trial("fast", 8, 0, 20.0), trial("fast", 8, 1, 20.0)]
    points = summarise(run_of(tmp_path, rows, baseline={"backend": "plain"})).set_index("backend")
    plain, fast = points.loc["plain"], points.loc["fast"]
    assert (plain["n"], plain["output_throughput"]) == (2, 10.0)
    # s of {9, 11} is √2, s/√2 = 1, t(0.975, 1) = tan(0.475 π) = 12.7062; of the logarithm: 1.27062
    assert plain["output_throughput_ci_high"] == pytest.approx(10 * math.exp(1.27062), rel=1e-5)
    assert plain["output_throughput_ci_low"] == pytest.approx(10 * math.exp(-1.27062), rel=1e-5)
    assert math.isnan(plain["output_throughput_new_launch_low"])  # both replicates are of one launch
    assert fast["output_throughput_vs_baseline"] == pytest.approx(20 / math.sqrt(99))
    assert math.isnan(plain["output_throughput_vs_baseline"])
    assert "ttft_p50" not in points  # never measured here


def test_a_failed_trial_is_in_no_mean_but_in_the_table(tmp_path: Path) -> None:
    failed = {"output_throughput": 1e9}  # whatever it had measured by then
    rows = [trial("fast", 8, 0, 20.0), *({**trial("fast", *of, None), **failed} for of in ((8, 1), (16, 0)))]
    points = summarise(run_of(tmp_path, rows)).set_index("batch_size")
    assert (points.loc[8, "n"], points.loc[8, "not_ok"], points.loc[8, "output_throughput"]) == (1, 1, 20.0)
    assert math.isnan(points.loc[8, "output_throughput_ci_low"])
    assert (points.loc[16, "n"], points.loc[16, "outcomes"]) == (0, "hung 1")
    assert math.isnan(points.loc[16, "output_throughput"])


@pytest.mark.slow
def test_a_percentile_that_one_replicate_lost_to_failures_is_the_points_no_more(tmp_path: Path) -> None:
    """Of two replicates, one had more than 1 % failed: the other one's p99 alone would be of the luckier one."""
    known = {"ttft_mean": 0.1, "ttft_p50": 0.1, "ttft_p99": 0.2, "tpot_mean": 0.01, "tpot_p50": 0.01}
    failed = {**known, "ttft_p99": None, "num_failed": 3, "timed_out_after": 5.0}
    rows = [trial("a", 8, 0, 20.0, **known), trial("a", 8, 1, 20.0, **failed)]
    rows += [trial(name, 8, index, 10.0, **{**known, "ttft_p99": 0.3}) for name in "bd" for index in range(2)]
    rows += [trial("c", 8, 0, 10.0, **failed), trial("c", 8, 1, 10.0, **{**failed, "timed_out_after": None})]
    run = run_of(tmp_path, rows)
    points = summarise(run).set_index("backend")
    assert points["ttft_p99"].notna().to_dict() == {"a": False, "b": True, "d": True, "c": False}
    assert points["ttft_p50"].tolist() == [0.1] * 4
    assert points["failed"].to_dict() == {"a": 3, "b": 0, "d": 0, "c": 6}
    assert points["ttft_p99_standing"].dropna().to_dict() == {"b": Standing.BEST, "d": Standing.TIED}
    cells = {row[0]: row for row in rows_of(report_of(run)) if len(row) > 4}
    assert any("≥ 5,000 more than 1% failed" in cell for cell in cells["a"])
    assert any(cell == "— more than 1% failed" for cell in cells["c"]), "not all of its failures timed out"
    text = printed(open_run(tmp_path), 160)
    assert "≥ 5,000" in text
    assert "— >1% failed" in text
    assert "3 of 200" in text


def test_points_are_told_apart_by_the_axes_and_compared_with_their_own_kind(tmp_path: Path) -> None:
    steps = [("plain", 256, 10.0), ("seqs", 128, 15.0), ("fp8", 128, 30.0)]
    rows = [
        trial("vllm", 8, replicate, value, ladder=step, **{"backend.flags.max-num-seqs": seqs})
        for step, seqs, value in steps
        for replicate in range(2)
    ]
    points = summarise(run_of(tmp_path, rows, baseline={"ladder": "plain"}))
    ratios = dict(zip(points["ladder"], points["output_throughput_vs_baseline"], strict=True))
    assert (ratios["seqs"], ratios["fp8"]) == pytest.approx((1.5, 3.0))


def test_no_ratio_where_the_baseline_is_not_one_point() -> None:
    points = pd.DataFrame(
        {
            "backend": ["plain", "plain", "fast"],
            "workload": "qa",
            "batch_size": 8,
            "backend.dtype": ["fp16", "fp32", "bf16"],
            "n": 2,
            "not_ok": 0,
            "outcomes": "",
        }
    )
    assert baseline_points(points, {"backend": "plain"})[2] is None
    points.loc[2, "backend.dtype"] = "fp32"
    assert baseline_points(points, {"backend": "plain"})[2] == 1
    assert baseline_points(points, {"backend": "plain", "backend.dtype": "fp16"})[2] == 0


def test_a_larger_batch_is_not_compared_with_a_smaller_one(tmp_path: Path) -> None:
    rows = [trial("plain", 8, 0, 10.0), trial("fast", 8, 0, 20.0), trial("fast", 16, 0, 40.0)]
    points = summarise(run_of(tmp_path, rows, baseline={"backend": "plain"}))
    ratios = points.set_index(["backend", "batch_size"])["output_throughput_vs_baseline"]
    assert ratios["fast", 8] == pytest.approx(2.0)
    assert math.isnan(ratios["fast", 16])


def test_best_knows_which_way_is_better(tmp_path: Path) -> None:
    rows = [trial("a", 1, 0, 10.0, ttft_p50=0.1), trial("b", 1, 0, 30.0, ttft_p50=0.2)]
    points = summarise(run_of(tmp_path, rows)).set_index("backend")
    assert points["output_throughput_standing"].to_dict() == {"a": Standing.TIED, "b": Standing.BEST}
    assert points["ttft_p50_standing"].to_dict() == {"a": Standing.BEST, "b": Standing.TIED}


def test_latencies_by_the_engines_own_stamps_do_not_compete(tmp_path: Path) -> None:
    inside = {"client_stamp_source": "engine"}
    rows = [trial("a", 1, 0, 10.0, ttft_p50=0.2), trial("b", 1, 0, 30.0, ttft_p50=0.1, **inside)]
    rows.append(trial("c", 1, 0, 5.0, ttft_p50=0.3))
    points = summarise(run_of(tmp_path, rows)).set_index("backend")
    assert points["output_throughput_standing"]["b"] == Standing.BEST
    assert points["ttft_p50_standing"].dropna().to_dict() == {"a": Standing.BEST, "c": Standing.TIED}


@pytest.mark.slow
def test_ten_thousand_points_take_seconds(tmp_path: Path) -> None:
    rows = [trial(f"e{index % 4}", index // 4, 0, 10.0 + index) for index in range(10_000)]
    run = run_of(tmp_path, rows, baseline={"backend": "e0"})
    started = time.monotonic()
    points = summarise(run)
    assert len(points) == 10_000
    assert points["output_throughput_vs_baseline"].notna().sum() == 7_500
    assert time.monotonic() - started < 20  # 2 s on an idle machine


def test_an_interval_counts_the_replicates_that_have_the_figure(tmp_path: Path) -> None:
    rows = [trial("a", 8, index, 10.0 + index, ttft_p50=0.1 * (index + 1) if index < 2 else None) for index in range(3)]
    point = summarise(run_of(tmp_path, rows)).iloc[0]
    assert (estimate(point, "output_throughput").n, estimate(point, "ttft_p50").n) == (3, 2)


def test_replicates_on_different_gpus_are_not_averaged(tmp_path: Path) -> None:
    speeds = {"NVIDIA L4": {"plain": 10.0, "fast": 30.0}, "NVIDIA A100": {"plain": 50.0}}
    rows = [
        trial(name, 8, index, speed, accelerator=gpu)
        for gpu, engines in speeds.items()
        for name, speed in engines.items()
        for index in range(2)
    ]
    points = summarise(run_of(tmp_path, rows, baseline={"backend": "plain"})).set_index(["backend", "accelerator"])
    assert points["output_throughput"].to_dict() == {
        ("plain", "NVIDIA A100"): 50.0,
        ("plain", "NVIDIA L4"): 10.0,
        ("fast", "NVIDIA L4"): 30.0,
    }
    assert points.loc[("fast", "NVIDIA L4"), "output_throughput_vs_baseline"] == pytest.approx(3.0)
    same = summarise(run_of(tmp_path, [{**row, "accelerator": "NVIDIA L4"} for row in rows]))
    assert "accelerator" not in same


def test_a_baseline_may_name_a_key_of_the_load(tmp_path: Path) -> None:
    rows = [trial(name, batch, 0, speed * batch) for name, speed in (("a", 10.0), ("b", 20.0)) for batch in (1, 8)]
    run = run_of(tmp_path, rows, baseline={"load.batch_size": 1})
    points = summarise(run).set_index(["backend", "batch_size"])
    ratios = points["output_throughput_vs_baseline"].dropna().to_dict()
    assert ratios == {("a", 8): pytest.approx(8.0), ("b", 8): pytest.approx(8.0)}
    assert "baseline-not-compared" not in warnings_of(run)


@pytest.mark.slow
def test_planned_trials_that_have_not_run_are_told(tmp_path: Path) -> None:
    rows = [trial("a", batch, index, 10.0 + index) for batch in (1, 8) for index in range(3)]
    run = run_of(tmp_path, rows[:1])
    plan = [
        {"kind": "experiment", "name": "x", "axes": ["load.batch_size"], "trials": 6, "replicates": 3},
        {"kind": "deployment", **{key: rows[0][key] for key in ("deployment_id", "backend", "model")}},
        *({**row, "kind": "trial", "coordinates": {"load.batch_size": row["batch_size"]}} for row in rows),
    ]
    run_files.write_plan(run.paths, plan)
    analysis.write_all(open_results(tmp_path))
    summary = pd.read_csv(run.paths.summary)
    assert summary[["batch_size", "n", "not_ok", "planned", "outcomes"]].to_numpy().tolist() == [
        [1, 1, 0, 3, "not run 2, ok 1"],
        [8, 0, 0, 3, "not run 3"],
    ]
    text = (tmp_path / "report.html").read_text()
    assert "1 of 6 trials and 1 of 2 points have a result" in text
    assert "5 of 6 planned trials have not run" in text
    assert "set replicates=3" not in text
    assert "5 of 6 planned trials have not run" in printed(open_run(tmp_path), 80)
    run_files.write_trials(run.paths, rows)
    analysis.write_all(open_results(tmp_path))
    assert "not run" not in (tmp_path / "report.html").read_text()
    run_files.write_trials(run.paths, [])
    analysis.write_all(open_results(tmp_path))
    assert "0 of 6 trials and 0 of 2 points" in (tmp_path / "report.html").read_text()
    experiment, _, first, *others = planned().entries("python -m sweep")
    assert experiment["trials"] == len(others) + 1
    assert {"batch_size", "concurrency", "rate", "coordinates", "workload", "load", "trial_id"} <= set(first)


def test_points_without_a_result_are_rows_and_axes_stay_that_only_one_value_has_a_result_of(tmp_path: Path) -> None:
    """An interrupted run: one of three batch sizes has a result, one failed, and one has not run."""
    axis = "backend.flags.max-num-seqs"
    rows = [trial("a", 1, 0, 10.0, **{axis: 16}), trial("a", 1, 0, None, **{axis: 64}, outcome="oom_load")]
    run_of(tmp_path, rows)
    entries = [
        {"kind": "experiment", "name": "night", "axes": [axis], "trials": 3, "replicates": 1},
        {"kind": "deployment", "deployment_id": "d9", "backend": "a", "model": "m"},
        {"kind": "trial", "trial_id": "t9", "deployment_id": "d9", "workload": "qa", "load": "batch", "batch_size": 1}
        | {"coordinates": {axis: 256}},
    ]
    run_files.write_plan(RunPaths(tmp_path), entries)
    text = printed(open_run(tmp_path), 160)
    table = text.partition("best")[0]
    assert re.search(r"^a +qa +16 .*10\.0", table, re.MULTILINE)
    assert re.search(r"^a +qa +64 .*oom_load", table, re.MULTILINE)
    assert re.search(r"^a +qa +256 .*not run", table, re.MULTILINE)
    analysis.write_all(open_results(tmp_path))
    html = (tmp_path / "report.html").read_text()
    assert "oom_load 1" in html
    assert "not run 1" in html


@pytest.mark.parametrize(
    ("pending", "axis_values"), [(0.5, [8.0, 0.5]), ("auto", ["8", "auto"]), ([1, 2], ["8", "[1, 2]"])]
)
def test_values_still_to_come_may_be_of_another_type_than_those_with_a_row(
    tmp_path: Path, pending: object, axis_values: list[object]
) -> None:
    axis = "backend.limit"
    run_of(tmp_path, [trial("a", 1, index, 10.0, **{axis: 8}) for index in range(2)])
    rest = {"kind": "trial", "deployment_id": "d9", "workload": "qa", "load": "batch", "batch_size": 1}
    entries = [
        {"kind": "experiment", "name": "night", "axes": [axis], "trials": 4, "replicates": 3},
        {"kind": "deployment", "deployment_id": "d9", "backend": "a", "model": "m"},
        *({**rest, "trial_id": str(value), "coordinates": {axis: value}} for value in (8, pending)),
    ]
    run_files.write_plan(RunPaths(tmp_path), entries)
    results = open_results(tmp_path)
    analysis.write_all(results)
    assert results.summary[axis].tolist() == axis_values
    assert results.summary[["n", "planned"]].to_numpy().tolist() == [[2, 3], [0, 1]]
    assert results.layout.placed(results.run.trials)["point"].tolist() == [0, 0]
