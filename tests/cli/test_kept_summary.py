"""The summary of a command with nothing to do is the one that was printed before, while it is of the same results."""

import io
import warnings

import pytest
from rich.console import Console
from rich.table import Table

from sweep.base import provenance
from sweep.cli.kept_summary import print_summary
from sweep.disk.run_files import RunPaths


@pytest.fixture
def paths(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "commit", lambda: "0123456789ab")
    monkeypatch.setattr(provenance, "changed_files", lambda: "")
    (tmp_path / "trials.parquet").write_bytes(b"trials")
    (tmp_path / "plan.jsonl").write_bytes(b"plan")
    return RunPaths(tmp_path)


def printed(paths, metrics="sweep", width=60, warning=None, **options):
    """What is printed, and whether it was made for that."""
    console, made = Console(file=io.StringIO(), width=width, color_system="standard", force_terminal=True), []

    def make():
        made.append(1)
        if warning:
            warnings.warn(warning, stacklevel=1)
        table = Table("engine", title="results")
        table.add_row("[bold]größer[/bold]")
        console.print(table)

    print_summary(paths, console, metrics, make, **options)
    return console.file.getvalue(), bool(made)


def test_it_is_made_once_and_printed_the_same(paths):
    text, made = printed(paths)
    assert made
    assert "größer" in text
    assert "\x1b[1m" in text
    assert printed(paths) == (text, False)
    assert printed(paths, rebuild=True) == (text, True)


CHANGES = ("trials", "plan", "metrics", "width", "program", "new file", "no commit", "folder", "damage")


@pytest.mark.parametrize("change", CHANGES)
def test_it_is_made_anew_for_anything_else(paths, monkeypatch, change):
    assert printed(paths)[1]
    options = {"metrics": {"metrics": "vllm"}, "width": {"width": 50}}.get(change, {})
    if change in ("trials", "plan"):
        getattr(paths, change).write_bytes(b"other")
    elif change == "damage":
        kept = paths.out / ".summary.json"
        kept.write_bytes(kept.read_bytes().replace(b"results", b"wonders"))
    elif change == "new file":
        monkeypatch.setattr(provenance, "changed_files", lambda: "?? sweep/numbers/quantities/own.py\n")
    elif change == "folder":
        paths = RunPaths(paths.out.rename(paths.out.with_name("renamed")))
    elif change in ("program", "no commit"):
        monkeypatch.setattr(provenance, "commit", lambda: None if change == "no commit" else "ba9876543210")
    assert printed(paths, **options)[1]
    assert printed(paths, **options)[1] == (change in ("new file", "no commit"))


def test_with_a_warning_it_is_not_kept_and_the_warning_is_said(paths):
    for _ in range(2):
        with pytest.warns(UserWarning, match="left out: requests.parquet"):
            assert printed(paths, warning="left out: requests.parquet")[1]
