"""The components of variance: recovered where the truth is known, and honest where the design hides them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.results import RunResults
from analysis.statistics.variance import variance_of_log
from sweep.base.records import Records
from sweep.disk import run_files
from sweep.disk.run_files import RunPaths
from tests.support.results import printed, report_of, run_of, trial
from tests.support.synthetic_run import make_records


def rows_of(launches: int, trials: int, nodes: int = 1, spread: tuple[float, float, float] = (0, 0, 0)) -> Any:
    """Two engines, so many launches of each, each with so many loads; spread of node, launch and trial."""
    random = np.random.default_rng(3)
    of_node = random.normal(0, spread[0], nodes)
    rows = []
    for name in "ab":
        for launch in range(launches):
            node = launch % nodes
            common = of_node[node] + random.normal(0, spread[1])
            for load in range(trials):
                speed = 100.0 * (load + 1) * np.exp(common + random.normal(0, spread[2]))
                more = {"launch": f"{name}{launch}", "hardware": json.dumps({"node": f"n{node}"})}
                rows.append(trial(name, 2**load, launch, float(speed), **more))
    return rows


def test_launch_and_trial_are_told_apart_where_a_launch_has_several_trials(tmp_path: Path) -> None:
    results = RunResults(run_of(tmp_path, rows_of(60, 6, spread=(0, 0.03, 0.01))))
    (spread,) = results.components
    assert spread.deviation == pytest.approx(np.hypot(0.03, 0.01), rel=0.15)
    assert spread.shares == pytest.approx({"trial": 0.1, "launch": 0.9}, abs=0.05)
    assert (spread.trials, spread.launches, spread.nodes) == (720, 120, 1)
    assert spread.notes[0] == "node: unknown (one node for all replicates of a point)"


def test_nodes_have_a_share_where_launches_of_an_engine_were_on_several(tmp_path: Path) -> None:
    results = RunResults(run_of(tmp_path, rows_of(80, 3, nodes=40, spread=(0.04, 0.02, 0.01))))
    (spread,) = results.components
    assert spread.shares == pytest.approx({"trial": 0.05, "launch": 0.19, "node": 0.76}, abs=0.12)


def test_what_the_design_confounds_has_one_share_and_a_note(tmp_path: Path) -> None:
    run = run_of(tmp_path, rows_of(5, 1, spread=(0, 0.03, 0.01)))
    (spread,) = RunResults(run).components
    assert list(spread.shares) == ["launch and trial"]
    assert "launch: confounded with trial (one trial in each launch)" in spread.notes
    assert "Spread between trials of a point" in printed(run, 200)
    assert "launch and trial 100%" in " ".join(printed(run, 200).split())
    assert "launch and trial 100%" in report_of(run).partition("Where the spread comes from")[2]


def test_replicates_of_one_launch_say_nothing_about_launches(tmp_path: Path) -> None:
    rows = [{**row, "launch": row["backend"]} for row in rows_of(5, 2, spread=(0, 0.0, 0.01))]
    (spread,) = RunResults(run_of(tmp_path, rows)).components
    assert list(spread.shares) == ["trial"]
    assert "launch: unknown (one launch for all replicates of a point)" in spread.notes
    alone = [row for row in rows if row["replicate"] == 0]
    assert RunResults(run_of(tmp_path / "alone", alone)).components == [], "without replicates there is no spread"


def test_the_variance_of_a_median_by_its_requests() -> None:
    """Of n independent lognormal(s) values: pi/2 s^2 / n."""
    random = np.random.default_rng(1)
    requests = pd.DataFrame({"sent": np.arange(800.0), "e2el": 1.0, "output_tokens": 8, "batch": np.nan})
    variances = [variance_of_log(requests.assign(ttft=random.lognormal(0, 0.5, 800)), "ttft_p50") for _ in range(200)]
    assert np.mean(variances) == pytest.approx(np.pi / 2 * 0.25 / 800, rel=0.1)
    assert np.isnan(variance_of_log(requests.head(15), "ttft_p50"))


def test_the_variance_of_throughput_by_batches_and_by_time() -> None:
    random = np.random.default_rng(2)
    took = random.lognormal(0, 0.1, 200)
    batches = pd.DataFrame({"batch": np.repeat(np.arange(200), 4), "sent": np.repeat(np.cumsum(took) - took, 4)})
    batches = batches.assign(e2el=np.repeat(took, 4), ttft=0.0, output_tokens=8)
    assert variance_of_log(batches, "output_throughput") == pytest.approx(0.01 / 200, rel=0.3)
    steady = pd.DataFrame({"batch": np.nan, "sent": np.arange(400) / 10, "e2el": 2.0, "ttft": 0.1, "output_tokens": 20})
    assert variance_of_log(steady, "output_throughput") < 1e-6, "an even flow has no spread"


def test_the_requests_of_a_run_are_read_for_their_share(tmp_path: Path) -> None:
    rows = [{**row, "attempt": "1", "ttft_p50": 0.1 + 0.01 * row["replicate"]} for row in rows_of(3, 1)]
    run = run_of(tmp_path, rows)
    for row in rows:
        records: Records = make_records(40, 1, 4, 0.1, 0.01)
        run_files.write_requests(RunPaths(tmp_path).trial(row["deployment_id"], "1", row["trial_id"]), records)
    by_name = {spread.quantity.column: spread for spread in RunResults(run).components}
    assert set(by_name["ttft_p50"].shares) == {"launch and trial", "request"}
