"""Small files put together at a run's end: every row can be read before, during and after, and none is lost."""

import functools
import json
import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import analysis
from analysis.load import trial_folder
from sweep.__main__ import main
from sweep.disk import compaction, run_files
from sweep.disk.ledger_lines.consistency import trials_with_damaged_data
from sweep.disk.request_figures import RequestFigures, read_figures
from sweep.disk.run_files import DamagedFile, RunPaths
from sweep.disk.tables import opened_table, read_table
from tests.cli.test_line import SIMULATED
from tests.support.synthetic_run import make_run


@pytest.fixture
def paths(tmp_path):
    return make_run(tmp_path / "run", batches=(1, 8), workloads=("qa",))


def files_of(paths: RunPaths) -> list[Path]:
    return sorted(paths.deployments.glob("*/*/*/*.parquet"))


def everything(paths: RunPaths) -> list[object]:
    run = analysis.open_results(paths.out).run
    figures = [read_figures(trial_folder(run, row) / "requests.parquet") for _, row in run.ok.iterrows()]
    gaps = [int(each.gaps.sum()) for each in figures if isinstance(each, RequestFigures)]
    assert len(gaps) == len(figures), figures
    return [analysis.requests(paths.out).to_json(), analysis.telemetry(paths.out).to_json(), gaps]


def with_trial_rows(paths: RunPaths) -> RunPaths:
    """The run with the file that a trial's folder is complete with, which made-up runs do not have."""
    for row in run_files.read_trials(paths.trials):
        if row["attempt"] is not None:
            trial = paths.trial(row["deployment_id"], row["attempt"], row["trial_id"])
            if trial.requests.exists():
                run_files.write_trial(trial, {name: value for name, value in row.items() if value is not None})
    return paths


@pytest.mark.slow
def test_a_compacted_run_reads_as_before(paths, tmp_path):
    with_trial_rows(paths)
    before, tables = everything(paths), {file: read_table(file) for file in files_of(paths)}
    records = [run_files.read_requests(file) for file in tables if file.name == "requests.parquet"]
    assert compaction.compact(paths) == 0, "so few files gain nothing"
    assert compaction.compact(paths, fewest=2) == len(tables) > 6
    assert files_of(paths) == []
    assert len(list(paths.compact.glob("*.parquet"))) == 3
    assert everything(paths) == before
    for file, table in tables.items():
        assert read_table(file).equals(table)
        some = table.column_names[1:3]
        assert read_table(file, [*some, "no such column"]).equals(table.select(some))
    again = [run_files.read_requests(file) for file in tables if file.name == "requests.parquet"]
    assert list(map(repr, map(vars, again))) == list(map(repr, map(vars, records)))  # NaN is not equal to itself
    rows = pq.read_table(next(paths.compact.glob("requests-*")))  # for those who read it without us
    assert rows.num_rows == sum(len(table) for file, table in tables.items() if file.name == "requests.parquet")
    assert {"deployment_id", "attempt", "trial_id"} < set(rows.column_names)
    with pytest.raises(FileNotFoundError):
        read_table(next(iter(tables)).parent.with_name("never-measured") / "requests.parquet")


@pytest.mark.slow
def test_a_run_that_is_killed_on_the_way_loses_nothing_and_goes_on(paths, monkeypatch):
    """Before, during and after: whatever file operation is the last one, all rows can be read."""
    with_trial_rows(paths)
    before, number = everything(paths), len(files_of(paths))
    unlink = Path.unlink

    class Killed(BaseException):
        pass

    for survivors in (number, number - 1, number - 5):  # before the first removal, then after some

        def dying(self, missing_ok=False, survivors=survivors):
            if self.parent.parent.parent.parent == paths.deployments and len(files_of(paths)) <= survivors:
                raise Killed
            unlink(self, missing_ok)

        monkeypatch.setattr(Path, "unlink", dying)
        with pytest.raises(Killed):
            compaction.compact(paths, fewest=2)
        assert len(files_of(paths)) == survivors
        assert everything(paths) == before
    monkeypatch.setattr(Path, "unlink", unlink)
    compaction.compact(paths)  # few are left, and they are in a compact file already
    assert [file.name for file in files_of(paths) if file.name == "requests.parquet"] == []
    compaction.compact(paths, fewest=1)
    assert files_of(paths) == []
    assert everything(paths) == before


@pytest.mark.slow
def test_only_what_was_written_right_is_removed(paths, monkeypatch):
    with_trial_rows(paths)
    before, number = everything(paths), len(files_of(paths))
    write_group = compaction._write_group
    monkeypatch.setattr(compaction, "_write_group", lambda writer, tables: write_group(writer, tables[::-1]))
    compaction.compact(paths, fewest=2)  # the rows of one trial under the name of another
    assert len(files_of(paths)) > number / 2
    assert everything(paths) == before


