"""Whatever was measured in a folder stays in its table: the present plan is what is shown."""

import json

import pandas as pd
import pyarrow.parquet as pq
import pytest

import analysis
from sweep.__main__ import main
from sweep.disk.ledger import Ledger
from tests.cli.test_line import SIMULATED

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """A folder in which two commands that differ in a setting of the engine measured one trial each."""
    out = tmp_path_factory.mktemp("other") / "out"
    for itl in (0.02, 0.04):
        assert main([*SIMULATED, f"backend.itl.mean={itl}", "load.batch_size=2", f"out={out}"]) == 0
    return out


def test_a_second_measurement_does_not_hide_the_first(twice):
    rows = pq.read_table(twice / "trials.parquet").to_pylist()
    means = {json.loads(row["config"])["backend"]["itl"]["mean"]: row["in_plan"] for row in rows}
    assert means == {0.04: True, 0.02: False}
    assert len(analysis.load(twice)) == 1
    assert len(analysis.load(twice, all_rows=True)) == 2


def test_the_present_plan_is_shown_and_the_others_are_counted(twice, capsys):
    assert main(["report", str(twice)]) == 0
    capsys.readouterr()
    assert main(["summary", str(twice), "--all"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "other-rows: 1 row measured in this folder by other commands, or earlier" in printed
    assert main(["report", str(twice), "all=true"]) == 0
    assert "other-rows" not in capsys.readouterr().out
    summary = pd.read_csv(twice / "summary.csv")
    assert sorted(summary["backend.itl.mean"]) == [0.02, 0.04], "they are no replicates of one point"
    assert main(["report", str(twice)]) == 0


@pytest.mark.parametrize("spelling", ["--all-rows", "all=true"])
@pytest.mark.parametrize("command", ["summary", "export", "compare"])
def test_each_command_that_reads_rows_can_read_all_of_them(twice, tmp_path, capsys, command, spelling):
    arguments = [command, str(twice), *{"export": [str(tmp_path)], "compare": [str(twice)]}.get(command, [])]
    assert main(arguments) == 0
    before = capsys.readouterr()
    assert "1 row of other plans not shown; add all=true to show them" in before.err
    assert main([*arguments, spelling]) == 0
    after = capsys.readouterr()
    assert "not shown" not in after.err
    assert after.out != before.out


def test_of_all_rows_each_setting_in_which_they_differ_is_a_column(twice):
    run = analysis.open_results(twice, all_rows=True).run
    assert sorted(run.trials["backend.itl.mean"]) == [0.02, 0.04]
    assert not [name for name in run.axes if name.startswith(("backend.", "load.")) and name != "backend.itl.mean"]


def test_measurements_of_one_folder_are_compared(twice, capsys):
    sides = [f"{twice}@backend.itl.mean={mean}" for mean in (0.02, 0.04)]
    assert main(["compare", *sides, "--metric", "tpot_p50", "--format", "json"]) == 0
    (compared,) = json.loads(capsys.readouterr().out)["comparisons"]
    assert compared["ratio"] == pytest.approx(2, abs=0.3)


def test_a_result_measured_again_is_kept(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for attempt in ("1", "2"):
        ledger.commit({"trial_id": "a", "deployment_id": "d", "outcome": "ok", "attempt": attempt})
    ledger.commit({"trial_id": "a", "deployment_id": "d", "outcome": "ok", "attempt": "2", "slo": "judged anew"})
    ledger.close()
    assert [row["attempt"] for row in Ledger(tmp_path / "ledger.jsonl", write=False).superseded] == ["1"]


def test_a_result_measured_again_stays_in_the_table(tmp_path):
    """Its raw data were cut short: its row says what was measured all the same."""
    command = [*SIMULATED, "load.batch_size=2", "workload.num_requests=2", f"out={tmp_path}"]
    assert main(command) == 0
    (requests,) = tmp_path.glob("deployments/*/1/*/requests.parquet")
    requests.write_bytes(requests.read_bytes()[:-5])
    assert main(command) == 0
    rows = pq.read_table(tmp_path / "trials.parquet").to_pylist()
    assert [(row["attempt"], row["in_plan"], row["outcome"]) for row in rows] == [("2", True, "ok"), ("1", False, "ok")]
