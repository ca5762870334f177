"""trials.parquet is not made again when nothing has changed, and is whenever anything has."""

import pytest

from sweep.base import code_version
from sweep.disk import run_files
from sweep.disk.ledger import Ledger
from sweep.disk.run_files import RunPaths, read_trials
from sweep.drive import row_writer
from sweep.drive.row_writer import RowWriter
from sweep.plan.compose import compose_run
from sweep.plan.planning import Surroundings, make_plan


def planned(*arguments):
    command = ["backend=simulated", "model=tiny-llama", "tracking=none", "load.batch_size=1,2", "hardware=cpu"]
    composition = compose_run([*command, *arguments], lambda cluster: "cpu")
    return make_plan(composition, Surroundings(lambda backend, platform: "", lambda backend, platform: None))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a result and its table; the code is that of a commit."""
    monkeypatch.setattr(code_version, "commit", lambda: "0123456789ab")
    monkeypatch.setattr(code_version, "changed_files", lambda: "")
    plan, paths = planned(), RunPaths(tmp_path)
    commit(plan, paths, 0)
    assert tables_made(plan, paths, monkeypatch) == 1
    return paths


def commit(plan, paths, index):
    ledger = Ledger(paths.ledger)
    trial_id = plan.trials[index].trial_id
    ledger.commit({"trial_id": trial_id, "deployment_id": "d", "attempt": "1", "outcome": "hung", "reason": "x"})
    ledger.close()


def tables_made(plan, paths, monkeypatch):
    made = []
    monkeypatch.setattr(row_writer.run_files, "write_trials", lambda *of: made.append(of) or WRITE_TRIALS(*of))
    run_files.write_plan(paths, plan.entries("sweep"))
    RowWriter(plan, paths, Ledger(paths.ledger), None, None).write_table()
    return len(made)


WRITE_TRIALS = run_files.write_trials


def test_the_same_command_does_not_make_the_table_again(folder, monkeypatch):
    assert tables_made(planned(), folder, monkeypatch) == 0


def test_another_row_or_plan_or_price_or_program_makes_it_again(folder, monkeypatch):
    commit(planned(), folder, 1)
    assert tables_made(planned(), folder, monkeypatch) == 1
    assert len(read_trials(folder.trials)) == 2
    for changed in (["load.batch_size=1,2,4"], ["hardware.price_per_hour=7"], ["slo=ttft=100ms"], ["name=other"]):
        assert tables_made(planned(*changed), folder, monkeypatch) == 1, changed
        assert tables_made(planned(*changed), folder, monkeypatch) == 0, changed
    monkeypatch.setattr(code_version, "commit", lambda: "ba9876543210")
    assert tables_made(planned("name=other"), folder, monkeypatch) == 1


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def test_a_table_that_was_damaged_or_deleted_is_made_again(folder, monkeypatch):
    rows = read_trials(folder.trials)
    damage(folder.trials)
    assert tables_made(planned(), folder, monkeypatch) == 1
    folder.trials.unlink()
    assert tables_made(planned(), folder, monkeypatch) == 1
    assert read_trials(folder.trials) == rows


def test_a_damaged_stamp_and_code_that_no_commit_names_make_it_again(folder, monkeypatch):
    damage(folder.out / ".trials.json")
    assert tables_made(planned(), folder, monkeypatch) == 1
    monkeypatch.setattr(code_version, "changed_files", lambda: " M sweep/numbers/summarise.py\n")
    assert tables_made(planned(), folder, monkeypatch) == 1
    assert tables_made(planned(), folder, monkeypatch) == 1
