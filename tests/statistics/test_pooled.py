"""The statistics of a point are those of the requests on disk: through the writer, the reader and the whole command."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

import analysis
from analysis.load import open_run
from analysis.statistics import pooled
from analysis.summary import summarise
from sweep.__main__ import main
from sweep.base.records import Records
from sweep.disk import run_files
from sweep.disk.columns import request_columns, written_columns
from sweep.disk.run_files import RunPaths
from sweep.numbers.steady import steady_window
from sweep.numbers.summarise import summarise as row_of
from tests.statistics.test_intervals import records_of, run_with_gaps
from tests.support.results import printed, run_of, trial, warnings_of

REPLICATES = np.random.default_rng(8).lognormal(-2, 0.5, (3, 21))  # s; an odd number of requests has a middle one
SERIES = ("ttft", "e2el", "input_length", "output_length")


def write_run(folder: Path, replicates: np.ndarray, engine: str = "a", **inputs: Any) -> list[dict[str, Any]]:
    """Write a run of one point whose rows have every column that a measured trial has; return the rows."""
    rows = []
    for index, latencies in enumerate(replicates):
        records = records_of(latencies)
        row = trial(engine, 8, index, 10.0, attempt=f"{index}", launch=f"{engine}{index}")
        row |= row_of(records, window=steady_window(records), **inputs)
        run_files.write_requests(RunPaths(folder).trial(row["deployment_id"], row["attempt"], row["trial_id"]), records)
        rows.append(row)
    run_of(folder, rows)
    return rows


def requests_on_disk(folder: Path) -> pd.DataFrame:
    """Return the measured requests of all trials, read without the project's reader."""
    requests = pd.concat(pq.read_table(path).to_pandas() for path in sorted(folder.rglob("requests.parquet")))
    return requests[requests["phase"] == "measured"]


def check_summary(folder: Path) -> pd.Series:
    """Check that the figures of a run's only point are those of its requests on disk; return the point."""
    (point,) = pd.read_csv(folder / "summary.csv").to_dict("records")
    requests = requests_on_disk(folder)
    for name in ("ttft", "e2el"):
        assert point[f"{name}_p50"] == pytest.approx(float(np.median(requests[name])), rel=1e-6), name
        assert math.isnan(point[f"{name}_p99"]), "fewer than five requests are beyond it"
    assert point["output_length_mean"] == requests["output_tokens"].mean()
    spans = [
        (trial["sent"] + trial["service_e2el"]).max() - trial["sent"].min()
        for trial in (pq.read_table(path).to_pandas() for path in folder.rglob("requests.parquet"))
        for trial in [trial[trial["phase"] == "measured"]]
    ]
    assert point["output_throughput"] == pytest.approx(requests["output_tokens"].sum() / sum(spans), rel=1e-6)
    assert pd.isna(point["unpooled"])
    assert "unpooled-statistics" not in warnings_of(open_run(folder))
    return pd.Series(point)


def test_a_points_figures_are_those_of_its_requests_on_disk(tmp_path: Path) -> None:
    write_run(tmp_path, REPLICATES)
    analysis.write_all(analysis.open_results(tmp_path))
    own = pd.read_parquet(tmp_path / "trials.parquet")["ttft_p50"]
    assert check_summary(tmp_path)["ttft_p50"] != pytest.approx(own.mean(), rel=1e-3)


def test_the_share_of_good_requests_has_an_interval(tmp_path: Path) -> None:
    """14 of 21 requests of one replicate: Wilson's interval is 45 to 83 %."""
    latencies = np.random.default_rng(3).permutation(np.repeat([0.5, 2.0], [14, 7]))
    write_run(tmp_path, latencies[None], slo={"e2el": 1.0})
    analysis.write_all(analysis.open_results(tmp_path))
    (point,) = pd.read_csv(tmp_path / "summary.csv").to_dict("records")
    assert point["goodput_share"] == pytest.approx(14 / 21)
    assert point["goodput_share_ci_low"] == pytest.approx(0.454, abs=0.06)
    assert point["goodput_share_ci_high"] == pytest.approx(0.828, abs=0.06)


@pytest.mark.slow
def test_a_points_figures_are_those_of_its_requests_on_disk_through_the_command(tmp_path: Path) -> None:
    line = ["backend=simulated", "backend.ttft={mean: 0.2, kind: lognormal, sigma: 0.6}"]
    line += ["backend.itl.mean=0.02", "model=tiny-llama", "workload=qa", "workload.output_tokens=8"]
    line += ["workload.num_requests=9", "load=closed", "load.concurrency=2", "replicates=3", "agreement=false"]
    assert main([*line, "cluster=inline", "tracking=none", f"out={tmp_path}"]) == 0
    check_summary(tmp_path)


