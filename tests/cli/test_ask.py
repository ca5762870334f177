"""Questions through the whole command: the answer, what is measured for it, and how a killed search goes on."""

import csv
import itertools
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from analysis import open_results
from analysis.report.notebook import opened_run
from sweep.__main__ import main
from sweep.cli.searches.asked_capacity import capacity_of
from sweep.cluster.replay_executor import ReplayExecutor
from sweep.disk.run_files import RunPaths, read_trials
from sweep.search import capacity
from tests.support.results import claim_record
from tests.support.simulated_engine import ROOT
from tests.support.waiting import wait_until

ENGINE = ["backend=simulated", "model=tiny-llama", "tracking=none", "report=false", "hardware=cpu"]
AXES = {"backend.itl.mean": (0.01, 0.02, 0.03, 0.04), "backend.itl.sigma": (0.0, 0.1, 0.2)}
USERS = (2, 8, 32)
GRID = [*(f"{key}={','.join(map(str, values))}" for key, values in AXES.items()), "load=closed"]
GRID += [f"load.concurrency={','.join(map(str, USERS))}"]
QUESTION = ["ask.best=output_throughput", "ask.slo=ttft.p90=0.5s"]
BEST = (0.02, 0.1, 8)  # at 32 users every TTFT is above the bound


def table(path, failing=0.04, spread=0.02):
    """Rows of eight launches of each configuration; those with the mean `failing` do not start."""
    noise = random.Random(1)
    columns = [*AXES, "concurrency", "replicate", "outcome", "output_throughput", "ttft_p90"]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*columns, "startup_seconds", "wall_seconds"])
        for mean, sigma, replicate in itertools.product(*AXES.values(), range(8)):
            speed = (1 - 8 * abs(mean - 0.02)) * (1 - 2 * abs(sigma - 0.1)) * noise.lognormvariate(0, spread)
            for users in USERS:
                figures = ["ok", 100 * users * speed / (1 + users / 20), 0.05 * users / speed]
                figures = ["launch_failed", None, None] if failing in (mean, "all") else figures
                writer.writerow([mean, sigma, users, replicate, *figures, 90, 30])
    return path


def ask(tmp_path, *more, nodes=1, out="out"):
    source = tmp_path / "rows.csv"
    cluster = [f"cluster.replay={source if source.exists() else table(source)}", "retry=none"]
    cluster += [f"cluster.simulate={{nodes: {nodes}, gpus: 0}}", f"out={tmp_path / out}"]
    return main([*ENGINE, *GRID, *cluster, *QUESTION, *more])


def ask_vllm(tmp_path, axis, lines, *more):
    source, columns = tmp_path / "rows.csv", "gpu_count,replicate,outcome,output_throughput,startup_seconds"
    source.write_text("\n".join([f"{axis},{columns},wall_seconds", *lines]))
    command = ["backend=vllm", "model=tiny-llama", "load=closed", "load.concurrency=8", "hardware=h100", *QUESTION[:1]]
    command += ["tracking=none", "report=false", f"cluster.replay={source}", f"out={tmp_path / 'out'}"]
    return main([*command, *more])


def measured(tmp_path, out="out"):
    rows = read_trials(RunPaths(tmp_path / out).trials)
    return sorted((*(row[key] for key in AXES), row["concurrency"], row["replicate"], row["outcome"]) for row in rows)


def answer(tmp_path, capsys, out="out"):
    capsys.readouterr()
    main(["summary", str(tmp_path / out), "--format", "json"])
    (claims,) = json.loads(capsys.readouterr().out)["claims"].values()
    return claims["best output_throughput"]


