"""The screen that ends a run is kept in its folder, shown as it was, and never for other files than its own."""

import io
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from analysis.answers import screen
from analysis.answers.screen import KEPT, Screen, is_stale, keeping, kept_screen
from analysis.load import Run
from analysis.report.terminal import screen_of
from analysis.results import RunResults
from sweep.__main__ import main
from sweep.base.config import ROOT, ConfigError
from tests.report.test_terminal import ladder, main_job, many
from tests.support.results import run_of, trial
from tests.support.synthetic_run import make_run

ROWS = [trial(name, 8, n, speed + n, launch=f"{name}{n}") for name, speed in (("a", 50), ("b", 80)) for n in range(3)]


def printed(shown: RenderableType, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=True)
    console.print(shown)
    return str(console.file.getvalue())


def keep(run: Run) -> Screen:
    with keeping(run.paths.out) as screens:
        summary = screen_of(RunResults(run))
        screens.append(summary)
    return summary


@pytest.fixture
def report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """Write the report of a small run; return what its summary prints."""
    run_of(tmp_path, ROWS)
    assert main(["report", str(tmp_path)]) == 0

    def summary() -> str:
        capsys.readouterr()
        assert main(["summary", str(tmp_path)]) == 0
        return "".join(capsys.readouterr())

    return summary


@pytest.mark.slow
@pytest.mark.parametrize("make", [main_job, ladder, many])
def test_a_kept_screen_is_the_same_at_every_width(make: Callable[[Path], Run], tmp_path: Path) -> None:
    summary = keep(make(tmp_path))
    kept = kept_screen(tmp_path)
    assert kept is not None
    for width in (60, 80, 100, 160, 200):
        assert printed(kept, width) == printed(summary, width)


def test_a_finished_run_is_shown_without_the_libraries_that_compute(report: Callable[[], str], tmp_path: Path) -> None:
    heavy = ("pandas", "scipy", "numpy", "pyarrow", "matplotlib")
    asked = f"import sys; from sweep.__main__ import main; main(['summary', {str(tmp_path)!r}])"
    program = f"{asked}; print([name for name in {heavy} if name in sys.modules])"
    clean = dict(os.environ)  # without the COLUMNS that readline adds to a process
    command = [sys.executable, "-c", program]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=clean)
    assert shown.stdout == report() + "[]\n"
    assert f"report: {tmp_path}/report.html" in shown.stdout


def test_a_changed_run_is_computed_again(report: Callable[[], str], tmp_path: Path) -> None:
    """Also if a file has its old size and time of modification."""
    before = report()
    trials = tmp_path / "trials.parquet"
    run_of(tmp_path, [row | {"output_throughput": 2 * row["output_throughput"]} for row in ROWS])
    doubled = report()
    assert "162 (" in doubled
    assert "162 (" not in before
    assert "out of date" in doubled
    assert kept_screen(tmp_path) is not None, "kept anew"
    times, content = trials.stat(), trials.read_bytes()
    trials.write_bytes(content)
    os.utime(trials, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert kept_screen(tmp_path) is None
    assert report() == doubled
    (tmp_path / "deployments" / "a").mkdir(parents=True)
    (tmp_path / "deployments" / "a" / "engine.log").touch()
    assert kept_screen(tmp_path) is None


def test_other_code_or_a_damaged_copy_is_computed_again(
    report: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, code = report(), tmp_path / "deployments"
    monkeypatch.setattr(screen, "ROOT", code)
    assert kept_screen(tmp_path) is None
    monkeypatch.undo()
    assert kept_screen(tmp_path) is not None
    state = json.loads((tmp_path / KEPT).read_text())["state"]
    for damage in ("", "[]", '{"state": 1}', json.dumps({"state": state, "screen": {"points": [[]]}})):
        (tmp_path / KEPT).write_text(damage)
        assert report() == before
        assert kept_screen(tmp_path) is not None


def test_nothing_is_kept_after_a_warning_or_as_files_change(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    results = RunResults(run_of(tmp_path, ROWS))
    with keeping(tmp_path) as screens:
        screens.append(screen_of(results))
        (tmp_path / "ledger.jsonl").touch()
    assert not (tmp_path / KEPT).exists()
    with keeping(tmp_path, is_refreshed=True) as screens:
        screens.append(screen_of(results))
    assert not (tmp_path / KEPT).exists(), "the folder is only read"
    keep(results.run)
    assert kept_screen(tmp_path) is not None
    assert is_stale(tmp_path), "there is no report yet"
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / KEPT).unlink()
    keep(results.run)
    assert not (tmp_path / KEPT).exists(), "a file of unknown state"


def test_a_warning_is_said_although_the_screen_fails(tmp_path: Path) -> None:
    @keeping(tmp_path)
    def fail() -> None:
        warnings.warn("left out: a file", stacklevel=1)
        raise ConfigError("damaged")

    with pytest.warns(UserWarning, match="left out"), pytest.raises(ConfigError):
        fail()


def test_a_damaged_file_is_named_each_time(report: Callable[[], str], tmp_path: Path) -> None:
    make_run(tmp_path, replicates=3, batches=(1,), workloads=("qa",))
    next(tmp_path.glob("deployments/*/*/*/requests.parquet")).write_bytes(b"PAR1")
    for _ in range(2):
        assert report().count("left out: ") == 1
        assert kept_screen(tmp_path) is None