def test_a_point_timed_inside_the_engine_has_its_lengths_pooled_and_no_latency(tmp_path: Path) -> None:
    run_of(tmp_path, [row | {"client_stamp_source": "engine"} for row in write_run(tmp_path, REPLICATES)])
    point = summarise(open_run(tmp_path)).iloc[0]
    assert point["output_length_mean"] == requests_on_disk(tmp_path)["output_tokens"].mean()
    assert "ttft_p50" not in point
    assert point["unpooled"] == ""
    assert "unpooled-statistics" not in warnings_of(open_run(tmp_path))


def test_a_reader_can_only_ask_for_columns_that_are_written() -> None:
    assert set(run_files.requests_table(Records()).column_names) == set(request_columns())
    with pytest.raises(KeyError, match="no column input_length is ever written"):
        written_columns(["sent", "input_length"])


def test_every_series_per_request_is_read_from_a_written_column(tmp_path: Path) -> None:
    write_run(tmp_path, REPLICATES)
    run = open_run(tmp_path)
    series = {s.quantity for s in pooled.pooled_columns(run).values() if s.quantity.per == "request"}
    assert {"input_length", "output_length", "ttft"} <= {quantity.name for quantity in series}
    assert {quantity.request_column for quantity in series} <= set(request_columns())


@pytest.mark.filterwarnings("ignore:left out")
@pytest.mark.parametrize("harm", ["missing", "damaged", "shorter"])
def test_a_point_without_its_requests_says_so(tmp_path: Path, harm: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Also beside a whole run in a comparison, which then compares the throughputs alone."""
    whole, tmp_path = tmp_path / "whole", tmp_path / "harmed"
    write_run(whole, REPLICATES)
    write_run(tmp_path, REPLICATES)
    path = next(tmp_path.rglob("requests.parquet"))
    if harm == "missing":
        path.unlink()
    elif harm == "damaged":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        pq.write_table(pq.read_table(path).slice(1), path)
    analysis.write_all(analysis.open_results(tmp_path))
    (point,) = pd.read_csv(tmp_path / "summary.csv").to_dict("records")
    assert {"ttft_p50", "output_length_mean", "output_throughput"} <= set(point["unpooled"].split(", "))
    assert "unpooled-statistics" in point["warnings"].split(";")
    severe = [w for w in analysis.open_results(tmp_path).warnings if w.kind.severity == "severe"]
    assert [w.code for w in severe] == ["unpooled-statistics"]
    capsys.readouterr()
    for other, code in ((whole, ""), (tmp_path, "unpooled-statistics")):
        metrics = ["--metric", "ttft_p50", "--metric", "output_throughput", "--format", "json"]
        assert main(["compare", str(whole), str(other), *metrics]) == 0
        compared = {each["column"]: each for each in json.loads(capsys.readouterr().out)["comparisons"]}
        assert (compared["ttft_p50"]["verdict"] == "not comparable") == bool(code), compared
        assert (compared["ttft_p50"]["warnings"] or "") == code
        assert "unpooled" not in (compared["output_throughput"]["warnings"] or "")


def test_imported_figures_are_named_in_the_column_alone(tmp_path: Path) -> None:
    run = run_of(tmp_path, [trial("a", 8, index, 10.0, ttft_p50=0.1) for index in range(3)])
    assert summarise(run)["unpooled"].tolist() == ["ttft_p50, output_throughput"]
    assert "unpooled-statistics" not in warnings_of(run)


def test_more_gaps_than_an_interval_takes_are_pooled_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = np.random.default_rng(3)
    all_gaps = np.exp(chance.normal(-4, 0.3, (3, 300, 20)))
    run_with_gaps(tmp_path, all_gaps)
    monkeypatch.setattr(pooled, "MOST_GAPS", 100)
    point = summarise(open_run(tmp_path)).iloc[0]
    assert point["itl_p50"] == pytest.approx(np.quantile(all_gaps, 0.5), rel=1e-3)
    assert math.isnan(point["itl_p50_ci_low"])
    assert point["unpooled"] == ""


def test_a_small_run_has_intervals_from_its_launches_and_says_so(tmp_path: Path) -> None:
    other = write_run(tmp_path, 2 * REPLICATES[:, :18], "b")
    run_of(tmp_path, [*write_run(tmp_path, REPLICATES[:, :18]), *other])
    analysis.write_all(analysis.open_results(tmp_path))
    point, _ = pd.read_csv(tmp_path / "summary.csv").to_dict("records")
    for name in ("ttft_p50", "output_throughput"):
        assert point[f"{name}_by_launches"], name
        assert point[f"{name}_ci_low"] < point[name] < point[f"{name}_ci_high"]
    own = np.log(np.median(REPLICATES[:, :18], axis=1))
    half = 1.1 * 4.302653 * own.std(ddof=1) / math.sqrt(3)  # Student's t of two degrees of freedom
    assert math.log(point["ttft_p50_ci_high"] / point["ttft_p50"]) == pytest.approx(half, rel=1e-4)
    assert math.isnan(point["e2el_p99"])
    assert "few-requests" not in str(point["warnings"]), "it is about figures that the point does not have"
    screen = printed(open_run(tmp_path), 120)
    assert "*)" in screen
    assert "* from the launches' values" in screen
    assert "over launches" in screen
