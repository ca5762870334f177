"""The straight line, whole: from the command to the report. On an engine with known timing, then on real ones."""

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

import analysis
from backends.launch import supervisor
from sweep.__main__ import main
from sweep.disk.run_files import read_trials
from tests.support.timed_server import timed_server

pytestmark = pytest.mark.slow

TTFT, ITL, TOKENS = 0.12, 0.02, 6  # long enough that a busy machine does not make the client the bottleneck
SIMULATED = [
    "backend=simulated",
    f"backend.ttft.mean={TTFT}",
    f"backend.itl.mean={ITL}",
    "model=tiny-llama",
    "workload=synthetic",
    "workload.input_tokens=16",
    f"workload.output_tokens={TOKENS}",
    "workload.num_requests=8",
    "workload.warmup_requests=1",
    "cluster=inline",
    "tracking=none",
]
DESIGN = """
    trial_id deployment_id attempt experiment backend engine_version model workload load batch_size concurrency
    rate replicate seed outcome reason num_requests num_failed input_tokens output_tokens duration
    output_throughput total_throughput request_throughput kv_cache_usage_mean kv_cache_usage_max
    memory_idle_bytes memory_mean_bytes memory_peak_bytes price_per_hour cost_per_million_tokens accelerator
    gpu_count dtype config commit
"""
DESIGN_COLUMNS = DESIGN.split() + [
    f"{prefix}{name}_{statistic}"
    for prefix in ("", "steady_")
    for name in ("ttft", "tpot", "itl", "e2el", "lag", "slot_wait", "service_ttft")
    for statistic in ("mean", "p50", "p90", "p99")
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of four trials on the simulated engine."""
    out = tmp_path_factory.mktemp("line") / "out"
    command = [*SIMULATED, "load.batch_size=1,4", "replicates=2", f"out={out}"]
    # As a user would: a trial that a busy machine spoilt (client_limited) is retried by the same command.
    assert 0 in (main(command) for _ in range(4))
    return out


def test_every_file_of_the_design_is_there(finished):
    for name in ("plan.jsonl", "trials.parquet", "summary.csv", "report.html", "figures"):
        assert (finished / name).exists(), name
    for trial in analysis.load(finished).itertuples():
        folder = finished / "deployments" / trial.deployment_id / trial.attempt
        assert (folder / "engine.log").exists()
        for name in ("requests", "telemetry", "trial"):
            assert (folder / trial.trial_id / f"{name}.parquet").exists()


def test_the_row_says_what_a_cold_start_costs(finished):
    trials = analysis.load(finished)
    assert trials["cold_ttft"].between(0.9 * TTFT, 10 * TTFT).all()
    assert trials["startup_seconds"].gt(0).all()


def test_the_row_holds_the_designs_columns_and_the_axes(finished):
    trials = analysis.load(finished)
    assert not set(DESIGN_COLUMNS) - set(trials.columns)
    assert sorted(trials["load.batch_size"]) == [1, 1, 4, 4]
    assert len(trials.trial_id.unique()) == 4
    assert all("few-requests" in codes for codes in trials["warnings"])
    sent_as = dict(zip(trials["batch_size"], trials["batch_form"], strict=True))
    assert sent_as == {1: "streams", 4: "list"}, "as the client sent them, not as the backend may be asked"
    assert json.loads(trials.config[0])["workload"]["output_tokens"] == TOKENS


def test_one_engine_is_not_warned_of_different_batch_forms(finished):
    """A batch of one goes as a stream, one of four as a list: the same for every engine."""
    assert "different-batch-forms" not in (finished / "report.html").read_text()
    assert "different-batch-forms" not in (finished / "summary.csv").read_text()


def test_the_figures_are_those_of_the_engines_clock(finished):
    trials = analysis.load(finished)
    assert set(trials.outcome) == {"ok"}
    assert (trials.output_tokens == 8 * TOKENS).all()
    assert (trials.input_tokens > 0).all()  # the simulated engine has no tokenizer: it counts words
    assert (trials.ttft_p50 >= TTFT).all()
    # A first token that a busy machine sent late shortens TPOT: of the four trials the median must be right.
    assert trials.ttft_p50.median() == pytest.approx(TTFT, rel=0.5)
    assert trials.tpot_p50.median() == pytest.approx(ITL, rel=0.5)
    expected = trials.price_per_hour / 3600 / trials.output_throughput * 1e6
    assert trials.cost_per_million_tokens.to_numpy() == pytest.approx(expected.to_numpy())


def test_warm_up_is_recorded_and_never_summarised(finished):
    requests = analysis.requests(finished)
    assert {"warmup", "measured"} == set(requests.phase)
    trials = analysis.load(finished)
    assert (trials.num_requests == 8).all()


def test_the_same_command_again_launches_nothing(finished, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("engine.log")}
    assert main([*SIMULATED, "load.batch_size=1,4", "replicates=2", f"out={finished}"]) == 0
    assert "0 to run" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("engine.log")} == before


def test_another_point_runs_only_that_and_the_plan_is_all_that_is_shown(finished, capsys):
    assert main([*SIMULATED, "load.batch_size=1,2", f"out={finished}"]) == 0
    assert "1 to run" in capsys.readouterr().out
    assert sorted(analysis.load(finished)["load.batch_size"]) == [1, 2]


def test_fresh_moves_the_old_aside_and_deletes_nothing(tmp_path, capsys):
    out = tmp_path / "out"
    line = [*SIMULATED, "workload.num_requests=2", f"out={out}"]
    assert main(line) == 0
    old = (out / "trials.parquet").read_bytes()
    assert main([*line, "fresh=true"]) == 0
    (aside,) = [path for path in tmp_path.iterdir() if path != out]
    assert (aside / "trials.parquet").read_bytes() == old
    assert (out / "trials.parquet").exists()
    assert "old results moved to" in capsys.readouterr().out


def test_a_failure_is_data_listed_with_reason_and_log_and_ends_with_status_1(tmp_path, capsys):
    out = tmp_path / "out"
    assert main([*SIMULATED, "backend.die_at_launch=error", f"out={out}"]) == 1
    (trial,) = analysis.load(out).itertuples()
    assert trial.outcome == "launch_failed"
    assert math.isnan(trial.output_throughput), "a failure has no throughput, not even zero"
    said = capsys.readouterr().out
    assert "launch_failed" in said
    assert "engine.log" in said


def test_a_row_counts_what_is_left_out_of_its_engines_log(tmp_path):
    """An engine that logs 40 MB before it is ready."""
    python, size = tmp_path / "python", 40_000_000
    flood = f'case "$*" in *simulated_server*) yes "a line left at debug" | head -c {size};; esac'
    python.write_text(f'#!/bin/bash\n{flood}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    main([*SIMULATED, f"backend.env.python={python}", "load.batch_size=1", f"out={tmp_path / 'out'}", "report=false"])
    (row,), (log,) = read_trials(tmp_path / "out" / "trials.parquet"), (tmp_path / "out").rglob("engine.log")
    assert row["log_left_out"] >= size - supervisor.LOG_HEAD - supervisor.LOG_TAIL
    assert log.stat().st_size < size - row["log_left_out"] + 2**20


def test_without_a_report_the_end_says_how_to_get_one(tmp_path, capsys):
    out = tmp_path / "out"
    assert main([*SIMULATED, "report=false", f"out={out}"]) == 0
    assert f"report: out of date; sweep report {out} rewrites it" in capsys.readouterr().out
    assert not (out / "report.html").exists()
    assert not (out / "summary.csv").exists()
    assert main(["report", str(out)]) == 0
    assert f"report: {out / 'report.html'}" in capsys.readouterr().out
    assert main([*SIMULATED, f"out={out}"]) == 0
    assert f"report: {out / 'report.html'}" in capsys.readouterr().out


def test_a_command_with_nothing_to_do_says_so_and_what_shows_its_results(tmp_path, capsys, monkeypatch):
    """It reads no results; but what differs, as another SLO, is shown at once."""
    command = [*SIMULATED, "retry=none", f"out={tmp_path / 'out'}"]
    status = main(command)  # 1 if a busy machine delayed the client
    assert "nothing to do" not in capsys.readouterr().out
    with monkeypatch.context() as unread:
        unread.setattr("analysis.open_results", None)
        assert main(command) == status
    last = f"nothing to do; sweep summary {tmp_path / 'out'}\nreport: {tmp_path / 'out' / 'report.html'}\n"
    assert capsys.readouterr().out.endswith(last)
    assert main([*command, "slo={ttft: 5s}"]) == status
    assert "nothing to do" not in capsys.readouterr().out


def test_zero_completions_are_never_a_zero_throughput(tmp_path):
    out = tmp_path / "out"
    assert main([*SIMULATED, "backend.always_500=true", f"out={out}"]) == 1
    (trial,) = analysis.load(out).itertuples()
    assert trial.outcome == "invalid"
    assert "500" in trial.reason
    assert pd.isna(trial.output_throughput)
    assert pd.isna(trial.cost_per_million_tokens)


@pytest.mark.engine
@pytest.mark.ray
def test_the_main_job_on_real_engines(tmp_path):
    """Three engines on a real Ray: ok trials with figures, KV use from vLLM, then a second run in seconds."""
    command = [sys.executable, "-m", "sweep", "+experiment=throughput_bound", "model=tiny-llama", "replicates=1"]
    command += ["load.batch_size=1,4", "workload=sentiment", "workload.output_tokens=64", "tracking=none"]
    command += [f"out={tmp_path / 'out'}"]  # of short answers a busy machine's client takes more than 1 %
    root = Path(__file__).resolve().parents[2]
    for _ in range(2):  # as a user would: a trial that a busy machine spoilt is retried by the same command
        if subprocess.run(command, check=False, cwd=root, timeout=1500).returncode == 0:
            break
    else:
        pytest.fail("ended with a failure twice")
    trials = analysis.load(tmp_path / "out")
    assert set(trials.backend) == {"transformers", "vllm", "ctranslate2"}
    assert set(trials.outcome) == {"ok"}
    figures = ["output_throughput", "ttft_p50", "cost_per_million_tokens", "memory_peak_bytes"]
    assert trials[figures].notna().all(axis=None)
    assert trials[trials.backend == "vllm"].kv_cache_usage_max.gt(0).all()
    assert trials.engine_version.notna().all()
    began = time.monotonic()
    again = subprocess.run(command, check=True, cwd=root, timeout=300, capture_output=True, text=True)
    assert "launching the engine" not in again.stdout
    measured = analysis.load(tmp_path / "out").set_index("trial_id").started_at
    assert (measured[trials.trial_id].to_numpy() == trials.started_at.to_numpy()).all(), "nothing was measured again"
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(("relaunch", "launches"), [("auto", 4), ("once", 2)])
def test_where_engines_are_compared_each_replicate_is_measured_on_a_launch_of_its_own(tmp_path, relaunch, launches):
    command = [*SIMULATED, "backend.itl.mean=0.005,0.01", "load.batch_size=1,2", "replicates=2", "retry=next_run"]
    main([*command, f"relaunch={relaunch}", f"out={tmp_path / 'out'}"])  # on a busy machine a trial may be no result
    trials = analysis.load(tmp_path / "out").sort_values("started_at")
    assert trials["launch"].notna().all()
    assert trials["launch"].nunique() == launches
    replicates = trials.groupby(["deployment_id", "launch"])["replicate"].nunique()
    assert set(replicates) == {2 if relaunch == "once" else 1}
    changes = (trials["launch"] != trials["launch"].shift()).sum()
    assert changes == launches, "one after the other"
    if relaunch == "auto":
        assert list(trials["replicate"]) == [0] * 4 + [1] * 4, "a block after the other"


def test_endpoints_are_asked_in_turns_like_launches_and_a_warning_says_that_none_was_launched(tmp_path):
    """Two endpoints, three replicates: each block has both, and a report does not speak of launches."""
    command = ["backend=openai", "model=served", "workload=synthetic", "workload.input_tokens=16", "load=closed"]
    command += ["load.concurrency=2", "workload.output_tokens=4", "workload.num_requests=4", "replicates=3"]
    command += ["retry=next_run", "hardware=cpu", "cluster=inline", "tracking=none", f"out={tmp_path}"]
    with timed_server(ttft=0.2, itl=0.01) as one, timed_server(ttft=0.2, itl=0.02) as other:
        main([*command, f"backend.url={one},{other}"])
    results = analysis.open_results(tmp_path)
    trials = results.run.trials.sort_values("started_at")
    blocks = [trials.iloc[begin : begin + 2] for begin in (0, 2, 4)]
    assert [sorted(block["backend.url"]) for block in blocks] == [sorted([one, other])] * 3
    assert [set(block["replicate"]) for block in blocks] == [{0}, {1}, {2}]
    assert trials["launch"].isna().all()
    assert "endpoints-not-launched" in {warning.code for warning in results.warnings}
