"""Labels: each deployment and trial differs from its siblings, and by no more than it takes."""

import re

import pytest

from sweep.__main__ import main
from sweep.base.setting_labels import dotted, labels


@pytest.mark.parametrize(
    ("names", "settings", "expected"),
    [
        (["vllm", "tgi"], [{"backend": "vllm"}, {"backend": "tgi"}], ["vllm", "tgi"]),
        (["vllm", "vllm"], [{"a.seqs": 2, "a.size": 8}, {"a.seqs": 4, "a.size": 8}], ["vllm seqs=2", "vllm seqs=4"]),
        (["vllm", "vllm"], [{}, {"backend.flags.kv": "fp8"}], ["vllm", "vllm kv=fp8"]),
        (["x", "x"], [{"model.dtype": "a", "backend.dtype": "b"}, {}], ["x model.dtype=a backend.dtype=b", "x"]),
        (
            ["vllm"] * 3,
            [
                {"ladder": "plain", "ladder_parent": None, "backend.kv": "auto"},
                {"ladder": "fp8", "ladder_parent": "plain", "backend.kv": "fp8"},
                {"ladder": "fp8 small", "ladder_parent": "fp8", "backend.kv": "fp8", "backend.seqs": 8},
            ],
            ["vllm plain", "vllm fp8", "vllm fp8 small"],
        ),
        (
            ["vllm"] * 2,
            [{"ladder": "plain", "backend.seqs": 8}, {"ladder": "plain", "backend.seqs": 16}],
            ["vllm seqs=8", "vllm seqs=16"],
        ),
    ],
    ids=["names suffice", "only what differs", "a key that one lacks", "short names that clash", "ladder", "one step"],
)
def test_items_are_set_apart_by_what_differs(names, settings, expected):
    assert labels(names, settings) == expected


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (["+experiment=sequence_length"], 3),
        (["backend=vllm", "backend.flags.max-num-seqs=2,4", "backend.flags.block-size=16,32,64"], 6),
    ],
)
def test_no_two_points_of_a_plan_print_alike(arguments, lines, capsys, tmp_path):
    assert main([*arguments, "dry_run=true", f"out={tmp_path}", "hardware=cpu"]) == 0
    deployment, points = "", []
    for line in capsys.readouterr().out.splitlines():
        if match := re.match(r"[0-9a-f]{12}  (.*?): (?:\d+ launch\w*, )?\d+ trials?, ", line):
            deployment = match[1]
        elif match := re.match(r"  [0-9a-f]{12}  (.*?)  +to run", line):
            points.append(f"{deployment} {match[1]}")
    assert len(points) == lines
    assert len(set(points)) == lines


def test_details_show_what_each_point_asks(capsys, tmp_path):
    command = ["backend=vllm", "backend.flags.max-num-seqs=2,4", "model=tiny-llama", "model.max_model_len=512"]
    command += ["workload=synthetic", "workload.input_tokens=32,64", "workload.output_tokens=16"]
    command += ["load.batch_size=4", "workload.num_requests=9", "dry_run=true", "details=true", f"out={tmp_path}"]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    commands = [line for line in lines if line.startswith("  command: ")]
    assert ["--max-num-seqs 2 " in line + " " for line in commands] == [True, False]
    assert all("--max-model-len 512" in line for line in commands)
    assert sum("context: 512 tokens" in line for line in lines) == 2
    asked = [line for line in lines if "requests after" in line]
    assert sorted(line.split("input ")[1].split(" ")[0] for line in asked) == ["32", "32", "64", "64"]
    assert all("12 requests after" in line and "output 16 tokens" in line for line in asked), "whole batches of 4"


def test_details_are_of_a_dry_run(capsys, tmp_path):
    assert main(["backend=simulated", "details=true", f"out={tmp_path}"]) == 2
    assert "details=true: prints every point of a plan; add dry_run=true" in capsys.readouterr().err


def test_a_configuration_as_settings():
    nested = {"backend": {"_target_": "backends.x.X", "flags": {"seqs": 2, "more": {}}, "args": [1]}, "seed": None}
    assert dotted(nested) == {"backend.flags.seqs": 2, "backend.args": [1], "seed": None}


def test_the_number_of_requests_is_left_out_where_the_rest_tells_enough():
    zipped = [{"load.batch_size": 1, "workload.num_requests": 4}, {"load.batch_size": 8, "workload.num_requests": 8}]
    assert labels(["qa", "qa"], zipped) == ["qa batch_size=1", "qa batch_size=8"]
    alone = [{"load.batch_size": 8, "workload.num_requests": count} for count in (8, 16)]
    assert labels(["qa", "qa"], alone) == ["qa num_requests=8", "qa num_requests=16"]
    grid = [{"load.batch_size": size, "workload.num_requests": count} for size in (1, 8) for count in (8, 16)]
    assert labels(["qa"] * 4, grid)[0] == "qa batch_size=1 num_requests=8"
