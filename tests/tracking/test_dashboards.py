"""A run on W&B: what a stub of its server holds after `sweep wandb RUN`, and what lies in the folder without one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from analysis.results import open_results
from sweep.base.config import ROOT
from sweep.base.options import ConfigPath
from sweep.base.records import Sample
from sweep.disk import run_files
from sweep.disk.run_files import RunPaths
from sweep.plan.compose import compose_run
from sweep.plan.planning import Surroundings, make_plan
from tests.support import wandb_stub
from tests.support.results import claim_record, claims_in, question_in, run_of, trial
from tests.support.synthetic_run import finish_run

pytestmark = pytest.mark.slow

KEY = "0123456789abcdef" * 3
SECRET = "hf_secretsecretsecret"


def rows() -> list[dict[str, Any]]:
    """Two engines on two tasks: one at three loads, one at a single load."""
    made = []
    for backend, speed in (("vllm", 100.0), ("tgi", 60.0)):
        for replicate in (0, 1):
            for batch in (1, 4, 16):
                figures = {"ttft_p50": 0.05 * batch, "attempt": "1", "label": f"{backend} qa {batch}"}
                made.append(trial(backend, batch, replicate, speed * batch + replicate, **figures))
            other = trial(backend, 4, replicate, speed * 3, workload="chat", attempt="1")
            made.append({**other, "trial_id": f"{other['trial_id']}-chat"})
    made.append({**trial("tgi", 64, 0, None, attempt="1"), "outcome": "oom_run", "log_tail": "out of memory"})
    return made


def published(folder: Path, *arguments: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    """Publish as the user does, in an environment that says nothing else of W&B."""
    plain = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_") and key != "NETRC"}
    plain |= {"HOME": str(folder / "home"), "PYTHONPATH": str(ROOT), "HF_TOKEN": SECRET, **environ}
    command = [sys.executable, *(["-m"] if arguments[0] != "-c" else []), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, env=plain, cwd=folder)


def section_titles(spec: dict[str, Any]) -> dict[str, list[str]]:
    sections = spec["section"]["panelBankConfig"]["sections"]
    return {each["name"]: [panel["config"].get("chartTitle", "") for panel in each["panels"]] for each in sections}


def test_the_server_holds_the_table_the_artifacts_the_curves_and_the_views(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run_of(out, rows(), trials=17, replicates=2)
    claims_in(out, *(claim_record(10, 12, f"vllm {number}") for number in range(15)))
    question_in(out)
    with_telemetry = RunPaths(out).trial("vllm", "1", rows()[0]["trial_id"])
    run_files.write_telemetry(with_telemetry, [Sample(0.5, "kv_cache_usage", 0.25)])
    with wandb_stub.server() as (address, kept):
        login = {"WANDB_BASE_URL": address, "WANDB_API_KEY": KEY}
        done = published(tmp_path, "sweep", "wandb", str(out), **login)
        assert kept.unknown == []
        assert done.returncode == 0, done.stderr
        assert f"{address}/team/sweep?nw=" in done.stdout
        again = published(tmp_path, "sweep", "wandb", str(out), "--no-trials", **login)
        assert again.returncode == 0, again.stderr
    assert kept.unknown == []
    token = (out / "wandb" / "run-ids").read_text()
    assert len(kept.runs) == 18  # 17 trials and the whole
    assert {run["groupName"] for run in kept.runs.values()} == {f"x {token}"}
    whole = kept.runs[f"{token}-sweep"]
    assert whole["jobType"] == "sweep"
    assert "vllm is the fastest" in whole["summary"]["answer"]
    claimed = [whole["summary"][key] for key in ("capacity", "capacity_lower", "capacity_upper 9")]
    assert claimed == ["vllm 0: 10.0–12.0 requests/s", 10, 12]
    assert len([key for key in whole["summary"] if key.startswith("capacity")]) == 30
    assert (whole["summary"]["question_best"], whole["summary"]["question_answer"]) == ("vllm qa", ["best: vllm qa"])
    assert whole["summary"]["question"]["nrows"] == 2
    assert len([key for key in whole["summary"] if "/" not in key and key[0] != "_"]) <= 40
    _check_table_and_artifacts(kept, token, out)
    _check_history(kept, token)
    workspace, report = kept.views.values()  # saved twice, and still one of each
    spec = json.loads(workspace["spec"])
    assert list(section_titles(spec)) == ["Answer", "chat", "qa"]
    assert section_titles(spec)["qa"][0] == "Output throughput (tokens/s)"
    assert f"x {token}" in workspace["spec"]
    assert "curves of qa/output_throughput/vllm" in report["spec"]
    assert "vllm is the fastest at 4 of 4 tasks" in json.loads(report["spec"])["blocks"][1]["content"]
    sent = b"".join([*kept.bodies, done.stdout.encode(), done.stderr.encode()])
    assert KEY.encode() not in sent
    assert SECRET.encode() not in sent
    assert all("log_tail" not in run.get("summary", {}) for run in kept.runs.values())
    for file in out.rglob("*"):
        assert not (file.is_file() and KEY.encode() in file.read_bytes()), file


def _check_table_and_artifacts(kept: wandb_stub.Kept, token: str, out: Path) -> None:
    tables = [json.loads(body) for name, body in kept.files.items() if name.startswith(f"{token}-sweep/media/table/")]
    claimed = [table for table in tables if "cost_at_lower" in table["columns"]]
    assert {len(table["data"]) for table in claimed} == {15}
    tables = [table for table in tables if "outcomes" in table["columns"]]  # not of the question
    assert {"configuration", "task", "Throughput (tokens/s)", "TTFT p50 (ms)", "outcomes"} <= set(tables[0]["columns"])
    assert len(tables[0]["columns"]) <= 10
    assert len(tables[0]["data"]) == 9
    results = next(key for key, values in kept.artifacts.items() if values["artifactTypeName"] == "results")
    folder = f"artifact/{results}/"
    names = {name.removeprefix(folder) for name in kept.files if name.startswith(folder)}
    assert {"trials.parquet", "summary.csv", "report.html", "figures/output_throughput.png"} <= names
    assert kept.files[f"artifact/{results}/trials.parquet"] == (out / "trials.parquet").read_bytes()
    assert any("media/images/figures/output_throughput" in name for name in kept.files)
    assert any("media/html/report" in name for name in kept.files)


def _check_history(kept: wandb_stub.Kept, token: str) -> None:
    curves = [row for row in kept.history[f"{token}-sweep"] if "curves of qa/output_throughput/vllm" in row]
    assert [row["curves of qa/ttft_p50_ms/vllm"] for row in curves[:3]] == [50, 200, 800]
    assert [(row["x"], row["curves of qa/output_throughput/vllm"]) for row in curves[:3]] == [
        (1, 100.5),
        (4, 400.5),
        (16, 1600.5),
    ]
    samples = [row for row in kept.history[f"{token}-{rows()[0]['trial_id']}"] if "kv_cache_usage" in row]
    assert [(row["time"], row["kv_cache_usage"]) for row in samples] == [(0.5, 0.25)]


def test_without_a_login_the_workspace_lies_in_the_folder(tmp_path: Path) -> None:
    out = tmp_path / "results" / "run"  # by its name
    run_of(out, rows())
    done = published(tmp_path, "sweep", "wandb", "run", "--no-trials")
    assert done.returncode == 0, done.stderr
    assert f"wandb sync {out.relative_to(tmp_path)}/wandb/offline-run-*" in done.stdout
    assert len(list((out / "wandb").glob("offline-run-*"))) == 1
    view = json.loads((out / "wandb" / "workspace.json").read_text())
    assert view["displayName"] == "x: configurations by task"
    titles = section_titles(view["spec"])
    assert titles["qa"] == ["Output throughput (tokens/s)", "TTFT p50 (ms)"]
    kinds = {
        panel["viewType"]
        for section in view["spec"]["section"]["panelBankConfig"]["sections"]
        for panel in section["panels"]
    }
    assert kinds == {
        *("Run History Line Plot", "Bar Chart", "Markdown Panel"),
        *("Weave", "Scatter Plot", "Parallel Coordinates Plot"),
    }


@pytest.mark.parametrize("experiment", ConfigPath().choices("experiment"))
def test_a_finished_run_of_each_shipped_experiment_is_sent(tmp_path: Path, experiment: str) -> None:
    out = tmp_path / "run"
    arguments = [f"+experiment={experiment}", "replicates=1", "cluster=inline", f"out={out}"]
    plan = make_plan(compose_run(arguments, lambda cluster: "cpu"), Surroundings(lambda *_: "lock", lambda *_: None))
    ran = finish_run(plan, RunPaths(out))
    with wandb_stub.server() as (address, kept):
        done = published(tmp_path, "sweep", "wandb", str(out), WANDB_BASE_URL=address, WANDB_API_KEY=KEY)
    assert (done.returncode, done.stderr) == (0, "")
    assert kept.unknown == []
    token = (out / "wandb" / "run-ids").read_text()
    assert set(kept.runs) == {f"{token}-{name}" for name in (*ran, "sweep")}
    warned = [row for row in run_files.read_trials(out / "trials.parquet") if row["warnings"]]
    assert any(len(row["warnings"]) > 1 for row in warned)
    for row in warned:
        assert kept.runs[f"{token}-{row['trial_id']}"]["summary"]["warnings"] == row["warnings"]
    workspace, report = (json.loads(view["spec"]) for view in kept.views.values())
    layout = open_results(out).layout
    panels = {section["name"]: section["panels"] for section in workspace["section"]["panelBankConfig"]["sections"]}
    assert list(panels) == ["Answer", *layout.visible_panels]
    for task, (first, *_) in list(panels.items())[1:]:
        lines = layout.points.loc[layout.points["panel"].eq(task) & layout.points["n"].gt(0), "line"].unique()
        keys = first["config"].get("metrics") or first["config"]["metric"]
        assert set(keys) == {f"curves of {task}/output_throughput/{line}" for line in lines}, "each configuration"
    assert report["blocks"]
    assert all(len(run["summary"]) <= 40 for key, run in kept.runs.items() if not key.endswith("-sweep"))


def sweep_of_one_trial(folder: Path, *more: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    line = ["backend=simulated", "model=tiny-llama", "workload=qa", "workload.output_tokens=4", "load.batch_size=4"]
    line += ["workload.num_requests=4", "backend.ttft.mean=0.2", "cluster=inline", "hardware=cpu", "tracking=wandb"]
    done = published(folder, "sweep", *line, *more, "out=run", "name=alone", **environ)
    assert done.returncode in (0, 1), done.stderr  # a busy machine limits the client
    assert "warning: tracking" not in done.stdout + done.stderr
    return done


@pytest.mark.parametrize(("more", "runs"), [((), 2), (("tracking.trials=false",), 1)])
def test_a_sweep_ends_with_its_workspace_and_how_to_sync(tmp_path: Path, more: tuple[str, ...], runs: int) -> None:
    done = sweep_of_one_trial(tmp_path, *more)
    tracking = tmp_path / "run" / "wandb"
    *_, report, sync = done.stdout.splitlines()
    assert report == f"report: {tmp_path}/run/report.html", "the answer, then the paths, a line each"
    assert sync == f"W&B: wandb sync {tracking}/offline-run-*"
    assert len(list(tracking.glob("offline-run-*"))) == runs  # the trial, and the whole
    assert (tracking / "workspace.json").is_file()


def test_with_a_login_a_sweep_ends_with_all_of_it_on_the_server(tmp_path: Path) -> None:
    with wandb_stub.server() as (address, kept):
        done = sweep_of_one_trial(tmp_path, WANDB_BASE_URL=address, WANDB_API_KEY=KEY)
    assert kept.unknown == []
    out = tmp_path / "run"
    (row,) = run_files.read_trials(out / "trials.parquet")
    token = (out / "wandb" / "run-ids").read_text()
    assert set(kept.runs) == {f"{token}-{row['trial_id']}", f"{token}-sweep"}
    assert {run["groupName"] for run in kept.runs.values()} == {f"alone {token}"}
    summary = kept.runs[f"{token}-{row['trial_id']}"]["summary"]
    assert summary["output_throughput"] == pytest.approx(row["output_throughput"])
    assert summary["ttft_p50_ms"] == pytest.approx(1000 * row["ttft_p50"])
    stored = [content for name, content in kept.files.items() if name.endswith("/trials.parquet")]
    assert stored == [(out / "trials.parquet").read_bytes()]
    assert any(name.startswith(f"{token}-sweep/media/table/") for name in kept.files)
    assert f"alone {token}" in "".join(view["spec"] for view in kept.views.values())
    assert f"{address}/team/sweep?nw=" in done.stdout
    assert "wandb sync" not in done.stdout
    assert list((out / "wandb").glob("offline-run-*")) == []
    assert not any(KEY.encode() in file.read_bytes() for file in out.rglob("*") if file.is_file())


def test_a_folder_without_a_run_is_bad_input(tmp_path: Path) -> None:
    done = published(tmp_path, "sweep", "wandb", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.strip() == f"error: {tmp_path}: no run here (trials.parquet is missing)"


def test_a_server_that_refuses_is_one_line(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run_of(out, rows()[:1])
    login = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": KEY}
    quick = "from analysis.tracking import publish as p; p.INIT_TIMEOUT = 2; p._login_entity = lambda: 'team'; "
    quick += "raise SystemExit(p.main('run', None, None, True))"
    done = published(tmp_path, "-c", quick, **login)
    assert done.returncode == 1
    assert done.stderr.strip().startswith("error: W&B: ")
    assert "\n" not in done.stderr.strip()