@pytest.mark.slow
def test_tables_of_other_columns_and_damaged_ones_do_not_hinder_it(paths):
    """What an older version wrote lacks columns, which stay lacking; what is damaged stays, and is named."""
    with_trial_rows(paths)
    first, second, *_ = (file for file in files_of(paths) if file.name == "requests.parquet")
    pq.write_table(pq.read_table(first).drop_columns(["streamed_tokens"]), first)
    older = run_files.read_requests(first)
    content = bytearray(second.read_bytes())
    content[200:204] = bytes(255 - byte for byte in content[200:204])
    second.write_bytes(content)
    compaction.compact(paths, fewest=2)
    assert files_of(paths) == [second]
    assert run_files.read_requests(first).streamed_tokens == older.streamed_tokens
    with opened_table(first) as table:
        assert "streamed_tokens" not in table.names
    with pytest.raises(DamagedFile, match="requests.parquet"):
        analysis.requests(paths.out)


@pytest.mark.slow
def test_a_file_that_was_damaged_after_it_was_put_into_a_compact_one_stays(paths, monkeypatch):
    """A run was killed between the two: what cannot be compared is not removed, and the run ends as usual."""
    with_trial_rows(paths)
    with monkeypatch.context() as killed:
        killed.setattr(Path, "unlink", lambda self, missing_ok=False: None)
        compaction.compact(paths, fewest=2)
    files = files_of(paths)
    damaged = next(file for file in files if file.name == "requests.parquet")
    content = bytearray(damaged.read_bytes())
    content[200:204] = bytes(255 - byte for byte in content[200:204])
    damaged.write_bytes(content)
    assert compaction.compact(paths, fewest=2) == len(files) - 1
    assert files_of(paths) == [damaged]


@pytest.mark.slow
def test_a_damaged_compact_file_is_named_and_its_trials_are_measured_again(paths):
    with_trial_rows(paths)
    rows = [row for row in run_files.read_trials(paths.trials) if row["outcome"] == "ok"]
    compaction.compact(paths, fewest=2)
    assert trials_with_damaged_data(paths, rows) == set()
    (compact_file,) = paths.compact.glob("requests-*")
    shutil.copytree(paths.out, copy := paths.out.with_name("copy"))  # of which nothing is known yet
    damaged = RunPaths(copy).compact / compact_file.name
    damaged.write_bytes(damaged.read_bytes()[:-100])
    with pytest.raises(DamagedFile, match=compact_file.name):
        analysis.requests(copy)
    assert trials_with_damaged_data(RunPaths(copy), rows) == {row["trial_id"] for row in rows}
    assert len(analysis.load(copy)) == len(analysis.load(paths.out))


def dead_links(paths: RunPaths) -> list[str]:
    block = re.search(r'<script[^>]*id="page-data"[^>]*>(.*?)</script>', paths.report.read_text(), re.DOTALL)
    assert block
    links = json.loads(block[1])["files"]
    assert len(links) >= 3
    return [path for _, path in links if not (paths.out / path).is_file()]


@pytest.mark.slow
def test_a_report_links_to_files_that_exist_though_they_move_at_the_end_of_the_run(tmp_path, monkeypatch, capsys):
    paths = RunPaths(tmp_path / "out")
    monkeypatch.setattr("sweep.cli.run.compact", functools.partial(compaction.compact, fewest=1))
    assert main([*SIMULATED, f"out={paths.out}"]) in (0, 1)
    assert dead_links(paths) == []
    assert files_of(paths) == []


@pytest.mark.slow
def test_a_report_is_made_anew_if_the_files_moved_and_the_command_was_killed_before_it(tmp_path, monkeypatch, capsys):
    command, paths = [*SIMULATED, f"out={tmp_path / 'out'}"], RunPaths(tmp_path / "out")

    class Killed(BaseException):
        pass

    def fail(*arguments, **options):
        raise OSError("no space left")

    def die(*arguments, **options):
        raise Killed

    monkeypatch.setattr("sweep.cli.run.compact", fail)
    assert main(command) in (0, 1)
    assert "no space left" in capsys.readouterr().out
    assert dead_links(paths) == []
    monkeypatch.setattr("sweep.cli.run.compact", functools.partial(compaction.compact, fewest=1))
    with monkeypatch.context() as killed:
        killed.setattr("sweep.cli.run.print_report", die)
        with pytest.raises(Killed):
            main(command)
    assert dead_links(paths), "the files have moved, and there is no new report yet"
    assert main(command) in (0, 1)
    assert dead_links(paths) == []
