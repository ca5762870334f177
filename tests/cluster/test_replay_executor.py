"""Replays of measured rows through the whole command: plans, packing, races and answers without an engine."""

import csv
import random

import pytest

from sweep.__main__ import main
from sweep.disk.run_files import RunPaths, read_trials

FLAG = "backend.flags.max-num-seqs"
GPUS = ["backend=vllm", "model=tiny-llama", "load=closed", "load.concurrency=8", "tracking=none", "hardware=h100"]
SPEEDS = dict(zip((8, 16, 32, 64, 128, 256), (100, 98, 80, 70, 60, 20), strict=True))


def table(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, dict.fromkeys(key for row in rows for key in row))
        writer.writeheader()
        writer.writerows(rows)
    return path


def measured(path, replicates=5, spread=0.01):
    """Rows of six configurations, whose launches differ by `spread`, on H100s, with a flag as in a plan."""
    noise = random.Random(1)
    return table(
        path,
        [
            {
                "backend": "vllm",
                FLAG: flag,
                "concurrency": 8,
                "replicate": replicate,
                "output_throughput": speed * noise.lognormvariate(0, spread),
                "startup_seconds": 60,
                "wall_seconds": 30,
            }
            for flag, speed in SPEEDS.items()
            for replicate in range(replicates)
        ],
    )


def replay(source, out, *more, nodes=2, gpus=2):
    flags = ",".join(map(str, SPEEDS))
    cluster = [f"cluster.replay={source}", f"cluster.simulate={{nodes: {nodes}, gpus: {gpus}, accelerator: H100}}"]
    return main([*GPUS, f"{FLAG}={flags}", *cluster, f"out={out}", "report=false", *more])


def outcomes(out):
    rows = sorted(planned(out).items())
    return {flag: [row["outcome"] for (of, _), row in rows if of == flag] for flag in SPEEDS}


def planned(out):
    """The rows of a run's plan, by flag and replicate."""
    return {(row[FLAG], row["replicate"]): row for row in read_trials(RunPaths(out).trials) if row["in_plan"]}


def every(expected):
    return dict.fromkeys(SPEEDS, expected)


