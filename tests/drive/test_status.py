"""The status of a run: done, running, failed, gone, read from its files alone."""

import json
import os
import subprocess
import sys
import time

import pytest
from rich.console import Console

from sweep.__main__ import main
from sweep.disk.ledger import Ledger
from sweep.disk.ledger_lines.checksums import sealed, unsealed
from sweep.disk.run_files import RunPaths, write_plan
from sweep.drive.monitor import status
from sweep.drive.monitor.progress import Display


@pytest.fixture
def run(tmp_path):
    paths = RunPaths(tmp_path / "night")
    trial = {"kind": "trial", "deployment_id": "d1"}
    entries = [
        {"kind": "experiment", "name": "night"},
        {"kind": "deployment", "deployment_id": "d1", "label": "vllm tiny"},
        *({**trial, "trial_id": f"t{size}", "label": f"qa batches of {size} replicate 0"} for size in (1, 2, 4, 8)),
    ]
    paths.out.mkdir()
    write_plan(paths, entries)
    ledger = Ledger(paths.ledger)
    row = {"deployment_id": "d1", "attempt": "1"}
    ledger.commit({**row, "trial_id": "t1", "outcome": "ok"})
    ledger.commit({**row, "trial_id": "t2", "outcome": "hung", "reason": "not done in 60 s"})
    ledger.commit({**row, "trial_id": "of another plan", "outcome": "ok"})
    return paths


def writer_of(run, running=True):
    display = Display(4, 2, 600.0, Console(quiet=True))
    if running:
        display.update("d1", "vllm tiny", "trial 3 of 4")
    return status.StatusWriter(run, display)


def lines(run):
    return "\n".join(status.render(status.read(run.out)))


def test_done_failed_and_why(run):
    text = lines(run)
    assert "night: 1 of 4 trials done (1 ok, 1 hung)" in text
    assert "vllm tiny qa batches of 2 replicate 0: hung: not done in 60 s [d1/1/engine.log]" in text
    assert "never started" in text


def test_a_damaged_status_is_unknown_and_a_damaged_ledger_says_nothing_of_a_driver(run):
    run.ledger.write_bytes(run.ledger.read_bytes().replace(b"not done", b"all done"))
    assert "damaged in line 3" in lines(run)
    assert "never started" in lines(run)
    run.status.write_bytes(sealed({}))
    assert "unknown whether a driver is running:" in lines(run)
    assert "status.json: cannot be read (it lacks at, deadline," in lines(run)
    assert "never started" not in lines(run)


def test_requests_that_failed_in_results_are_counted(run):
    assert "failed requests" not in lines(run)
    row = {"deployment_id": "d1", "attempt": "1", "outcome": "ok", "num_requests": 120}
    ledger = Ledger(run.ledger)
    ledger.commit({**row, "trial_id": "t4", "num_failed": 4})
    ledger.commit({**row, "trial_id": "t8", "num_failed": 0})
    text = lines(run)
    assert "failed requests: 4 of 240, in 1 of 2 results" in text
    assert "  vllm tiny qa batches of 4 replicate 0: 4 of 120" in text


def test_a_plan_from_before_there_were_labels_is_read_by_its_ids(run):
    entries = [json.loads(line) for line in run.plan.read_text().splitlines()]
    write_plan(run, [{key: entry[key] for key in entry if key != "label"} for entry in entries])
    assert "  d1 t2: hung: not done in 60 s [d1/1/engine.log]" in lines(run)


def test_a_run_that_cannot_be_read_is_one_line(run, capsys):
    run.plan.unlink()
    run.plan.mkdir()
    assert main(["status", str(run.out)]) == 2
    assert f"error: {run.out}: [Errno 21] Is a directory" in capsys.readouterr().err


def test_what_is_unavailable_has_no_log(run):
    row = {"deployment_id": "d1", "attempt": "0", "outcome": "unavailable", "reason": "no docker: install it"}
    Ledger(run.ledger).commit({**row, "trial_id": "t4"})
    assert lines(run).splitlines()[-1].endswith("unavailable: no docker: install it")


def test_what_runs_where_and_how_long_it_takes(run):
    writer = writer_of(run)
    writer.write({"d1": "10.0.0.7"}, stopping=False)
    text = lines(run)
    assert f"running: process {os.getpid()} on" in text
    assert "1 launch, 10 min left" in text
    assert "vllm tiny on 10.0.0.7: trial 3 of 4" in text
    writer.write({}, stopping=True)
    assert "10.0.0.7" in lines(run), "not more often than every two seconds"


def test_an_end_is_reported_at_once(run):
    writer = writer_of(run, running=False)
    writer.write({}, stopping=False)
    writer.write({}, stopping=False, ended=True)
    assert "not running" in lines(run)
    assert "ended" in lines(run)


@pytest.mark.parametrize("words", [{"pid": 2**22 + 1}, {"began": 1.0}, {"processes": "another boot"}])
def test_a_driver_that_died_is_told_from_one_that_runs(run, words):
    """A process of its number runs on another host, after the next boot, or in another container (as number 1 does)."""
    writer_of(run).write({}, stopping=False)
    content = unsealed(run.status.read_bytes()) | words
    run.status.write_bytes(sealed(content))
    assert "pid" in words or "trial 3 of 4" in lines(run), "it has just reported"
    run.status.write_bytes(sealed(content | {"at": time.time() - 100}))
    assert "died; run the same command again to continue" in lines(run)
    assert "trial 3 of 4" not in lines(run)


@pytest.mark.slow
def test_the_command(run, tmp_path):
    def call(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "sweep", "status", *arguments], capture_output=True, text=True, check=False
        )

    found = call(str(run.out))
    assert found.returncode == 0, found.stderr
    assert "1 of 4 trials done" in found.stdout
    missing = call(str(tmp_path / "nothing"))
    assert missing.returncode == 2
    assert "not a run" in missing.stderr
    bare, helped = call(), call("--help")
    assert (bare.returncode, bare.stdout) == (2, "")
    assert bare.stderr == "error: the following arguments are required: RUN; see sweep status --help\n"
    assert helped.returncode == 0
    assert helped.stdout.startswith("usage: sweep status")
