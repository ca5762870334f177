"""Races through the whole command: what is dropped, what the answer says about it, and how a race goes on."""

import json
from dataclasses import replace

import pytest

from analysis.load import open_run, requests
from sweep.__main__ import main
from sweep.cli.searches.race import PlannedRace
from sweep.disk.run_files import RunPaths, read_trials
from tests.drive.test_driver import Scripted, drive, make_plan, replicated

ENGINE = ["backend=simulated", "model=tiny-llama", "workload=synthetic", "cluster=inline", "tracking=none"]
ENGINE += ["agreement=false", "report=false"]
LOAD = ["workload.num_requests=4", "workload.input_tokens=8", "workload.output_tokens=16", "load.batch_size=4"]


def outcomes(out):
    """Each configuration's outcomes, by replicate."""
    rows = sorted(read_trials(RunPaths(out).trials), key=lambda row: (row["backend.itl.mean"], row["replicate"]))
    by_engine = {}
    for row in rows:
        by_engine.setdefault(row["backend.itl.mean"], []).append(row["outcome"])
    return by_engine


def every(expected):
    return dict.fromkeys((0.01, 0.03, 0.05), expected)


@pytest.mark.slow
def test_slow_engines_are_dropped_and_run_after_all_without_the_race(tmp_path, capsys):
    out = tmp_path / "out"
    command = [*ENGINE, *LOAD, "backend.itl.mean=0.01,0.03,0.05", f"out={out}"]
    assert main([*command, "replicates=3", "race=true"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "race: after 2 replicates, points that are surely not the best by output_throughput are dropped" in printed
    assert "6 to 9 launches" in printed
    assert outcomes(out) == every(["ok", "ok", "dropped"])
    assert "race: 3 trials dropped, since the answer does not need them" in printed
    assert "dropped by the race: simulated, mean 0.03, simulated, mean 0.05" in printed
    assert "missing-replicates" not in printed
    assert main(["summary", str(out), "--format", "json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)["answers"]
    reasons = [each["dropped"] for each in answer["configurations"]]
    assert reasons[0] == "surely the best after 2 of 3 replicates: no rival is left"
    assert all("surely not the best after 2 of 3 replicates: throughput 0." in reason for reason in reasons[1:])

    assert main([*command, "replicates=3", "race=true"]) == 0
    assert "nothing to do" in capsys.readouterr().out
    ledger = RunPaths(out).ledger.read_text()
    assert main([*command, "replicates=4", "race=true"]) == 0
    assert '"attempt_placed"' not in RunPaths(out).ledger.read_text().removeprefix(ledger), "rows alone decide"
    assert outcomes(out) == every(["ok", "ok", "dropped", "dropped"])
    assert main([*command, "replicates=3"]) == 0
    assert outcomes(out) == every(["ok"] * 3)
    replayed = tmp_path / "replayed"
    cluster = [f"cluster.replay={RunPaths(out).trials}", "cluster.simulate={nodes: 1, gpus: 0}"]
    assert main([*command[:-1], f"out={replayed}", "replicates=3", *cluster]) == 0
    assert "of simulated time; nothing was measured in this run" in capsys.readouterr().out
    measured, again = (open_run(folder).ok.sort_values(["backend.itl.mean", "replicate"]) for folder in (out, replayed))
    for column in ("output_throughput", "ttft_p50", "accelerator"):
        assert list(again[column]) == list(measured[column])
    assert not set(again["trial_id"]) & set(measured["trial_id"])
    assert len(requests(replayed)) == len(requests(out)) > 0, "copied, so that percentiles are of all requests"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["race=nope"], "race=nope: expected true, or a quantity by which configurations can be ranked"),
        (["race=goodput"], "race=goodput: expected true, or a quantity by which configurations can be ranked"),
        (
            ["race=cost_per_million_tokens", "hardware=cpu", "hardware.price_per_hour=null"],
            "race=cost_per_million_tokens: expected a price",
        ),
        (["race=true", "replicates=2"], "race=output_throughput: expected replicates=3 or more"),
        (["race=true", "slo=ttft=1s"], "race=output_throughput: expected slo=null"),
        (["race=true", "relaunch=once"], "expected several deployments, and a launch for each replicate"),
        (["race=true", "ladder=[{step: a, set: {}}]"], "race=output_throughput: expected no ladder"),
    ],
)
def test_a_race_that_cannot_be_run_is_refused(capsys, tmp_path, arguments, words):
    command = [*ENGINE, *LOAD, "backend.itl.mean=0.01,0.03", "replicates=3", f"out={tmp_path / 'out'}"]
    assert main([*command, *arguments]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_plan_advises_a_race_of_many_configurations(capsys, tmp_path):
    means = ",".join(f"0.0{number}" for number in range(1, 9))
    command = [*ENGINE, *LOAD, f"backend.itl.mean={means}", f"out={tmp_path / 'out'}", "dry_run=true"]
    for replicates, advised in ((3, True), (2, False)):
        assert main([*command, f"replicates={replicates}"]) == 0
        advice = "race=true would save up to 8 of 24 launches"
        assert (advice in capsys.readouterr().out) == advised


def test_the_plan_says_where_a_race_by_throughput_drops_nothing(capsys, tmp_path):
    command = [*ENGINE, "backend.itl.mean=0.01,0.03", f"out={tmp_path / 'out'}", "dry_run=true", "replicates=3"]
    advice = "no point is dropped if an open loop sets output_throughput; try a latency: race=ttft_p50"
    for arguments in (["race=true", "load=poisson"], ["race=ttft_p50", "load=poisson"], ["race=true", "load=closed"]):
        assert main([*command, *arguments]) == 0
        assert (advice in capsys.readouterr().out) == (arguments == ["race=true", "load=poisson"])


def test_a_look_waits_for_trials_that_run_again_but_not_for_what_cannot_run_here(tmp_path, monkeypatch):
    monkeypatch.setattr(PlannedRace, "_judge", lambda race, counted: {})
    engines = [replicated("a", [1], 4), replicated("b", [1], 4), replace(replicated("c", [1], 4), unavailable="no GPU")]
    plan = make_plan(*engines, relaunch="per_replicate")
    looks = []
    for outcomes in ([["ok"], ["disturbed"], ["ok"], ["ok"]], [["ok"]]):
        paths, ledger = drive(plan, tmp_path, Scripted({"a": [["ok"]] * 4, "b": outcomes}))
        looks.append(PlannedRace(plan, ledger, paths).complete)
    assert looks == [1, 3]
