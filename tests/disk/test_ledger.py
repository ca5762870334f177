"""What survives a crash: whole lines, the lock, and who is done."""

import errno
import json
import math
import os
import signal
import subprocess
import sys

import pytest

from sweep.base.config import ConfigError
from sweep.disk.folder_lock import sole_driver
from sweep.disk.ledger import Ledger, Misplaced
from sweep.disk.ledger_lines.checksums import sealed
from sweep.disk.run_files import RunPaths, read_trials, write_trial, write_trials
from sweep.drive.monitor.totals import COUNTED_COLUMNS
from tests.support.results import committed_rows


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


VERSIONS = json.dumps({f"package-{index}": "1.0" for index in range(300)})
REASON = "the engine said: " + "no room left; " * 30


def test_a_bulky_text_is_stored_once(tmp_path):
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    rows = [row(str(index), "hung") | {"versions": VERSIONS, "reason": REASON, "label": "x"} for index in range(50)]
    for each in rows:
        ledger.commit(each)
    assert path.stat().st_size < len(VERSIONS) + 50 * 300
    assert path.read_text().count(REASON) == 1
    assert list(ledger.rows.values()) == rows
    assert list(Ledger(path, write=False).rows.values()) == rows
    assert committed_rows(path) == rows
    counted = Ledger(path, write=False, columns=COUNTED_COLUMNS).rows["7"]
    assert (counted["reason"], counted.keys() & {"versions", "label"}) == (REASON, set())
    assert len({id(each["versions"]) for each in Ledger(path, write=False).rows.values()}) == 1, "one in memory, too"


def test_a_ledger_from_before_texts_were_set_apart_is_read_and_continued(tmp_path):
    path, old, new = tmp_path / "ledger.jsonl", row("old") | {"versions": VERSIONS}, row("new") | {"versions": VERSIONS}
    path.write_bytes(sealed({"event": "run", "run": "x"}) + sealed({"event": "trial", "row": old}))
    ledger = Ledger(path)
    assert ledger.rows == {"old": old}
    ledger.commit(new)
    assert Ledger(path, write=False).rows == {"old": old, "new": new}


def with_trial_files(tmp_path):
    """A ledger of two rows with a text in common, the files of their trials, and the table."""
    paths, trials = RunPaths(tmp_path), [row(name) | {"versions": VERSIONS} for name in "ab"]
    ledger = Ledger(paths.ledger)
    for each in trials:
        attempt = ledger.begin_attempt("d")
        paths.attempt("d", attempt).mkdir(parents=True)
        write_trial(paths.trial("d", "1", each["trial_id"]), each)
        ledger.commit(each)
    write_trials(paths, [each | {"in_plan": True} for each in trials])
    return paths, {each["trial_id"]: each for each in trials}


def without_text(paths):
    lines = paths.ledger.read_bytes().splitlines(keepends=True)
    return b"".join(line.replace(b"package-7", b"package-8") for line in lines)


def test_a_text_whose_line_is_damaged_is_read_from_the_file_of_a_trial(tmp_path):
    paths, rows = with_trial_files(tmp_path)
    paths.ledger.write_bytes(without_text(paths))
    damaged = Ledger(paths.ledger)
    assert damaged.rows == rows
    (line,) = damaged.describe_damage()
    assert (
        "damaged in line 3: its checksum does not match; trials recorded only in these lines are measured again" in line
    )
    again = Ledger(paths.ledger, write=False)
    assert (again.rows, again.describe_damage()) == (rows, []), "it was written anew"


def test_a_row_whose_text_is_nowhere_is_measured_again(tmp_path):
    paths, _ = with_trial_files(tmp_path)
    paths.ledger.write_bytes(without_text(paths))
    paths.trial("d", "1", "a").trial.unlink()
    paths.trial("d", "1", "b").trial.write_bytes(b"no table")
    ledger = Ledger(paths.ledger)
    assert ledger.rows == {}
    assert [problem for _, _, problem in ledger.set_aside][1:] == ["the line with its versions is lost"] * 2
    assert ledger.valid_row("a") is None


