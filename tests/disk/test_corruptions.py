"""Damaged files of a run: one line that names the file, never a traceback, and nothing changed is believed."""

import json
from types import SimpleNamespace

import pytest

from sweep.__main__ import main
from sweep.disk.ledger import Ledger
from sweep.disk.ledger_lines.checksums import sealed, unsealed
from sweep.disk.object_store import Mirror
from sweep.disk.run_files import RunPaths, read_trials
from tests.cli.test_line import SIMULATED
from tests.support.corruptions import CORRUPTIONS, FILES, check

COMMAND = [*SIMULATED, "load.batch_size=1,2", "workload.num_requests=2"]
ROW = {"trial_id": "a", "deployment_id": "d", "attempt": "1", "outcome": "ok"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("corruptions") / "out"
    assert main([*COMMAND, f"out={out}"]) in (0, 1)
    return out


FIGURES = [pytest.mark.figures]  # a report reads telemetry for them
FEW = ("truncated", "a bit", "a block of zeros", "empty")  # ways in which files are damaged that take a report each


@pytest.mark.slow
@pytest.mark.parametrize("file", [pytest.param(each, marks=FIGURES * (each == "telemetry.parquet")) for each in FILES])
def test_no_corruption_is_a_traceback_or_believed_or_passed_over(finished, tmp_path, capsys, file):
    """Every command that reads all of a damaged file names it, and one that refuses says one line."""
    ways = CORRUPTIONS if file in ("ledger.jsonl", "status.json", "totals.json") else FEW
    findings = list(check(finished, COMMAND, tmp_path, 1, [file], ways))
    assert len(findings) == len(ways)
    assert [each for each in findings if each.tracebacks or each.believed or each.silent or each.long] == []
    if file.endswith(".parquet"):
        assert [each.named for each in findings if each.corruption in ("truncated", "empty")] == [True] * 2


@pytest.mark.slow
def test_a_row_that_was_changed_is_set_aside_named_and_measured_again(finished, tmp_path, capsys):
    """A digit of a throughput, which was believed."""
    out = tmp_path / "out"
    assert main([*COMMAND, f"out={out}"]) in (0, 1)
    paths, capsys_before = RunPaths(out), capsys.readouterr()
    assert capsys_before.out
    lines = paths.ledger.read_bytes().splitlines(keepends=True)
    number, line = next((i, line) for i, line in enumerate(lines, start=1) if b'"event": "trial"' in line)
    row = unsealed(line)["row"]
    trial_id = row["trial_id"]
    lines[number - 1] = line.replace(b'"output_tokens": 1', b'"output_tokens": 9', 1)
    assert lines[number - 1] != line
    paths.ledger.write_bytes(b"".join(lines))
    assert main([*COMMAND, f"out={out}", "dry_run=true"]) == 0
    damage = f"ledger.jsonl: damaged in line {number} (trials {trial_id}): its checksum does not match"
    assert damage in capsys.readouterr().out
    assert main(["status", str(out)]) == 0
    assert damage in capsys.readouterr().out
    assert main([*COMMAND, f"out={out}"]) in (0, 1)
    printed = capsys.readouterr().out
    assert damage in printed
    assert lines[number - 1] in (out / "ledger.damaged.jsonl").read_bytes().splitlines(keepends=True)
    assert len(read_trials(paths.trials)) == 2
    assert not Ledger(paths.ledger, write=False).set_aside, "said once"
    assert Ledger(paths.ledger, write=False).rows[trial_id]["attempt"] > row["attempt"], "again, in a new folder"


def test_an_attempt_whose_line_is_damaged_is_not_numbered_twice(tmp_path):
    paths = RunPaths(tmp_path)
    ledger = Ledger(paths.ledger)
    for number in ("1", "2"):
        assert ledger.begin_attempt("d") == number
        paths.attempt("d", number).mkdir(parents=True)
    lines = paths.ledger.read_bytes().splitlines(keepends=True)
    paths.ledger.write_bytes(b"".join(lines[:-1]) + lines[-1].replace(b'"2"', b'"7"'))
    assert Ledger(paths.ledger).begin_attempt("d") == "3"


def test_a_line_that_sweep_did_not_write_is_no_entry(tmp_path):
    """One without a checksum, and one of a later version, whose outcome this one does not know."""
    invented, later = json.dumps({"event": "trial", "row": ROW}), {**ROW, "outcome": "fine"}
    (tmp_path / "ledger.jsonl").write_bytes(invented.encode() + b"\n" + sealed({"event": "trial", "row": later}))
    ledger = Ledger(tmp_path / "ledger.jsonl", write=False)
    problems = [problem for _, _, problem in ledger.set_aside]
    assert problems == ["its checksum is missing or damaged", "unknown outcome fine"]
    assert not ledger.rows


def test_a_mirror_passes_over_what_is_no_entry(tmp_path):
    mirror = Mirror(SimpleNamespace(url="s3://bucket/run"), tmp_path, print)
    assert list(mirror._files(b'{}\n{"event": "trial"}\n')) == []


def test_a_ledger_is_written_anew_when_most_of_it_is_superseded(tmp_path, monkeypatch):
    monkeypatch.setattr("sweep.disk.ledger.COMPACT_BYTES", 2000)
    ledger = Ledger(tmp_path / "ledger.jsonl")
    row = {"trial_id": "a", "deployment_id": "d", "attempt": "1", "outcome": "hung", "fault": "engine", "reason": "x"}
    for _ in range(2):
        ledger.commit(row)
    for attempt in "123":
        ledger.commit({**row, "trial_id": "b", "outcome": "ok", "goodput": None, "attempt": attempt})
    for _ in range(50):
        ledger.commit({**row, "trial_id": "c", "outcome": "invalid"})
    before = (tmp_path / "ledger.jsonl").stat().st_size
    again = Ledger(tmp_path / "ledger.jsonl")
    assert (tmp_path / "ledger.jsonl").stat().st_size < before / 5
    assert (again.run, again.rows, again.histories) == (ledger.run, ledger.rows, ledger.histories)
    assert again.history("a").final
    assert [row["attempt"] for row in again.superseded] == ["1", "2"], "results are kept"
    assert Ledger(tmp_path / "ledger.jsonl", write=False).superseded == again.superseded
    reread = Ledger(tmp_path / "ledger.jsonl", write=False)
    assert (reread.rows, reread.histories) == (ledger.rows, ledger.histories)


def test_a_sealed_line_reads_as_it_was():
    entry = {"a": "täxt", "b": [1, None]}
    assert unsealed(sealed(entry)) == entry
    with pytest.raises(ValueError, match="checksum does not match"):
        unsealed(sealed(entry).replace(b"1", b"2"))
    with pytest.raises(ValueError, match="checksum is missing or damaged"):
        unsealed(sealed(entry).replace(b'"crc"', b'"crd"'))