def test_a_plan_runs_on_simulated_gpus_and_a_race_goes_on_from_its_rows(tmp_path, capsys):
    source = measured(tmp_path / "rows.csv")
    assert replay(source, tmp_path / "grid", "replicates=5") == 0
    printed = capsys.readouterr().out
    assert "12 min of simulated time; nothing was measured in this run" in printed, "30 launches of 90 s on 4 GPUs"
    assert outcomes(tmp_path / "grid") == every(["ok"] * 5)
    rows = read_trials(RunPaths(tmp_path / "grid").trials)
    assert {(row["accelerator"], row["client_stamp_source"]) for row in rows} == {("H100", "table")}
    assert all("replayed" in row["engine_facts"] and "replayed" in row["warnings"] for row in rows)
    assert "! replayed from a table, not measured here (all points)" in printed

    race = ("replicates=5", "race=true")
    assert replay(source, tmp_path / "race", *race, nodes=1, gpus=1) == 0
    printed = capsys.readouterr().out
    raced = outcomes(tmp_path / "race")
    assert raced[256] == ["ok", "ok", "dropped", "dropped", "dropped"]
    assert raced[8].count("ok") >= raced[16].count("ok") >= raced[32].count("ok")
    assert "surely not the best after 2 of 5 replicates" in printed
    ledger = RunPaths(tmp_path / "race").ledger
    lines = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join(lines[: len(lines) // 2]))  # killed half-way
    assert replay(source, tmp_path / "race", *race, nodes=1, gpus=1) == 0
    assert outcomes(tmp_path / "race") == raced
    capsys.readouterr()
    assert replay(source, tmp_path / "race", *race, nodes=1, gpus=1) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_a_replayed_run_is_a_table_too_and_what_was_not_measured_has_no_result(tmp_path, capsys):
    assert replay(measured(tmp_path / "noisy.csv", spread=0.5), tmp_path / "first", "replicates=2") == 0
    assert replay(measured(tmp_path / "rows.csv", replicates=2), tmp_path / "first", "replicates=3") == 0
    assert outcomes(tmp_path / "first") == every(["ok", "ok", "unavailable"])
    assert "not measured: rows.csv has no row of this point and replicate" in capsys.readouterr().out
    assert replay(RunPaths(tmp_path / "first").trials, tmp_path / "second", "replicates=2") == 0
    first, second = planned(tmp_path / "first"), planned(tmp_path / "second")
    for point, row in second.items():
        assert row["output_throughput"] == first[point]["output_throughput"]
        assert row["trial_id"] != first[point]["trial_id"], "another table"
    again = [f"cluster.replay={tmp_path / 'rows.csv'}", "cluster.simulate={nodes: 1, gpus: 1, accelerator: H100}"]
    again += ["tracking=none", "report=false", "--out", str(tmp_path / "again")]
    main(["rerun", f"{tmp_path / 'second'}#{second[8, 0]['trial_id']}", *again])
    (row,) = read_trials(RunPaths(tmp_path / "again").trials)
    assert row["trial_id"] == first[8, 0]["trial_id"], "the same table"


def test_rows_of_users_show_their_throughput_unless_most_time_passes_in_the_queue(tmp_path, capsys):
    point = {"backend": "vllm", "concurrency": 8, "workload.output_tokens": 128}
    rows = [
        {**point, FLAG: 8, "ttft_mean": 0.5, "tpot_mean": 0.01},
        {**point, FLAG: 16, "ttft_mean": 1.5, "tpot_mean": 0.01},
    ]
    assert replay(table(tmp_path / "rows.csv", rows), tmp_path / "out", "workload.output_tokens=128") == 0
    by_flag = {row[FLAG]: row for row in read_trials(RunPaths(tmp_path / "out").trials)}
    assert by_flag[8]["output_throughput"] == pytest.approx(8 * 128 / (0.5 + 127 * 0.01))
    assert by_flag[16]["outcome"] == "unavailable"


def test_what_identifies_a_row_of_another_plan_is_left_out_of_a_csv(tmp_path):
    """Its attempt, ids and facts are texts that a CSV need not have in full; rows of other plans are not replayed."""
    identity = {"attempt": 1, "trial_id": 123, "engine_facts": "not JSON", "seed": 7, "caches_reset": "maybe"}
    rows = [{FLAG: 8, "concurrency": "8.0", "output_throughput": 100, "in_plan": True, **identity}]
    rows.append(rows[0] | {"output_throughput": 50, "in_plan": False})
    assert replay(table(tmp_path / "rows.csv", rows), tmp_path / "out") == 0
    (row,) = (row for row in read_trials(RunPaths(tmp_path / "out").trials) if row["outcome"] == "ok")
    assert (row["output_throughput"], row["concurrency"], row["caches_reset"]) == (100, 8, None)
    assert row["trial_id"] != "123"
    assert row["seed"] != 7


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("backend,speed\nvllm,3\n", "column speed: expected a column of trials.parquet, or an axis"),
        ("backend,concurrency\nvllm,8\n", "expected a column output_throughput, or concurrency"),
        ("backend,output_throughput\nvllm,fast\n", "output_throughput=fast: expected a number"),
        ("backend,output_throughput\nvllm,true\n", "output_throughput=true: expected a number"),
        ("backend,outcome,output_throughput\nvllm,okay,1\n", "outcome=okay: expected one of ok, "),
        ("output_throughput,wall_seconds\n1,1e300\n", "wall_seconds=1e300: expected 0 to 1,000,000,000"),
        ("output_throughput,startup_seconds\n1,-100\n", "startup_seconds=-100: expected 0 to"),
        ("output_throughput,num_requests\n1,1e300\n", "num_requests=1e300: expected a whole number"),
        ("concurrency,workload.output_tokens,ttft_mean,tpot_mean\n8,many,1,1\n", "expected a column output_throughput"),
        ("load,replicate,output_throughput\na,1,1\na,1,2\n", "expected one row of replicate 1 of load=a"),
        ("", "no measured row"),
        (None, "No such file"),
    ],
)
def test_a_table_that_cannot_be_replayed_is_refused(tmp_path, capsys, content, words):
    path = tmp_path / "rows.csv"
    if content is not None:
        path.write_text(content)
    assert replay(path, tmp_path / "out") == 2
    printed = capsys.readouterr().err
    assert f"cluster.replay={path}: " in printed
    assert words in printed
    assert printed.count("\n") == 1
    assert main([*GPUS, f"cluster.replay={path}", f"out={tmp_path / 'out'}"]) == 2
    assert "expected the nodes as well" in capsys.readouterr().err