@pytest.mark.parametrize("lines_left", [None, 0, 1, 3, 5], ids=lambda lines: f"{lines} lines left")
def test_a_cut_or_emptied_ledger_is_noticed_and_no_attempt_writes_into_an_old_folder(tmp_path, lines_left):
    paths, rows = with_trial_files(tmp_path)
    lines = paths.ledger.read_bytes().splitlines(keepends=True)
    assert len(lines) == 6, "run, attempt, text, row, attempt, row"
    if lines_left is None:
        paths.ledger.unlink()
    else:
        paths.ledger.write_bytes(b"".join(lines[:lines_left]))
    lost = 1 if lines_left == 5 else 2
    (said,) = Ledger(paths.ledger, write=False).describe_damage()
    assert said.endswith(
        f"lacks {lost} result{'s' * (lost > 1)} that trials.parquet has; if in the plan, they are measured again"
    )
    ledger = Ledger(paths.ledger)
    (said,) = ledger.describe_damage()
    (kept,) = tmp_path.glob("trials.2*.parquet")
    assert said.endswith(f"; the table is kept as {kept.name}")
    assert {each["trial_id"] for each in read_trials(kept)} == rows.keys()
    assert ledger.begin_attempt("d") == "3"


def test_a_result_that_was_measured_again_is_not_lost(tmp_path):
    paths, rows = with_trial_files(tmp_path)
    ledger = Ledger(paths.ledger)
    ledger.commit(rows["a"] | {"attempt": "2", "outcome": "hung"})
    assert Ledger(paths.ledger, write=False).describe_damage() == []
    lines = paths.ledger.read_bytes().splitlines(keepends=True)
    paths.ledger.write_bytes(b"".join(lines[:3] + lines[4:]))
    assert "lacks 1 result" in Ledger(paths.ledger, write=False).describe_damage()[0], "its first line is gone"


def test_a_disk_that_is_full_keeps_neither_a_row_nor_its_texts(tmp_path, monkeypatch):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    before = (tmp_path / "ledger.jsonl").read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as broken:
        broken.setattr("sweep.disk.ledger.os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            ledger.commit(row("a") | {"versions": VERSIONS})
    assert (tmp_path / "ledger.jsonl").read_bytes() == before
    ledger.commit(row("a") | {"versions": VERSIONS})
    assert Ledger(tmp_path / "ledger.jsonl", write=False).rows["a"]["versions"] == VERSIONS


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


def test_a_second_driver_is_refused_and_a_dead_one_is_not_in_the_way(tmp_path):
    with (
        sole_driver(tmp_path),
        pytest.raises(ConfigError, match=rf"running with this out \(process {os.getpid()} on "),
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
    assert (Ledger(paths.ledger).valid_row("a") is None) is damaged


def test_nothing_is_appended_once_another_driver_has_taken_over(tmp_path):
    """A driver that was frozen without an event to handle would begin an attempt in the other's ledger."""
    taken = []

    def guard():
        if taken:
            raise Misplaced("another driver has taken over")

    ledger = Ledger(tmp_path / "ledger.jsonl", guard=guard)
    ledger.begin_attempt("d")
    content = (tmp_path / "ledger.jsonl").read_bytes()
    taken.append(1)
    for append in (lambda: ledger.begin_attempt("d"), lambda: ledger.commit(row("a")), ledger.check_in_place):
        with pytest.raises(Misplaced, match="another driver has taken over"):
            append()
    assert (tmp_path / "ledger.jsonl").read_bytes() == content


def test_values_that_only_pythons_json_takes_are_read(tmp_path):
    path = tmp_path / "ledger.jsonl"
    Ledger(path).commit(row("a") | {"ttft_p50": float("nan"), "tpot_p50": float("inf"), "reason": "\ud800"})
    again = Ledger(path, write=False).rows["a"]
    assert math.isnan(again["ttft_p50"])
    assert (again["tpot_p50"], again["reason"]) == (float("inf"), "\ud800")
