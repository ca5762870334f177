"""What starts a run on a cluster issues it again on 75, and on nothing else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sweep.base.config import ROOT

FILES = ROOT / "scripts" / "cluster"
# As the interpreter of a node: `sweep reissue` is the real one, and each `sweep run` ends with the next status.
INTERPRETER = """#!/usr/bin/env bash
case "$*" in
    *"sweep reissue "*) exec {python} -c "import sys; sys.executable = '{stub}'
from sweep.__main__ import main
sys.exit(main(sys.argv[1:]))" "${{@:3}}" ;;
    *) echo "${{@:3}}" >> {folder}/issued
       status=$(head -1 {folder}/statuses); sed -i 1d {folder}/statuses; exit "$status" ;;
esac
"""


def executable(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("statuses", "ends_with", "issued"),
    [([75, 75, 0], 0, 3), ([2], 2, 1), ([130], 130, 1), ([75, 2, 0], 0, 3)],
    ids=["until it is finished", "bad input", "interrupted", "no Ray there yet"],
)
def test_a_node_issues_the_run_again_only_when_it_had_to_stop(tmp_path, statuses, ends_with, issued):
    stub = tmp_path / "python"
    executable(stub, INTERPRETER.format(python=sys.executable, stub=stub, folder=tmp_path))
    (tmp_path / "statuses").write_text("".join(f"{status}\n" for status in statuses))
    environ = {**os.environ, "SWEEP_ENVIRONMENT": str(tmp_path / "none"), "RAY_AUTH_TOKEN": "f" * 64}
    environ |= {"SWEEP_PYTHON": str(stub), "SWEEP_TIME_FACTOR": "0.01", "PYTHONPATH": str(ROOT)}
    arguments = ["backend=simulated", "model=tiny-llama", f"out={tmp_path / 'out'}"]
    command = [FILES / "node", "run", *arguments]
    ended = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert ended.returncode == ends_with, ended.stderr
    lines = (tmp_path / "issued").read_text().splitlines()
    assert lines == [" ".join(["run", "cluster=ray", *arguments])] * issued
    assert ended.stderr.count("repeating the command") == issued - 1


@pytest.mark.parametrize(("status", "fails"), [(0, False), (1, False), (2, False), (130, False), (75, True)])
def test_only_75_fails_a_ray_job_and_so_builds_a_cluster_anew(tmp_path, status, fails):
    job = yaml.safe_load((FILES / "kuberay-rayjob.yaml").read_text())["spec"]
    assert job["backoffLimit"] > 0
    executable(tmp_path / "python", f'#!/bin/sh\necho "$@" > {tmp_path}/issued\nexit {status}\n')
    environ = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    ended = subprocess.run(["sh", "-c", job["entrypoint"]], env=environ, check=False)
    assert (tmp_path / "issued").read_text().startswith("-m sweep reissue +experiment=")
    assert (ended.returncode != 0) == fails
