"""The totals of a run: counted by the driver, believed while they are of the present files, else counted anew."""

import os

import pytest

from sweep.base.config import DamagedFile
from sweep.disk.ledger import Ledger
from sweep.disk.ledger_lines.checksums import sealed, unsealed
from sweep.disk.run_files import RunPaths, write_plan
from sweep.drive.monitor import status, totals
from sweep.drive.monitor.totals import TotalsWriter, count_anew, read_totals
from sweep.plan.compose import compose_run
from sweep.plan.planning import Surroundings, make_plan


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A plan of six trials in a folder with its ledger, and the driver's writer of its totals."""
    arguments = ["backend=simulated", "model=tiny-llama", "tracking=none", "replicates=3", "load.batch_size=1,2"]
    composition = compose_run([*arguments, "hardware=cpu"], lambda cluster: "cpu")
    plan = make_plan(composition, Surroundings(lambda backend, platform: "", lambda backend, platform: None))
    paths = RunPaths(tmp_path)
    write_plan(paths, plan.entries("sweep run"))
    ledger = Ledger(paths.ledger)
    monkeypatch.setattr(totals, "COUNT_INTERVAL", 0.0)
    monkeypatch.setattr(totals, "COUNT_SHARE", 1e9)
    return plan, paths, ledger, TotalsWriter(plan, paths, ledger)


def commit(plan, ledger, index, outcome, **columns):
    trial = plan.trials[index]
    row = {"trial_id": trial.trial_id, "deployment_id": plan.deployments[0].deployment_id, "attempt": "1"}
    ledger.commit({**row, "outcome": outcome, **columns})


def fill(plan, ledger):
    commit(plan, ledger, 0, "ok", num_failed=0, num_requests=40)
    commit(plan, ledger, 1, "ok", num_failed=3, num_requests=40)
    commit(plan, ledger, 2, "hung", reason="not done in 60 s")
    commit(plan, ledger, 3, "unavailable", reason="no docker")
    ledger.commit({"trial_id": "of another plan", "deployment_id": "d", "attempt": "1", "outcome": "ok"})


@pytest.fixture
def filled(run):
    """The run with rows in its ledger, and their totals."""
    plan, _, ledger, writer = run
    fill(plan, ledger)
    writer.write()
    return run


def test_the_drivers_totals_are_those_of_the_files(filled):
    _plan, paths, _ledger, _writer = filled
    counted = read_totals(paths, driver_alive=False)
    assert counted == count_anew(paths)[0]
    assert counted.outcomes == {"ok": 2, "hung": 1, "unavailable": 1}
    assert [(outcome, reason.partition(" [")[0]) for _, outcome, reason in counted.failures] == [
        ("hung", "not done in 60 s"),
        ("unavailable", "no docker"),
    ]
    assert [each[1:] for each in counted.failed_requests] == [(3, 40)]
    assert (counted.trials, counted.results, counted.requests) == (6, 2, 80)


def test_a_status_reads_no_ledger_while_the_totals_hold(filled, monkeypatch):
    _plan, paths, _ledger, _writer = filled
    expected = status.status_json(status.read(paths.out))
    monkeypatch.setattr(status, "count_anew", lambda paths: pytest.fail("counted anew"))
    assert status.status_json(status.read(paths.out)) == expected
    assert '"hung": 1' in expected


def test_rows_that_the_driver_had_no_time_to_count_are_counted(filled):
    """It was killed after a row: the totals are of a shorter ledger."""
    plan, paths, ledger, writer = filled
    commit(plan, ledger, 2, "ok")
    assert read_totals(paths, driver_alive=False) is None
    assert status.read(paths.out).totals.outcomes == {"ok": 3, "unavailable": 1}
    assert read_totals(paths, driver_alive=True).outcomes["hung"] == 1, "at most seconds old"
    writer.write(ended=True)
    assert read_totals(paths, driver_alive=False).outcomes == {"ok": 3, "unavailable": 1}


@pytest.mark.parametrize("change", ["ledger", "plan", "damaged", "foreign"])
def test_totals_of_other_files_are_not_believed(filled, change):
    _plan, paths, _ledger, _writer = filled
    assert read_totals(paths, driver_alive=True) is not None
    if change == "ledger":  # the same size, another content
        paths.ledger.write_bytes(paths.ledger.read_bytes().replace(b"not done", b"all done"))
        os.utime(paths.ledger, ns=(1, 1))
    elif change == "plan":
        os.utime(paths.plan, ns=(1, 1))
    elif change == "damaged":
        paths.totals.write_bytes(paths.totals.read_bytes().replace(b'"hung": 1', b'"hung": 2'))
    else:
        content = unsealed(paths.totals.read_bytes())
        del content["outcomes"]
        paths.totals.write_bytes(sealed(content))
    if change == "damaged":
        with pytest.raises(DamagedFile, match=r"totals\.json: cannot be read \(its checksum does not match\)"):
            read_totals(paths, driver_alive=True)
    else:
        assert read_totals(paths, driver_alive=True) is None
    state = status.read(paths.out)
    assert ("damaged in line" in "\n".join(state.messages)) == (change == "ledger")
    assert any("totals.json: cannot be read" in each for each in state.messages) == (change == "damaged")
    assert state.totals.outcomes.get("hung") == (None if change == "ledger" else 1)


def test_nothing_is_written_when_nothing_was_added_or_the_ledger_is_damaged(filled):
    plan, paths, ledger, writer = filled
    paths.totals.unlink()
    writer.write(ended=True)
    assert not paths.totals.exists()
    commit(plan, ledger, 4, "ok")
    ledger.set_aside.append((1, b"", "its checksum does not match"))
    writer.write(ended=True)
    assert not paths.totals.exists(), "a reader names the damaged lines"


def test_counting_takes_a_small_part_of_the_drivers_time(run, monkeypatch):
    plan, paths, ledger, writer = run
    monkeypatch.setattr(totals, "COUNT_SHARE", 1e-6)
    writer.write()
    fill(plan, ledger)
    writer.write()
    assert read_totals(paths, driver_alive=True).outcomes == {}, "not counted again so soon"
