"""What the simulation studies write and print."""

import json

import pytest

from benchmarks import coverage, winners


def test_the_coverage_study_states_which_cells_it_leaves_out_and_that_a_tree_was_dirty(tmp_path, capsys, monkeypatch):
    document = tmp_path / "coverage.md"
    document.write_text("<!-- tables: python -m benchmarks.coverage -->\n")
    monkeypatch.setattr(coverage, "DOCUMENT", document)
    cell = coverage.Cell("ours", "p50", "lognormal", 100, 3, 400, 1.0, 0.95, 1.2, 0.05, 80.0, "0123456789ab+")
    rows = [cell, cell._replace(rule="earlier", requests=24), cell._replace(rule="earlier")]
    table = document.with_suffix(".csv")
    table.write_text("\n".join([",".join(cell._fields), *(",".join(map(str, row)) for row in rows)]))
    coverage.write([])
    assert capsys.readouterr().err == "coverage.csv: 2 cells of the unknown rule 'earlier' are left out\n"
    assert len(table.read_text().splitlines()) == 2
    assert "Measured at commit 0123456789ab+ (400 repetitions a cell)." in document.read_text()


def test_the_study_of_unlike_launches_ends_with_its_cells_as_json(capsys, monkeypatch):
    monkeypatch.setattr(winners, "UNLIKE", [(winners.RESEMBLING, 3, 2)])
    winners.main(["--unlike", "--sweeps", "4"])
    cell, _ = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (cell["launches"], cell["engines"], cell["replicates"]) == (winners.RESEMBLING, 3, 2)
    with pytest.raises(SystemExit):
        winners.main(["--unlike", "--uneven", "3"])
    assert "--uneven: not allowed with argument --unlike" in capsys.readouterr().err
