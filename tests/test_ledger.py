"""What survives a crash: whole lines, the lock, and who is done."""

import os
import signal
import subprocess
import sys

import pytest

from sweep.config import ConfigError
from sweep.disk.folder_lock import sole_driver
from sweep.disk.ledger import Ledger
from sweep.disk.run_files import RunPaths


def row(trial_id, outcome="ok"):
    return {"trial_id": trial_id, "deployment_id": "d", "attempt": "1", "outcome": outcome}


def test_rows_and_attempts_are_there_after_reopening(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    assert ledger.begin_attempt("d") == "1"
    ledger.commit(row("a"))
    ledger.commit(row("a", "invalid"))
    again = Ledger(tmp_path / "ledger.jsonl")
    assert again.rows == {"a": row("a", "invalid")}, "the latest row of a trial counts"
    assert again.begin_attempt("d") == "2"


def test_a_line_cut_short_by_a_crash_costs_that_line_only(tmp_path):
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    ledger.commit(row("a"))
    ledger.commit(row("b"))
    ledger.close()
    path.write_bytes(path.read_bytes()[:-9])
    again = Ledger(path)
    assert set(again.rows) == {"a"}
    again.commit(row("c"))
    assert set(Ledger(path).rows) == {"a", "c"}, "the next line must not join the cut one"


@pytest.mark.parametrize(
    ("outcome", "retry", "done"),
    [
        ("ok", True, True),
        ("oom_run", True, True),
        ("censored", True, True),
        ("engine_crashed", True, False),
        ("engine_crashed", False, True),
        ("cancelled", False, False),
        ("unavailable", False, False),
    ],
)
def test_done_is_decided_by_outcome_and_retry(tmp_path, outcome, retry, done):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.commit(row("a", outcome))
    assert ledger.done("a", retry) is done
    assert not ledger.done("never run", retry)


def test_a_second_driver_is_refused_and_a_dead_one_is_not_in_the_way(tmp_path):
    with (
        sole_driver(tmp_path),
        pytest.raises(ConfigError, match=rf"running there \(process {os.getpid()} on "),
        sole_driver(tmp_path),
    ):
        pass
    script = f"""
import os, pathlib
from sweep.disk.folder_lock import sole_driver
with sole_driver(pathlib.Path({str(tmp_path)!r})):
    os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    with sole_driver(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_is_bad_input(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="out=.*cannot be written"), sole_driver(tmp_path / "file" / "out"):
        pass


@pytest.mark.parametrize(
    ("length", "damaged"),
    [(4, False), (1000, True)],  # bytes of the footer, as the last 8 bytes of a Parquet file state it
    ids=["whole", "footer longer than the file"],
)
def test_a_file_whose_footer_does_not_fit_is_damaged_whatever_its_last_bytes_are(tmp_path, length, damaged):
    paths = RunPaths(tmp_path)
    Ledger(paths.ledger).commit(row("a"))
    requests = paths.trial("d", "1", "a").requests
    requests.parent.mkdir(parents=True)
    requests.write_bytes(b"PAR1" + b"meta" + length.to_bytes(4, "little") + b"PAR1")
    assert Ledger(paths.ledger).done("a", retry=True) is not damaged
