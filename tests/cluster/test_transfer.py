"""Files of a node that does not see the results folder: they arrive with the events, whole and in their place."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from sweep.base.config import ROOT
from sweep.cluster import transfer
from sweep.disk.run_files import RunPaths
from sweep.node.events import Files, Finished, State
from sweep.node.work import Work
from sweep.plan.plan import Deployment


@pytest.fixture
def work(tmp_path):
    settings = SimpleNamespace(cache_dir=str(tmp_path / "cache of the node"))
    deployment = Deployment("d1", None, None, 0, None)
    return Work(deployment, settings, str(tmp_path / "out"), "1", (), run="the-run")


def stream(work):
    """As a deployment does: a trial with its files, then the end of a log."""
    attempt = RunPaths(Path(work.out)).attempt("d1", "1")
    (attempt / "t1").mkdir(parents=True)
    (attempt / "engine.log").write_text("begins")
    yield State("trial 1")
    (attempt / "t1" / "trial.parquet").write_bytes(b"PAR1")
    yield Finished(SimpleNamespace(trial_id="t1"), {"trial_id": "t1"})
    (attempt / "engine.log").write_text("begins and ends")


def test_a_node_that_sees_the_folder_writes_there(work):
    transfer.mark(work)
    assert [type(event) for event in transfer.carried(work, stream)] == [State, Finished]
    assert (Path(work.out) / "deployments/d1/1/t1/trial.parquet").exists()


@pytest.mark.parametrize("other", [None, "another run"])
def test_one_that_does_not_sends_them_before_the_event_that_speaks_of_them(work, tmp_path, other):
    if other:
        transfer.mark(replace(work, run=other))  # the same path on another machine, of another run
    paths = RunPaths(tmp_path / "driver")
    kinds = []
    for event in transfer.carried(work, stream):
        kinds.append(type(event))
        if isinstance(event, Files):
            transfer.receive(paths, work, event)
        if isinstance(event, Finished):
            assert (paths.attempt("d1", "1") / "t1" / "trial.parquet").read_bytes() == b"PAR1"
    assert kinds == [State, Files, Finished, Files]
    assert (paths.attempt("d1", "1") / "engine.log").read_text() == "begins and ends"
    assert not list((tmp_path / "cache of the node").rglob("*.parquet")), "nothing is left on the node"


@pytest.mark.slow
def test_what_a_killed_task_left_goes_with_the_next_one_and_nothing_else(work, tmp_path):
    outbox = tmp_path / "cache of the node" / "outbox"
    carry = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from sweep.cluster import transfer
with transfer._local_folder(Path({str(outbox)!r})) as folder:
    folder.mkdir()
    print(folder.name, flush=True)
    sys.stdin.read()
"""
    command = [sys.executable, "-c", carry]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as killed,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as living,
    ):
        names = [process.stdout.readline().strip() for process in (killed, living)]
        killed.kill()
        killed.wait()
        assert {path.name for path in outbox.iterdir() if path.is_dir()} == set(names)
        list(transfer.carried(work, stream))
        assert {path.name for path in outbox.iterdir()} == {names[1]}
        living.stdin.close()
    assert not list(outbox.iterdir())


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "deployments/d1/2/t1/trial.parquet", "plan.jsonl"])
def test_nothing_is_written_outside_the_attempt(work, tmp_path, name):
    with pytest.raises(ValueError, match="not in the folder of attempt 1"):
        transfer.receive(RunPaths(tmp_path / "driver"), work, Files({name: b""}))
