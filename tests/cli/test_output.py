"""Output: a reader that goes away ends nothing, and text of others cannot control a terminal."""

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sweep.base.config import ROOT
from sweep.cli.output import make_console
from sweep.disk.run_files import read_trials
from tests.cli.test_line import SIMULATED
from tests.support.results import run_of, trial

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-m", "sweep"]


@pytest.mark.parametrize(
    ("opened", "cluster"),
    [(os.pipe, "inline"), (pty.openpty, "inline"), (os.pipe, "local")],
    ids=["pipe", "terminal", "pipe and Ray"],
)
def test_a_run_whose_reader_is_gone_goes_on_to_its_end(tmp_path, opened, cluster):
    """`| tee` that is killed, ssh that drops: every trial is measured, and the report is written."""
    out, (reader, writer) = tmp_path / "out", opened()
    line = [*SIMULATED, "load.batch_size=1", "workload.num_requests=2", "replicates=6", f"out={out}"]
    line[line.index("cluster=inline")] = f"cluster={cluster}"
    with subprocess.Popen([*COMMAND, *line], cwd=ROOT, stdout=writer, stderr=writer, start_new_session=True) as process:
        os.close(writer)
        printed = b""
        while b"1/6" not in printed:  # "[1/6, …]", or the bar of a terminal
            printed += os.read(reader, 65536)
        os.close(reader)
        status = process.wait(200)
    outcomes = [row["outcome"] for row in read_trials(out / "trials.parquet")]
    assert len(outcomes) == 6
    assert set(outcomes) <= {"ok", "client_limited"}  # the latter on a busy machine
    assert status == int(set(outcomes) != {"ok"})
    assert json.loads((out / "status.json").read_text())["ended"]
    assert (out / "report.html").exists()


def test_a_command_whose_reader_is_gone_ends_with_its_own_status(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    run_of(tmp_path / "run", [trial("vllm", 1, 0, 100.0)])
    reader, writer = os.pipe()
    os.close(reader)
    for arguments, stderr, status in (
        (["summary", run], subprocess.PIPE, 0),
        (["status", run], writer, 0),
        (["nope=1"], writer, 2),
    ):
        process = subprocess.run([*COMMAND, *arguments], cwd=ROOT, stdout=writer, stderr=stderr)
        assert (process.returncode, process.stderr or b"") == (status, b""), arguments
    os.close(writer)


def test_a_closed_stream_leads_nowhere(tmp_path: Path) -> None:
    """Its number became that of the next file: of the ledger, into which a library's warnings were then printed."""
    run, out = tmp_path / "run", tmp_path / "out"
    run_of(run, [trial("vllm", 1, 0, 100.0)])
    closed = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *COMMAND]
    point = [*SIMULATED, "load.batch_size=1", "workload.num_requests=2", f"out={out}"]
    commands = (["summary", str(run)], ["status", str(run)], ["report", str(run)], ["rerun", "-"], ["nope=1"], point)
    ran = {command[0]: subprocess.run([*closed, *command], cwd=ROOT).returncode for command in commands}
    assert ran.pop(point[0]) in (0, 1), "a busy machine may spoil the trial (client_limited)"
    assert ran == {"summary": 0, "status": 0, "report": 0, "rerun": 2, "nope=1": 2}
    assert [row["outcome"] in ("ok", "client_limited") for row in read_trials(out / "trials.parquet")] == [True]
    code = "import sys; from sweep.cli.output import replace_streams; replace_streams(); "
    code += "print(open(sys.argv[1]).fileno(), file=open(sys.argv[2], 'w'))"
    subprocess.run([*closed[:4], sys.executable, "-c", code, __file__, str(tmp_path / "number")], cwd=ROOT, check=True)
    assert int((tmp_path / "number").read_text()) > 2


def test_a_pipe_that_another_program_made_non_blocking_gets_everything() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    code = "from sweep.cli.output import replace_streams; replace_streams(); print('x' * 1_000_000)"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=writer) as process:
        os.close(writer)
        with open(reader, "rb") as pipe:
            assert len(pipe.read()) == 1_000_001
    assert process.returncode == 0


def test_output_that_a_full_disk_does_not_take_is_said_and_ends_no_run(tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    run_of(run, [trial("vllm", 1, 0, 100.0)])
    point = [*SIMULATED, "load.batch_size=1", "workload.num_requests=2", f"out={out}"]
    for command, statuses in ((["summary", str(run)], {75}), (["run", *point], {0, 1}), (["--help"], {0})):
        with open("/dev/full", "w") as full:
            ran = subprocess.run([*COMMAND, *command], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
        lines = ran.stderr.splitlines()
        assert lines[-1:] == ["error: standard output: No space left on device; part of the output is missing"], lines
        assert ran.returncode in statuses
        assert "Exception" not in ran.stderr
    assert len(read_trials(out / "trials.parquet")) == 1


def test_a_locale_without_utf8_ends_no_command_with_a_traceback(tmp_path):
    """What the locale lacks is escaped in the output of a run, and refused in a line where a user types it."""
    run_of(tmp_path / "run", [trial("Ünï", 1, 0, 100.0)])
    environ = {**os.environ, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    typed = [*SIMULATED, "load.batch_size=1", "workload.name=Ünï", f"out={tmp_path / 'out'}"]
    shown = (["summary", str(tmp_path / "run")], 0, r"\xdcn\xef")
    for command, status, said in (shown, (typed, 2, "; set PYTHONUTF8=1\n")):
        ran = subprocess.run([*COMMAND, *command], cwd=ROOT, env=environ, capture_output=True, text=True)
        assert (ran.returncode, said in ran.stdout + ran.stderr, ran.stderr.count("\n")) == (status, True, bool(status))


@pytest.mark.parametrize(("columns", "width"), [("100", 100), (None, 160)])
def test_the_width_without_a_terminal(monkeypatch, columns, width):
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    assert make_console(160).width == width


def printed(opened, *arguments):
    reader, writer = opened()
    environ = {**os.environ, "COLUMNS": "300", "TERM": "xterm"}
    with subprocess.Popen([*COMMAND, *arguments], cwd=ROOT, env=environ, stdout=writer, stderr=writer):
        os.close(writer)
        content = b""
        with contextlib.suppress(OSError):  # a terminal that was closed
            while received := os.read(reader, 65536):
                content += received
    os.close(reader)
    return content.decode()


@pytest.mark.parametrize("opened", [os.pipe, pty.openpty], ids=["pipe", "terminal"])
def test_no_text_of_others_controls_a_terminal(tmp_path, opened):
    """Clipboard, C1 and writing direction, in a name and in an engine's words: escaped, also beside colours."""
    hostile, run = "\x1b]52;c;eA==\x07 \x9b2J \u202ekcab\rover", tmp_path / "run"
    run_of(run, [trial("vllm", 1, 0, 100.0), {**trial("vllm", 2, 0, None), "reason": hostile}])
    line = [*SIMULATED, "load.batch_size=1", "workload.num_requests=2", f"out={tmp_path / 'out'}"]
    named = [*line, f"workload.name='{hostile}'"]
    for arguments in (["report", str(run)], ["status", hostile], named, ["status", str(tmp_path / "out")]):
        content = printed(opened, *arguments)
        assert arguments[-1] == str(tmp_path / "out") or r"\x1b]52;c;eA==" in content, content
        plain = re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", content)  # rich's own
        assert not set(plain) & set("\x1b\x07\x9b\u202e"), content
