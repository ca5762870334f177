"""A row run again from what it says of itself: capsules, what is named as different, and the verdict on figures."""

import json
import os
import random
import re
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from analysis.compare.reproduction import Noise, Reproduction, figure_changes, finding, point_noise
from analysis.load import open_run
from analysis.results import RunResults
from backends.base import EnvironmentLock, EnvironmentSpec
from backends.prepare import locks
from sweep.__main__ import main
from sweep.base.options import ConfigPath
from sweep.disk import run_files
from sweep.disk.run_files import RunPaths
from sweep.rerun.capsule import packed_lock, parse_capsules
from sweep.rerun.circumstances import FOREIGN, LOAD_AVERAGE, changed_circumstances, circumstances, difference_lines
from sweep.rerun.command import _settings_today
from sweep.rerun.rows import capsules_of
from tests.cli.test_line import SIMULATED
from tests.support.results import run_of, trial

LOCK = "# lock of cpu for linux-x86_64-cpu-python3.11, requirements 0123456789abcdef\ntorch==2.13.0+cpu\n"
NAME = "cpu.linux-x86_64-cpu-python3.11.txt"


def row(replicate=0, throughput=100.0, **changed):
    """A row of a real run, as far as a capsule needs it."""
    facts = {
        "command": ["/home/a/python", "-m", "vllm", "--model", "/home/a/models/m-123", "--port", "4242", "--eager"],
        "environ": {"OMP_NUM_THREADS": "1"},
        "max_model_len": 2048,
        "chosen": {"attention": "flash"},
        "startup_seconds": 3.0 + replicate,
        "log": "/home/a/engine.log",
    }
    values = {
        "experiment": "night",
        "label": f"vllm m qa replicate {replicate}",
        "seed": 7 + replicate,
        "launch": f"launch {replicate}",
        "started_at": f"2026-11-23T04:00:0{replicate}+00:00",
        "ttft_p50": 20 / throughput if throughput else None,
        "protocol": 5,
        "commit": "3db6924b4999",
        "driver": "570.86",
        "accelerator": "NVIDIA L4",
        "dtype": "bfloat16",
        "engine_version": "0.32.0",
        "config": json.dumps({"backend": {"name": "vllm"}, "model": {"name": "m"}, "workload": {"name": "qa"}}),
        "settings": json.dumps({"relaunch": "per_replicate", "max_failed": 0.1}),
        "digests": json.dumps({"model": "w1", "workload": "p1", "lock": f"{NAME} {locks.lock_digest(LOCK)}"}),
        "versions": json.dumps({"torch": "2.13.0+cpu", "vllm": "0.32.0"}),
        "hardware": json.dumps({"node": "a", "cpu": "EPYC", "cores": 2, "memory_bytes": 2**35, "gpus": ["NVIDIA L4"]}),
        "engine_facts": json.dumps(facts),
        "warnings": ["few-requests", "shared-machine"],
    }
    return {**trial("vllm", 8, replicate, throughput), **values, **changed}


def rows(count=3, seed=1, spread=0.02):
    chance = random.Random(seed)
    return [row(replicate, 100 * chance.gauss(1, spread)) for replicate in range(count)]


def edited(column, *path, value):
    """A row's column of JSON with another value at a place in it."""
    content = json.loads(row()[column])
    *parents, last = path
    mapping = content
    for key in parents:
        mapping = mapping[key]
    mapping[last] = value
    return {column: json.dumps(content)}