@pytest.mark.slow
def test_a_question_is_answered_from_a_part_of_the_grid_and_a_killed_search_agrees(tmp_path, capsys):
    assert ask(tmp_path) == 1, "what failed is a row"
    printed = " ".join(capsys.readouterr().out.split())
    assert "ask: the best output_throughput within the SLO, within 5%, 95% sure" in printed
    assert "launches, at most 40; the grid has 12 launches" in printed
    assert "so far simulated tiny-llama" in printed
    best = "mean=0.02 sigma=0.1 synthetic 8 users"
    assert f"best: simulated tiny-llama {best}: output_throughput 5" in printed
    assert "how sure: within 5% of the best of 36 points, 95% sure; launches of a configuration differ by" in printed
    found = answer(tmp_path, capsys)
    assert (found["within"], found["sure"], found["launches_of_grid"]) == (0.05, 0.95, 12)
    assert found["best"].endswith(best)
    assert 0 < found["launch_noise"] <= 0.03
    rows = measured(tmp_path)
    points = {row[:3] for row in rows}
    assert len(points) < 20
    assert all(row[-1] in ("ok", "launch_failed") for row in rows), "what was not measured is no row"
    assert sum(row[:3] == BEST for row in rows) >= 2
    failed = {row[:2] for row in rows if row[-1] == "launch_failed"}
    launches = {(*row[:2], row[3]) for row in rows if row[-1] == "launch_failed"}
    assert len(failed) == len(launches) > 0, "whatever the load"
    assert sum("failed: launch_failed" in reason for reason in found["dropped"].values()) == len(USERS) * len(failed)
    assert open_results(tmp_path / "out").questions["best output_throughput"] == found

    ledger = RunPaths(tmp_path / "out").ledger
    lines = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join(lines[: len(lines) // 2]))
    assert ask(tmp_path) == 1
    assert measured(tmp_path) == rows, "the rows decide what is launched next"
    assert answer(tmp_path, capsys) == found
    before = ledger.read_bytes()
    ask(tmp_path)
    assert "nothing to do" in capsys.readouterr().out
    assert ledger.read_bytes() == before


@pytest.mark.slow
def test_if_every_launch_fails_each_configuration_is_launched_once(tmp_path, capsys):
    with table(tmp_path / "rows.csv", failing="all").open("a") as file:
        print("0.09,0.0,2,0,ok,1,1,90,30", file=file)  # of no point
    assert ask(tmp_path) == 1
    assert "best: none: every point failed" in " ".join(capsys.readouterr().out.split())
    launched = {(*row[:2], row[3]) for row in measured(tmp_path)}
    assert launched == set(itertools.product(*AXES.values(), [0]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("quantity", "gpus", "value"), [("output_throughput", 4, 22), ("output_throughput_per_gpu", 1, 10)]
)
def test_a_throughput_counts_the_gpus_if_it_is_asked_per_gpu(tmp_path, capsys, quantity, gpus, value):
    speeds, cluster = {1: 100, 2: 160, 4: 220}, "cluster.simulate={nodes: 1, gpus: 4, accelerator: H100}"
    lines = [f"{n},{n},{each},ok,{speeds[n] + each},90,30" for n in speeds for each in range(8)]
    assert ask_vllm(tmp_path, "backend.gpus", lines, cluster, "backend.gpus=1,2,4", f"ask.best={quantity}") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"8 users: {quantity} {value}" in printed
    assert f"gpus={gpus}" in printed[printed.index("best: ") :]


@pytest.mark.slow
@pytest.mark.figures
def test_the_report_and_python_show_what_was_measured_dropped_and_predicted(tmp_path, capsys):
    assert ask(tmp_path, "report=true") == 1
    assert "dropped: " in capsys.readouterr().out
    found, out = answer(tmp_path, capsys), tmp_path / "out"
    states = opened_run(out).question.set_index("point")
    rows = measured(tmp_path)
    assert set(states.index[states["state"] == "measured"]) == set(found["measured"])
    assert len(found["measured"]) == len({row[:3] for row in rows if row[-1] == "ok"})
    assert dict(states["state"])[next(iter(found["dropped"]))].startswith("failed: launch_failed")
    assert any(state.startswith("not launched: with a probability") for state in found["dropped"].values())
    unmeasured = states[states["state"] == "not measured"]
    assert unmeasured["measured"].isna().all()
    assert (unmeasured["predicted_low"] < unmeasured["predicted_high"]).all()
    assert len(unmeasured) > 0
    low, middle, high = found["predicted"][found["best"]]
    assert low < middle < high
    assert low < found["measured"][found["best"]] < high
    page, chart = (out / "report.html").read_text(), (out / "figures" / "predicted.svg").read_text()
    assert 'figure-predicted"' in page
    assert "Points measured and dropped" in page
    assert "launch_failed" in page
    assert "predicted, 90% band" in chart
    assert chart.count("sigma=") == len(found["predicted"])


@pytest.mark.slow
def test_optuna_searches_in_place_of_the_model_and_states_no_certainty(tmp_path, capsys):
    pytest.importorskip("optuna")
    assert ask(tmp_path, "ask.search=optuna", nodes=2) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "ask: the best output_throughput within the SLO, by Optuna's TPE, which states no certainty" in printed
    assert "12 launches, and those that repeat the leader; the grid has 12 launches" in printed
    assert "how sure: unknown, since Optuna states no certainty (docs/ask.md); launches of a conf" in printed
    found = answer(tmp_path, capsys)
    assert found["best"].endswith("mean=0.02 sigma=0.1 synthetic 8 users")
    assert (found["sure"], found["probability"], found["open"]) == (None, None, None)
    rows = measured(tmp_path)
    assert len({row[:2] for row in rows}) == 12, "as many launches as configurations"
    ask(tmp_path, "ask.search=optuna", nodes=2)
    assert measured(tmp_path) == rows


def test_optuna_is_refused_with_its_command_if_it_is_not_installed(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert ask(tmp_path, "ask.search=optuna", "dry_run=true") == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: ask.best=output_throughput: expected Optuna for ask.search=optuna; pip install optuna"
    ]


@pytest.mark.slow
def test_free_nodes_are_used_at_once(tmp_path, capsys):
    ask(tmp_path, nodes=1, out="one")
    ask(tmp_path, nodes=4, out="four")
    begun = [row["started_at"] for row in read_trials(RunPaths(tmp_path / "four").trials)]
    assert len(begun) - len(set(begun)) >= 3, "four launches begin together"
    assert answer(tmp_path, capsys, "four")["best"] == answer(tmp_path, capsys, "one")["best"]


@pytest.mark.slow
def test_launches_on_several_nodes_each_run_side_by_side(tmp_path):
    lines = [f"{n},2,{each},ok,{n + each},90,30" for n in (64, 128, 256) for each in range(8)]
    key, cluster = "backend.flags.max-num-seqs", "cluster.simulate={nodes: 4, gpus: 1, accelerator: H100}"
    assert ask_vllm(tmp_path, key, lines, cluster, f"{key}=64,128,256", "backend.replicas=2") == 0
    begun = [row["started_at"] for row in read_trials(RunPaths(tmp_path / "out").trials)]
    assert len(begun) > len(set(begun)), "two launches begin together, on two nodes each"


@pytest.mark.slow
def test_an_autoscaler_adds_nodes_for_the_next_launches(tmp_path, capsys, monkeypatch):
    def add_node(executor, needs, left):
        nodes = executor.schedulable_nodes
        if needs and len(nodes) < 3:
            nodes.append(nodes[0]._replace(node_id=f"added-{len(nodes)}"))

    monkeypatch.setattr(ReplayExecutor, "request_capacity", add_node)
    ask(tmp_path)
    begun = [row["started_at"] for row in read_trials(RunPaths(tmp_path / "out").trials)]
    assert len(begun) - len(set(begun)) >= 2, "launches begin together on the nodes that were added"
    assert answer(tmp_path, capsys)["best"].endswith("mean=0.02 sigma=0.1 synthetic 8 users")


@pytest.mark.slow
def test_a_question_is_put_to_engines(tmp_path, capsys):
    load = ["workload=synthetic", "workload.num_requests=4", "workload.input_tokens=8", "workload.output_tokens=16"]
    command = [
        *ENGINE,
        *load,
        "load.batch_size=4",
        "cluster=inline",
        "agreement=false",
        "backend.itl.mean=0.05,0.1,0.2",
    ]
    assert main([*command, "ask.best=tpot_p50", f"out={tmp_path / 'out'}"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "best: simulated tiny-llama mean=0.05 synthetic batches of 4: tpot_p50" in printed


SLOTS = (1, 2, 4)
SEARCHED = [*ENGINE, "cluster=inline", "agreement=false", "load=poisson", "workload=serving", "workload.spread=0"]
SEARCHED += ["workload.input_tokens=16", "workload.output_tokens=11", "backend.ttft.mean=0.1", "ask.best=capacity"]
SEARCHED += ["backend.itl.mean=0.01", f"backend.max_concurrency={','.join(map(str, SLOTS))}"]
MOST = 16.85  # requests/s with four slots and 0.01 s: 90% of an M/D/4 queue's requests wait 0.3 s at most


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_highest_capacity_is_found_by_searches_and_a_killed_question_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(capacity, "LONG_RUN", 4000)
    out = tmp_path / "out"
    command = [*SEARCHED, "ask.slo=ttft=0.4s", "capacity.budget=20s", f"out={out}"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-m", "sweep", "run", *command], env=environ)
    wait_until(lambda: len(claims(out)) >= 2, 500, "two claims")
    process.kill()
    process.wait()
    known = claims(out)
    assert main(command) in (0, 1)
    printed = " ".join(capsys.readouterr().out.split())
    found = open_results(out).questions["best capacity"]
    assert "ask: the best capacity within the SLO, within 5%, 95% sure; each launch is a search of 20 s" in printed
    assert "the grid has 3 launches" in printed
    assert "so far simulated tiny-llama" in printed
    assert found["best"] == "simulated tiny-llama max_concurrency=4 serving poisson"
    assert f"best: {found['best']}: {found['value']}" in printed
    assert found["value"].endswith(" requests/s")
    assert found["measured"][found["best"]] == pytest.approx(MOST, rel=0.35)
    claimed = claims(out)
    assert claimed.items() >= known.items(), "claims of earlier runs stay"
    assert found["launches"] == len(claimed) >= 4
    launches = [claim["launch"] for claim in claimed.values() if claim["launch"]]
    assert len(set(launches)) == len(launches), "each search has a launch of its own"
    assert sum("max_concurrency=4" in name for name in claimed) >= 2, "the leader is launched again"
    if all(claim["finished"] for claim in claimed.values()):  # on a busy machine a probe is measured again
        rows = {row["trial_id"]: row for row in read_trials(RunPaths(out).trials)}
        assert main(command) in (0, 1)
        assert {row["trial_id"]: row for row in read_trials(RunPaths(out).trials)} == rows
        assert open_results(out).questions["best capacity"] == found


def claims(out):
    path = Path(out) / "capacity.json"
    return json.loads(path.read_text()) if path.exists() else {}


def test_configurations_without_a_capacity_are_named_with_the_reason(tmp_path, capsys):
    bounds = ["ask.slo=ttft=1ms", "capacity.budget=2s", f"out={tmp_path / 'out'}"]
    assert main([*SEARCHED, *bounds]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "best: none: every point failed" in printed
    found = open_results(tmp_path / "out").questions["best capacity"]
    assert found["best"] is None
    reason = "capacity: none: a single request exceeds the bound"
    claimed = claims(tmp_path / "out").values()
    ended = {claim["configuration"]: claim["ended"] for claim in claimed}
    names = [f"simulated tiny-llama max_concurrency={slots}" for slots in SLOTS]
    assert found["dropped"] == {f"{name} serving poisson": f"failed: {ended[name] or reason}" for name in names}
    assert all(re.match("buffered-stream|$", each) for each in ended.values()), "doubted only on a busy machine"
    assert {claim["probes"] for claim in claimed} == {1}


def test_a_plan_says_how_long_the_searches_of_a_question_take(tmp_path, capsys):
    slo, out = "ask.slo=ttft=0.4s", f"out={tmp_path / 'out'}"
    assert main([*SEARCHED, slo, out, "capacity.max_failed=1%", "dry_run=true"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "95% sure; each launch is a search of 4 min" in printed
    assert "expected: 3 (12 min) to 5 (20 min) launches, at most 22 (88 min); the grid has 3 launches" in printed


def test_the_capacity_of_a_claim_is_the_likely_one_or_the_middle_of_its_interval():
    assert capacity_of(claim_record(4.0, 9.0, estimate=8.0)) == 8.0
    assert capacity_of(claim_record(0.0, 0.0, estimate=None)) == 0.0
    ends = (4.0, 9.0), (4.0, 0.0), (0.0, 9.0)
    assert [capacity_of(claim_record(low, high)) for low, high in ends] == [6.0, 4.0, 0.0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["load.rate=1,2"], "load.rate=1,2: expected no axis; a capacity search chooses the load"),
        (["load=gamma", "load.burstiness=0.5,2"], "ask.best=capacity: expected one load"),
        (["load=batch"], "load=batch: expected closed, trace, or a load with a rate"),
        (["ask.slo=null"], "slo=null: expected the bounds that define the capacity"),
        (["race=true"], "ask.best=capacity: expected no race"),
        (["ask.best=capacities"], "ask.best=capacities: expected a quantity with a better direction"),
    ],
)
def test_a_capacity_that_cannot_be_asked_for_is_refused(capsys, tmp_path, arguments, words):
    assert words in refusal(capsys, tmp_path, [*SEARCHED, "ask.slo=ttft=0.4s", *arguments])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ask.best=nope"], "ask.best=nope: expected a quantity with a better direction"),
        (["ask.best=goodput"], "ask.best=goodput: expected a quantity with a better direction"),
        (["ask.best=cost_per_million_tokens", "hardware.price_per_hour=null"], "expected a price"),
        (["race=true"], "ask.best=output_throughput: expected no race"),
        (["capacity.budget=8m"], "ask.best=output_throughput: expected no capacity"),
        (["ladder=[{step: a, set: {}}]"], "ask.best=output_throughput: expected no ladder"),
        (["relaunch=once"], "ask.best=output_throughput: expected relaunch=per_replicate"),
        (["backend.itl.mean=0.01", "backend.itl.sigma=0.1", "load.concurrency=8"], "expected an axis"),
        (["workload.output_tokens=8,16"], "ask.best=output_throughput: expected one workload"),
        (
            ["load=closed,batch", "when={load.concurrency: {load: [closed]}}"],
            "ask.best=output_throughput: expected one kind of load",
        ),
        (["ask.slo=ttft.p91=1s"], "expected a percentile of p50, p90, p95, p99"),
        (["slo=ttft=1s"], "ask.slo: slo is set as well; keep one"),
        (["ask.slo=ttft=1"], "ttft=1: expected a unit"),
        (["ask.within=0%"], "ask.within=0.0: input should be greater"),
        (["ask.sure=2"], "ask.sure=2: input should be less"),
    ],
)
def test_a_question_that_cannot_be_asked_is_refused(capsys, tmp_path, arguments, words):
    assert words in refusal(capsys, tmp_path, [*ENGINE, *GRID, "cluster=inline", *QUESTION, *arguments])


@pytest.mark.parametrize("quantity", ["output_throughput", "capacity"])
def test_a_question_without_a_configuration_that_can_be_launched_is_refused(capsys, tmp_path, quantity):
    gpu = ["backend=sglang", "backend.flags.max-running-requests=64,128", "ask.slo=ttft=1s", f"ask.best={quantity}"]
    error = refusal(capsys, tmp_path, [*ENGINE, *gpu, "load=poisson", "workload=serving"])
    assert f"ask.best={quantity}: expected a configuration that can be launched; sglang needs a CUDA GPU" in error


def refusal(capsys, tmp_path, command):
    """The one line that refuses a command before anything is written."""
    out = tmp_path / "out"
    assert main([*command, f"out={out}"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert not out.exists()
    return line
