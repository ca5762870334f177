"""Files of a node that does not see the results folder: they arrive with the events, whole and in their place."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from sweep import transfer
from sweep.deployment import Files, Finished, State, Work
from sweep.plan import Deployment
from sweep.store import RunPaths


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


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "deployments/d1/2/t1/trial.parquet", "plan.jsonl"])
def test_nothing_is_written_outside_the_attempt(work, tmp_path, name):
    with pytest.raises(ValueError, match="not a file of attempt 1"):
        transfer.receive(RunPaths(tmp_path / "driver"), work, Files({name: b""}))