COMMAND = json.loads(row()["engine_facts"])["command"]
CHANGES = {
    "flag eager": edited("engine_facts", "command", value=COMMAND[:-1]),
    "flag max-num-seqs": edited("engine_facts", "command", value=[*COMMAND, "--max-num-seqs=4"]),
    "flag model": edited("engine_facts", "command", 4, value="/elsewhere/m-456"),
    "environment variable OMP_NUM_THREADS": edited("engine_facts", "environ", "OMP_NUM_THREADS", value="2"),
    "engine's max_model_len": edited("engine_facts", "max_model_len", value=4096),
    "engine's chosen.attention": edited("engine_facts", "chosen", "attention", value="eager"),
    "weights": edited("digests", "model", value="w2"),
    "prompts": edited("digests", "workload", value="p2"),
    "lock": edited("digests", "lock", value=f"{NAME} 00"),
    "version of torch": edited("versions", "torch", value="2.12.0+cpu"),
    "GPU names": edited("hardware", "gpus", value=["NVIDIA H100"]),
    "cores": edited("hardware", "cores", value=4),
    "processor": edited("hardware", "cpu", value="Xeon"),
    "memory": edited("hardware", "memory_bytes", value=2**34),
    "machine": edited("hardware", "node", value="b"),
    "setting max_failed": edited("settings", "max_failed", value=0.2),
    "driver": {"driver": "580.1"},
    "accelerator": {"accelerator": "NVIDIA H100"},
    "number format": {"dtype": "float16"},
    "engine version": {"engine_version": "0.33.0"},
    "protocol version": {"protocol": 6},
    "code commit": {"commit": "f68457c"},
    "cores taken by other processes": {"foreign_cpu_share": 0.4},
    "load average": edited("hardware", "load_average", value=22.0),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_planted_change_is_named_and_nothing_else(name):
    differing = changed_circumstances(circumstances(row()), circumstances(row() | CHANGES[name]))
    assert [difference.name for difference in differing] == [name]


def test_what_differs_between_any_two_launches_is_not_named():
    other = edited("engine_facts", "command", 6, value="9999") | {"foreign_cpu_share": 0.01}
    assert not changed_circumstances(circumstances(row()), circumstances(row(1, seed=7) | other))


def test_a_row_of_an_older_version_does_not_differ_in_what_it_does_not_say():
    old = {name: value for name, value in row().items() if name != "settings"}
    assert not changed_circumstances(circumstances(old), circumstances(row()))
    defaults = circumstances(row(settings=json.dumps({"relaunch": "once"})))
    assert [each.name for each in changed_circumstances(defaults, circumstances(row()))] == ["setting max_failed"]


def test_a_run_of_an_older_version_has_a_capsule(tmp_path):
    folder = write_run(tmp_path / "run", rows())
    table = pq.read_table(folder / "trials.parquet").drop(["settings", "digests"])
    pq.write_table(table, folder / "trials.parquet")
    (capsule, *_) = capsules_of(str(folder))
    assert capsule.lock_texts() == {NAME: LOCK}


def test_many_differences_of_a_kind_are_counted():
    versions = {"versions": json.dumps({f"part{number}": "2" for number in range(40)})}
    lines = list(difference_lines(changed_circumstances(circumstances(row()), circumstances(row() | versions))))
    assert lines[-1] == "version of: 30 more"
    assert len(lines) == 13


def write_run(folder, measured):
    run_of(folder, measured)
    paths = RunPaths(folder)
    run_files.write_whole(paths, paths.locks / NAME, LOCK)
    return folder


def test_a_capsule_of_ten_lines_says_what_the_row_says(tmp_path):
    (first, *_) = rows()
    folder = write_run(tmp_path / "run", rows())
    (capsule,) = capsules_of(f"{folder}#{first['trial_id']}")
    text = capsule.text()
    assert len(text.splitlines()) == 10
    assert parse_capsules(text) == [capsule]
    assert capsule.lock_texts() == {NAME: LOCK}
    assert capsule.trial["seed"] == 7
    assert capsule.figures["output_throughput"] == first["output_throughput"]
    assert capsule.noise["output_throughput"].deviation == pytest.approx(0.02, rel=0.8)
    assert [each.trial["replicate"] for each in capsules_of(str(folder))] == [0, 1, 2]


def test_a_lock_that_was_replaced_is_still_the_row_s(tmp_path):
    folder = write_run(tmp_path / "run", rows())
    paths = RunPaths(folder)
    run_files.write_whole(paths, paths.locks / "cpu.old.txt", LOCK)
    run_files.write_whole(paths, paths.locks / NAME, LOCK.replace("2.13", "2.14"))
    assert {each.lock_texts()[NAME] for each in capsules_of(str(folder))} == {LOCK}


def test_a_lock_is_pinned_although_today_s_requirements_are_others():
    spec = EnvironmentSpec(name="cpu", requirements=("torch",))
    text = LOCK.replace("linux-x86_64-cpu-python3.11", locks.node_target(spec))
    texts = {locks.file_name(spec): text}
    assert locks.with_lock(spec, texts).lock is None
    assert locks.with_lock(spec, texts, any_requirements=True).lock == EnvironmentLock(
        target=locks.node_target(spec), pins=("torch==2.13.0+cpu",)
    )
    assert locks.with_lock(spec, {}, any_requirements=True).lock is None


def test_bad_input_is_one_line(tmp_path, capsys):
    folder = write_run(tmp_path / "run", [*rows(), row(3, None)])
    trial_id = row()["trial_id"]
    capsule = tmp_path / "capsule.txt"
    (written,) = capsules_of(f"{folder}#{trial_id}")

    evil_run = write_run(tmp_path / "evil", [row(digests="{}")])
    (RunPaths(evil_run).locks / NAME).write_text("evil @ https://evil.example/x.whl\n")

    def with_lock(line):
        return replace(written, locks={"x.txt": packed_lock(f"torch==2.1+cpu\n{line}\n")}).text()

    cases = {
        f"{folder}#ffffffff": "no such trial",
        f"{folder}#": "expected a trial's id from trials.parquet",
        f"{folder}#vllm": "4 trials have ids that begin with it",
        f"{folder}#vll": "at least 4 characters",
        f"{folder}#{row(3, None)['trial_id']}": "is hung",
        "http://bucket/run#123456": "expected a folder, s3://bucket/path",
        str(tmp_path / "none"): "no run here",
        "x" * 300: "File name too long",
        written.text() + "flags: {}\n": "flags: not a key of a capsule",
        written.text().replace("seed", "sead"): "cannot be read",
        written.text().partition("\n")[2]: "capsule: required, but not given",
        written.text()[:-4]: "copy the whole line",
        "\n": "is empty",
        with_lock("evil @ https://evil.example/x.whl"): "evil @ https://evil.example/x.whl: expected name==version",
        with_lock("--index-url=https://evil.example"): "--index-url=https://evil.example: expected name==version",
        with_lock(f"evil@https://evil.example/x.whl#@sha256:{'0' * 64}"): "expected name==version",
        with_lock(f"--index-url=//evil.example@sha256:{'0' * 64}"): "expected name==version",
        with_lock("#" * 10**7): "is longer than 1048576 bytes",
        str(evil_run): "evil @ https://evil.example/x.whl: expected name==version",
        "/dev/zero": "no run here",
    }
    for source, expected in cases.items():
        if "\n" in source:
            capsule.write_text(source)
        assert main(["rerun", str(capsule) if "\n" in source else source]) == 2, source
        printed = capsys.readouterr().err
        assert expected in printed
        assert printed.count("\n") == 1


GROUPS = {"gateway": "none", "model": "tiny-llama", "workload": "qa", "load": "batch"}
FOREIGN_FLAGS = {"middleware": "evil.Module", "max-num-seqs": 4, "no-such-flag": 1, "kv-cache-dtype": "fp8"}


def test_foreign_parts_of_a_capsule_are_shown_and_need_trust(tmp_path, capsys, monkeypatch):
    options = ConfigPath()
    config = {group: options.load(group, option) for group, option in GROUPS.items()}
    config["backend"] = {**options.load("backend", "vllm"), "environ": {"LD_PRELOAD": "x.so"}}
    config["backend"]["flags"] |= FOREIGN_FLAGS
    known = write_run(tmp_path / "run", [row(config=json.dumps(config))])
    (capsule,) = capsules_of(str(known))
    capsule.config["workload"]["_target_"] = "evil.Workload"
    capsule.locks[NAME] = packed_lock(LOCK + "evil==1.0\n")
    capsule.settings["cluster"] = {"name": "ray", "kind": "ray", "address": "203.0.113.5:6379"}
    assert _settings_today([capsule], ["hardware=cpu"], None, options).cluster.kind == "inline", (
        "never a foreign cluster"
    )
    (tmp_path / "capsule.txt").write_text(capsule.text())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    remembered = tmp_path / "sweep" / "locks"
    foreign = {
        f"lock {NAME}: evil==1.0",
        "backend.environ={'LD_PRELOAD': 'x.so'}",
        "backend.flags.middleware=evil.Module",
        "backend.flags.no-such-flag=1",
        "workload._target_=evil.Workload",
    }
    for lock in ("", LOCK):
        assert main(["rerun", str(tmp_path / "capsule.txt")]) == 2
        printed = capsys.readouterr()
        shown = set(map(str.strip, printed.out.splitlines()))
        assert shown == {line for line in foreign if not lock or NAME not in line}
        assert "can run code, and this machine does not have them" in printed.err
        remembered.mkdir(parents=True, exist_ok=True)
        (remembered / NAME).write_text(LOCK + "evil==1.0\n")
    assert main(["rerun", str(tmp_path / "capsule.txt"), "--trust"]) == 2
    assert "no such class" in capsys.readouterr().err


def test_a_pipe_among_a_runs_files_stops_no_command(tmp_path, capsys):
    files = ("ledger.jsonl", "plan.jsonl", "status.json", "totals.json", "trials.parquet", "claims.json")
    for file in (*files, ".answer.json", ".heartbeat"):
        pipe = write_run(tmp_path / file / "run", rows()) / file
        pipe.unlink(missing_ok=True)
        os.mkfifo(pipe)
        dry = ["run", *SIMULATED, f"out={pipe.parent}", "dry_run=true"]
        replayed = [*dry, "cluster.simulate={nodes: 1, gpus: 0}", f"cluster.replay={pipe}"]
        commands = [["status", str(pipe.parent)], ["summary", str(pipe.parent)], dry, replayed]
        for command in [["run", *SIMULATED, f"out={pipe.parent}"]] if file == ".heartbeat" else commands:
            assert main(command) == 0 or re.search("regular file|no run here|expected a run", capsys.readouterr().err)


@pytest.mark.parametrize(("column", "text"), [("config", "x"), ("config", "[1]"), ("started_at", "x")])
def test_a_row_of_any_content_brings_no_traceback(column, text, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    measured = [row(number, wall_seconds=1.0, ended_at="2026-11-23T04:01:00+00:00") for number in range(2)]
    run = str(write_run(tmp_path / "run", [measured[0], measured[1] | {column: text}]))
    assert main(["compare", run, run]) in (0, 70)
    printed = capsys.readouterr().err
    assert printed.count("\n") <= 1
    assert "Traceback" not in printed
    assert main(["run", *SIMULATED, f"out={tmp_path / 'other'}", "dry_run=true"]) == 0, "next to such a run"


@pytest.mark.parametrize(
    ("ratio", "deviation", "result", "reason"),
    [
        (1.05, 0.02, Reproduction.REPRODUCED, "95% for all"),
        (0.90, 0.02, Reproduction.DIFFERS, "throughput by -10.0%"),
        (0.90, 0.04, Reproduction.UNKNOWN, "noise of throughput up to 14.8%; expected at most 10%"),
        (0.70, 0.04, Reproduction.DIFFERS, "throughput by -30.0%"),
        (1.0, None, Reproduction.UNKNOWN, "replicates=3 or more"),
    ],
)
def test_the_verdict_is_by_the_noise_of_the_run(ratio, deviation, result, reason):
    """Of 6 degrees of freedom at 95 %, t is 2.447: times 0.02 times the root of two that is a noise of 7.2 %."""
    noise = {} if deviation is None else {"output_throughput": Noise(deviation, 6)}
    changes = figure_changes({"output_throughput": 100.0}, {"output_throughput": 100.0 * ratio}, noise)
    found = finding(changes)
    assert found[0] is result
    assert reason in found[1]


def test_one_launch_of_each_point_cannot_tell(tmp_path):
    assert point_noise(RunResults(run_of(tmp_path, rows(1))), row()["trial_id"]) == {}
    one_launch = [each | {"launch": "the same"} for each in rows()]
    assert point_noise(RunResults(run_of(tmp_path / "one", one_launch)), row()["trial_id"]) == {}


def test_a_slower_engine_is_seldom_reproduced(tmp_path):
    """A row of two launches, and a launch more that is 20 % slower; docs/measurements/rerun.md has more."""
    (slower,) = zip(*verdicts(tmp_path, 2, 0.01, [0.8], 10), strict=True)
    assert slower.count(Reproduction.REPRODUCED) <= 1


@pytest.mark.slow
def test_equal_launches_seldom_differ(tmp_path):
    """Of runs of three launches and one more of the same spread, at most one in eight is said to differ."""
    (equal,) = zip(*verdicts(tmp_path, 3, 0.05, [1.0], 60), strict=True)
    assert equal.count(Reproduction.DIFFERS) <= 60 / 8


def verdicts(folder, replicates, deviation, ratios, repetitions):
    """The verdicts on launches that differ by such a deviation; the last has these shares of its throughput."""
    for seed in range(repetitions):
        *measured, again = rows(replicates + 1, seed, deviation)
        run = write_run(folder / str(seed), measured)
        (capsule,) = capsules_of(f"{run}#{measured[0]['trial_id']}")
        figures = [row(0, again["output_throughput"] * ratio) for ratio in ratios]
        yield [finding(figure_changes(capsule.figures, each, capsule.noise))[0] for each in figures]


@pytest.mark.slow
def test_rows_of_the_simulated_engine_are_run_again(tmp_path, capsys, monkeypatch):
    """A whole run, then one capsule of it whose engine was given another setting."""
    monkeypatch.chdir(tmp_path)
    slow = ["backend.ttft.mean=0.6", "backend.itl.mean=0.1", "workload.num_requests=2", "load.batch_size=1"]
    command = [*SIMULATED, *slow, "replicates=2", "relaunch=per_replicate", "max_failed=0.1"]
    assert main([*command, f"out={tmp_path / 'run'}"]) == 0
    assert main(["rerun", str(tmp_path / "run")]) == 2
    assert "expected RUN#TRIAL, or --all for" in capsys.readouterr().err
    assert not list((tmp_path / "results").rglob("rerun.json")), "nothing was measured"
    assert main(["rerun", str(tmp_path / "run"), "--all"]) in (0, 1, 3)
    (verdicts,) = (tmp_path / "results" / "rerun").glob("*/rerun.json")
    first = json.loads(verdicts.read_text())
    ours = [pair for each in first for pair in each["differences"] if pair["name"] not in (FOREIGN, LOAD_AVERAGE)]
    assert len(first) == 2
    assert ours == []
    again = open_run(verdicts.parent).trials
    measured = open_run(tmp_path / "run").trials
    assert set(again.trial_id) == set(measured.trial_id)
    (capsule, _) = capsules_of(str(tmp_path / "run"))
    capsule.config["backend"]["itl"]["mean"] *= 3
    (tmp_path / "capsule.txt").write_text(capsule.text())
    capsys.readouterr()
    assert main(["rerun", str(tmp_path / "capsule.txt")]) in (1, 3)  # two launches hardly show how they differ
    assert "flag config.itl.mean: 0.1 → 0.3" in capsys.readouterr().out


def test_a_key_of_the_point_is_refused(tmp_path, capsys):
    folder = write_run(tmp_path / "run", rows())
    assert main(["rerun", str(folder), "backend.flags.x=1"]) == 2
    assert "taken from the row" in capsys.readouterr().err
