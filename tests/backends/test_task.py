"""Programs that prepare something end with the task that wants it: when it is stopped, and when it is killed."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from backends.base import Backend, Launch
from backends.launch import server, supervisor, task
from backends.prepare import checkpoints
from backends.prepare.build_once import exclusive
from sweep.base.config import ROOT
from sweep.node.deployment import clear_engines
from tests.support.waiting import wait_until

PATIENCE = 10.0  # s
# A program with a child in a session of its own, as build tools have them.
FORKING = (
    "import os, subprocess, sys, time; subprocess.Popen(['sleep', '321.5'], start_new_session=True); time.sleep(300)"
)
CONVERT = f"""
import sys
from pathlib import Path
from backends.launch import task
from tests.support.waiting import wait_until
from backends.prepare import checkpoints
import threading
from tests.support.waiting import wait_until
with task.cancel_scope(sys.argv[2], threading.Event()):
    checkpoints.execute([sys.executable, "-c", {FORKING!r}], "conversion", Path(sys.argv[1]), print)
"""


def programs(marker):
    """Ids of living processes with this marker, or one that begins with it."""
    found = supervisor.marked(lambda environ: environ[supervisor.MARKER].startswith(f"{marker}/"))
    return [pid for pid in found if supervisor.start_time(pid) is not None]


@pytest.fixture
def marker(tmp_path):
    return f"test-{os.getpid()}-{tmp_path.name}"


@pytest.fixture
def converting(tmp_path, marker):
    """A process that converts forever, once its program has begun."""
    with subprocess.Popen([sys.executable, "-c", CONVERT, str(tmp_path / "log"), marker], cwd=ROOT) as process:
        wait_until(lambda: len(programs(marker)) == 3)  # the supervisor, the program and its child
        yield process
        process.kill()


def test_nothing_is_left_of_a_killed_task(converting, marker):
    converting.kill()
    wait_until(lambda: not programs(marker))


def test_nothing_is_left_when_the_supervisor_is_killed_too(converting, marker):
    for pid in programs(marker):
        if b"\0hold\0" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
    converting.kill()
    converting.wait()
    server.clear_leftovers()  # as every launch does
    wait_until(lambda: not programs(marker))


def test_a_driver_ends_what_its_predecessors_task_prepares(converting, marker):
    assert clear_engines(marker) <= 3, "once its task is dead, the supervisor ends them too"
    assert converting.wait(PATIENCE) == -signal.SIGKILL, "it would go on to launch an engine"
    assert not programs(marker)


@pytest.mark.slow
def test_a_task_that_is_stopped_gives_up_what_it_prepares(tmp_path, marker):
    stop = threading.Event()
    threading.Timer(1.0, stop.set).start()
    begin = time.monotonic()
    with pytest.raises(task.Stopped), task.cancel_scope(marker, stop):
        checkpoints.execute([sys.executable, "-c", FORKING], "conversion", tmp_path / "log", print)
    assert time.monotonic() - begin < PATIENCE
    assert not programs(marker)


def test_a_task_that_is_stopped_waits_for_no_other(tmp_path, marker):
    stop = threading.Event()
    with (
        exclusive(tmp_path / "lock", lambda: None),
        task.cancel_scope(marker, stop),
        pytest.raises(task.Stopped),
        exclusive(tmp_path / "lock", stop.set),
    ):
        pass


class Silent(Backend):
    """An engine that never answers."""

    def command(self, launch):
        return ["sleep", "300"]


@pytest.mark.slow
def test_a_task_that_is_stopped_gives_up_its_launch(tmp_path, marker):
    stop = threading.Event()
    threading.Timer(1.0, stop.set).start()
    launch = Launch(model=tmp_path, served_name="m", workdir=tmp_path)
    begin = time.monotonic()
    with (
        pytest.raises(task.Stopped),
        task.cancel_scope(marker, stop),
        server.running(Silent(name="silent"), launch, marker=f"{marker}/1"),
    ):
        pass
    assert time.monotonic() - begin < PATIENCE
    assert not programs(marker)


def test_a_program_has_its_own_input_output_and_status(marker):
    code = "import sys; print(sys.stdin.read()[::-1]); sys.exit(7)"
    with task.program([sys.executable, "-c", code], os.environ, stdin=-1, stdout=-1) as process:
        assert process.communicate("abc")[0] == "cba\n"
    assert process.returncode == 7
    with task.program(["/no/such/program"], os.environ, stderr=-1) as process:
        assert process.stderr is not None
        assert process.stderr.read().startswith("error: cannot start /no/such/program: [Errno 2] No such file")
    assert process.returncode == 127
