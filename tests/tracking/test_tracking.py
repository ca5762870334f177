"""What is tracked can be read back from disk, and no fault of tracking reaches the sweep."""

import json
import logging
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from analysis.tracking import process
from analysis.tracking.tracker import Tracker, run_name, wandb_run
from sweep.base.config import Tracking
from sweep.base.records import Sample
from sweep.cli.run import _tracker
from sweep.disk.run_files import RunPaths

ROW = {
    "trial_id": "abc",
    "label": "vllm m qa batches of 8 replicate 0",
    "backend": "vllm",
    "model": "m",
    "workload": "qa",
    "load": "batch",
    "batch_size": 8,
    "replicate": 0,
    "outcome": "ok",
    "output_throughput": 123.5,
    "ttft_p50": 0.25,
    "tpot_p50": None,
    "config": json.dumps({"load": {"batch_size": 8}}),
}
TELEMETRY = [
    Sample(0.0, "kv_cache_usage", 0.125),
    Sample(0.0, "gpu_memory_bytes", 1e9, "0"),
    Sample(0.5, "kv_cache_usage", 0.5),
]


@pytest.fixture(autouse=True)
def no_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def wandb() -> Tracking:
    return Tracking(name="wandb", kind="wandb", project="sweep")


def records(file: Path) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def of_type(found: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [record[kind] for record in found if record["type"] == kind]


@pytest.mark.slow
def test_offline_runs_can_be_read_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker = Tracker(wandb(), "throughput_bound", tmp_path / "wandb")
    tracker.log_trial(ROW, TELEMETRY)
    tracker.log_trial({**ROW, "trial_id": "def", "outcome": "hung", "output_throughput": None}, [])
    tracker.close()
    assert caplog.text == ""
    found = [records(file) for file in (tmp_path / "wandb").glob("offline-run-*/*.wandb")]
    runs = {of_type(one, "run")[0]["config"]["update"]["trial_id"]: one for one in found}
    assert set(runs) == {"abc", "def"}
    run = of_type(runs["abc"], "run")[0]
    token = (tmp_path / "wandb" / "run-ids").read_text()
    assert (run["run_group"], run["project"], run["display_name"]) == (
        f"throughput_bound {token}",  # another run of the experiment is another group
        "sweep",
        "vllm m qa batches of 8 replicate 0",
    )
    assert run["config"]["update"]["config"] == {"load": {"batch_size": 8}}
    summary = {key: value for part in of_type(runs["abc"], "summary") for key, value in part["update"].items()}
    assert (summary["output_throughput"], summary["ttft_p50_ms"], summary["outcome"]) == (123.5, 250, "ok")
    assert "tpot_p50" not in summary
    assert "kv_cache_usage" not in summary  # a last reading says nothing
    steps = [step["item"] for step in of_type(runs["abc"], "history")]
    assert [(step["time"], step["kv_cache_usage"]) for step in steps] == [(0, 0.125), (0.5, 0.5)]
    assert steps[0]["gpu_memory_bytes/0"] == 1e9
    assert of_type(runs["def"], "exit") == [{"exit_code": 1}]


def test_none_starts_nothing(tmp_path: Path) -> None:
    settings = SimpleNamespace(tracking=Tracking(name="none", kind="none"))
    assert _tracker(settings, RunPaths(tmp_path)) is None


@pytest.mark.slow
def test_an_unreachable_server_means_offline_and_the_key_stays_out_of_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    key = "0123456789abcdef" * 3
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    started = time.monotonic()
    tracker = Tracker(wandb(), "x", tmp_path / "wandb", init_timeout=2)
    tracker.log_trial(ROW, TELEMETRY)
    assert time.monotonic() - started < 1  # the sweep does not wait
    tracker.close()
    assert len(caplog.records) == 1
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 1
    for file in tmp_path.rglob("*"):
        assert not (file.is_file() and key.encode() in file.read_bytes()), file


@pytest.mark.parametrize("fault", ["exit 3", "sleep 60"])
def test_a_process_that_dies_or_hangs_is_one_warning(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\n{fault}\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    tracker = Tracker(wandb(), "x", tmp_path / "wandb")
    for _ in range(200):  # more than a pipe holds
        tracker.log_trial({**ROW, "log_tail": "x" * 4000}, TELEMETRY)
    tracker.close(timeout=0.5)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "the sweep continues" in caplog.text


def test_a_folder_that_cannot_be_made_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "wandb").write_text("in the way")
    tracker = Tracker(wandb(), "x", tmp_path / "wandb")
    tracker.log_trial(ROW, TELEMETRY)
    tracker.log_trial(ROW, TELEMETRY)
    tracker.close()
    assert len(caplog.records) == 1


def test_a_login_is_looked_for_where_wandb_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not process.has_login()
    file = tmp_path / "netrc"
    file.write_text("machine api.wandb.ai login user password secret\n")
    file.chmod(0o600)
    monkeypatch.setenv("NETRC", str(file))
    assert process.has_login()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not process.has_login()


def test_axes_are_config_to_group_by_and_the_label_is_the_name() -> None:
    axes = {"load.batch_size": 8, "ladder": "b", "ladder_parent": "a", "backend.flags.max-num-seqs": 64}
    run = wandb_run({**ROW, **axes, "backend.dtype": None})
    assert run["name"] == ROW["label"]
    assert run["config"]["ladder"] == "b"
    assert run["config"]["backend_flags_max_num_seqs"] == 64
    assert run["config"]["load_batch_size"] == 8
    assert run["config"].keys() & run["summary"].keys() == set()
    assert set(run["summary"]) == {"outcome", "output_throughput", "ttft_p50_ms"}


def test_the_figures_of_sessions_are_tracked_with_latencies_in_milliseconds() -> None:
    latencies = [f"{turn}_turn_{name}_p50" for turn in ("first", "later") for name in ("ttft", "tpot")]
    latencies += ["session_duration_p50"]
    others = ["sessions_per_hour", "later_turn_cached_share", "later_turn_sent_hit_rate", "replay_hit_error"]
    others += ["cache_hit_difference", "replay_exact_lengths", "replay_exact_turns"]
    summary = wandb_run({**ROW, **dict.fromkeys((*latencies, *others), 0.5)})["summary"]
    assert {name: summary.get(name) for name in others} == dict.fromkeys(others, 0.5)
    assert {name: summary.get(f"{name}_ms") for name in latencies} == dict.fromkeys(latencies, 500)
    assert not summary.keys() & set(latencies), "one name per figure"


def test_a_long_name_is_cut_and_still_one_of_its_own() -> None:
    names = {run_name({**ROW, "trial_id": trial_id, "label": "y" * 200}) for trial_id in ("abc", "def")}
    assert {len(name) for name in names} == {128}
    assert len(names) == 2


def test_latencies_by_the_engines_own_stamps_are_not_tracked() -> None:
    summary = wandb_run({**ROW, "client_stamp_source": "engine", "goodput": 1.0})["summary"]
    assert set(summary) == {"outcome", "output_throughput", "client_stamp_source"}


@pytest.mark.slow
def test_a_trial_tried_again_has_the_same_id_and_that_of_another_folder_has_not(tmp_path: Path) -> None:
    for folder, outcomes in (("one", ["hung", "ok"]), ("other", ["ok"])):
        for outcome in outcomes:  # each by a process of its own, as when the sweep was stopped between them
            tracker = Tracker(wandb(), "x", tmp_path / folder / "wandb")
            tracker.log_trial({**ROW, "outcome": outcome}, [])
            tracker.close()
    ids = [
        [of_type(records(file), "run")[0]["run_id"] for file in (tmp_path / folder / "wandb").glob("offline-*/*.wandb")]
        for folder in ("one", "other")
    ]
    assert (len(ids[0]), len(set(ids[0])), len(ids[1])) == (2, 1, 1)
    assert ids[1][0] not in ids[0]
