"""One driver at a time: with locks, without, with locks of one node, and when the lock's file is gone."""

import contextlib
import errno
import fcntl
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from sweep.base.config import ISSUE_AGAIN, ROOT, ConfigError
from sweep.disk import folder_lock, heartbeat_lock
from sweep.disk.folder_lock import file_system, sole_driver
from sweep.disk.ledger import Misplaced
from sweep.disk.run_files import read_trials
from tests.cli.test_line import SIMULATED
from tests.support.waiting import wait_until

LONG = [*SIMULATED, "load.batch_size=1", "workload.num_requests=2", "replicates=20"]
APART = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *(["--map-root-user"] if os.getuid() else [])]


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(heartbeat_lock, "LOCK_TIMEOUT", 1.0)
    monkeypatch.setattr(heartbeat_lock, "LOCK_POLL", 0.1)
    monkeypatch.setattr(heartbeat_lock, "LOCK_HEARTBEAT", 0.2)


def refused(out):
    holder = rf"out={out}: another sweep is running with this out \(process {os.getpid()} on "
    with pytest.raises(ConfigError, match=holder), sole_driver(out):
        pass


def test_a_removed_lock_lets_no_second_driver_in(tmp_path, quick):
    with sole_driver(tmp_path):
        (tmp_path / ".lock").unlink()
        refused(tmp_path)
    with sole_driver(tmp_path):
        pass


@pytest.fixture
def no_flock(monkeypatch):
    """A file system whose locks are one node's: every node gets its own."""
    monkeypatch.setattr(folder_lock, "_lock", lambda descriptor: None)


@pytest.mark.slow
def test_a_driver_that_died_on_another_node_is_waited_for_and_then_not(tmp_path, quick, no_flock, monkeypatch):
    lock = {"owner": "x", "who": "process 1 on another", "host": "another", "pid": 1, "began": 0.0, "beat": 1.0}
    (tmp_path / ".heartbeat").write_text(json.dumps(lock))
    begin, notes = time.monotonic(), []
    with sole_driver(tmp_path, notes.append):
        assert time.monotonic() - begin >= 1.0
    assert "is locked by process 1 on another: waiting 1 s" in notes[0]


def test_a_driver_that_died_on_this_host_is_not_waited_for(tmp_path):
    script = f"""
import os, pathlib
from sweep.disk.folder_lock import sole_driver
with sole_driver(pathlib.Path({str(tmp_path)!r})):
    os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == -signal.SIGKILL
    assert (tmp_path / ".heartbeat").exists()
    begin = time.monotonic()
    with sole_driver(tmp_path):
        assert time.monotonic() - begin < 10, "its time-out is 20 s"


@pytest.mark.slow
@pytest.mark.parametrize("beats", [True, False])
def test_a_process_of_its_number_is_the_holder_only_if_it_beats(tmp_path, quick, no_flock, beats):
    """Another process has the number, or the clock was set, from which the start of a process is told."""
    holder = folder_lock.Heartbeat(tmp_path)
    lock = holder.describe_holder() | {"began": 0.0}
    holder.describe_holder = lambda: lock | {"beat": time.time()}
    holder.beat()
    if beats:
        holder.keep()
        refused(tmp_path)
        holder.end()
    else:
        with sole_driver(tmp_path, lambda text: None):
            assert not holder.ours()


def test_a_driver_that_stood_still_asks_whose_the_folder_is_before_it_writes(tmp_path):
    """Frozen for longer than the time-out, on a shared folder: only its next heartbeat told it, some seconds later."""
    frozen, other = folder_lock.Heartbeat(tmp_path), folder_lock.Heartbeat(tmp_path)
    frozen.beat()
    other.beat()
    frozen.check()  # its heartbeats are sent: nothing is asked
    monotonic, wall = time.monotonic(), time.time()
    for last_beat in ((monotonic - 60, wall), (monotonic, wall - 60)):  # either clock may have stood still with it
        frozen.last_beat = last_beat
        with pytest.raises(Misplaced, match="another driver has taken over; this run stops writing"):
            frozen.check()
    frozen.beat()
    frozen.last_beat = time.monotonic() - 60, time.time() - 60
    frozen.check()  # still its own


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(path, content):
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        folder_lock.Heartbeat(tmp_path).beat()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"{}", b"null", b'{"host": 3}', b'{"owner": 1, "who": 2}'])
def test_a_damaged_heartbeat_is_none(tmp_path, quick, content):
    (tmp_path / ".heartbeat").write_bytes(content)
    with contextlib.suppress(ConfigError), sole_driver(tmp_path):
        pass


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named(tmp_path, quick, monkeypatch, number):
    """It is no driver that runs there; the heartbeat keeps a second one away."""

    def flock(descriptor, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    notes = []
    with sole_driver(tmp_path, notes.append):
        assert notes == [
            f"out={tmp_path}: file locks are not supported here ({os.strerror(number)}); using the heartbeat file only"
        ]
        refused(tmp_path)


def test_a_lock_of_which_another_name_is_read_once_stays_ours_and_a_released_one_does_not_come_back(tmp_path, quick):
    """A store may answer with an older state. After a long silence another driver may have come and gone."""
    lock, reads = heartbeat_lock.Lock(folder_lock._Folder(tmp_path)), []
    lock.beat()
    answers = iter([json.dumps({"owner": "another", "who": "x"}).encode(), None])
    lock.store.read = lambda name: reads.append(name) or next(answers)
    assert lock.ours()
    assert len(reads) == 2
    lock.store.read = lambda name: None
    lock.last_beat = time.monotonic() - 60, time.time() - 60
    assert not lock.ours()


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["other boot/pid:[1]", None], ids=["elsewhere", "seen from here"])
def test_a_process_id_counts_only_where_it_means_one_process(tmp_path, quick, no_flock, processes):
    """A driver in another pid namespace of the same host was declared dead, and each took over from the other."""
    holder = folder_lock.Heartbeat(tmp_path)
    lock = holder.describe_holder() | {"pid": 2**22 + 1} | ({"processes": processes} if processes else {})
    holder.describe_holder = lambda: lock | {"beat": time.time()}
    holder.beat()
    holder.keep()
    if processes:
        refused(tmp_path)
    else:
        with sole_driver(tmp_path):
            pass
    holder.end()


def test_a_deleted_folder_is_not_made_again(tmp_path, quick):
    with sole_driver(tmp_path / "out"):
        shutil.rmtree(tmp_path / "out")
        time.sleep(0.5)
    assert not (tmp_path / "out").exists()


def test_the_file_system_is_that_of_the_mount(tmp_path):
    assert file_system(Path("/proc/self")) == "proc"
    (tmp_path / "results").symlink_to("/proc")
    assert file_system(tmp_path / "results") == "proc", "behind a link"
    assert file_system(tmp_path)


# Through the whole command -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def running(out, *prefix, verb="run", stdout=subprocess.PIPE, **environ):
    """A sweep that has its first row."""
    command = [*prefix, sys.executable, "-m", "sweep", verb, *LONG, f"out={out}"]
    streams = {"stdout": stdout, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | environ, **streams) as process:
        ledger = out / "ledger.jsonl"
        wait_until(lambda: ledger.exists() and b'"trial"' in ledger.read_bytes(), 60)
        yield process
        process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("replaced", [False, True], ids=["deleted", "replaced"])
def test_a_results_folder_that_goes_halts_the_run_at_once(tmp_path, replaced):
    out = tmp_path / "out"
    with running(out) as process:
        out.rename(tmp_path / "aside")  # at one stroke: the run writes nothing into a folder that is half deleted
        if replaced:
            shutil.copytree(tmp_path / "aside", out)
        assert process.wait(60) == ISSUE_AGAIN
        assert "ledger.jsonl was deleted or replaced; this run stops writing" in process.stdout.read()
    assert out.exists() == replaced


@pytest.mark.slow
def test_a_lock_that_is_deleted_is_written_again_by_its_driver(tmp_path):
    heartbeat = tmp_path / "out" / ".heartbeat"
    with running(tmp_path / "out", SWEEP_TIME_FACTOR="0.1"):
        owner = json.loads(heartbeat.read_text())["owner"]
        heartbeat.unlink()
        wait_until(heartbeat.exists)
        assert json.loads(heartbeat.read_text())["owner"] == owner


@pytest.mark.slow
@pytest.mark.skipif(bool(subprocess.run([*APART, "true"], capture_output=True).returncode), reason="needs namespaces")
def test_of_two_drivers_under_reissue_each_ends_and_none_ends_the_other_in_turn(tmp_path):
    """The first is frozen until the second has taken over. Then it is issued again until the second has finished."""
    heartbeat, again = tmp_path / "out" / ".heartbeat", {"verb": "reissue", "SWEEP_TIME_FACTOR": "0.2"}
    with running(tmp_path / "out", *APART, **again) as first:
        members = psutil.Process(first.pid).children(recursive=True)
        (driver,) = (each for each in members if each.cmdline()[1:4] == ["-m", "sweep", "run"])
        driver.suspend()
        owner = json.loads(heartbeat.read_text())["owner"]
        heartbeat.with_name(".lock").unlink()  # as on a file system whose locks are one node's
        with running(tmp_path / "out", *APART, **again) as second:
            wait_until(lambda: json.loads(heartbeat.read_text())["owner"] != owner, 60)
            driver.resume()
            printed = [process.communicate(timeout=300)[0] for process in (second, first)]
    assert [text.count("another driver has taken over") for text in printed] == [0, 1], printed
    assert {first.returncode, second.returncode} <= {0, 1}, "a busy machine may spoil one (client_limited)"
    rows = read_trials(tmp_path / "out" / "trials.parquet")
    assert (len(rows), {row["outcome"] for row in rows} - {"client_limited"}) == (20, {"ok"})


@pytest.mark.slow
def test_a_results_folder_that_is_deleted_under_the_writing_driver_halts_the_run_and_is_not_made_anew(tmp_path):
    """File by file, while engine, trial and driver write into it."""
    out = tmp_path / "out"
    with running(out) as process:
        for _ in range(20):  # rm gives up on a folder into which something was written meanwhile
            if subprocess.run(["rm", "-rf", out], check=False, capture_output=True).returncode == 0:
                break
        assert process.wait(60) == ISSUE_AGAIN
        printed = process.stdout.read()
    assert "this run stops writing" in printed
    assert "Traceback" not in printed
    assert not out.exists(), sorted(out.rglob("*"))


@pytest.mark.slow
def test_a_terminal_that_is_gone_ends_the_run_as_sigterm_does(tmp_path):
    """ssh without tmux: the running trial ends, the table is written, the status is 130."""
    master, terminal = pty.openpty()
    with running(tmp_path / "out", stdout=terminal) as process:
        os.close(terminal)
        os.close(master)
        process.send_signal(signal.SIGHUP)
        assert process.wait(60) == 130
    assert (tmp_path / "out" / "trials.parquet").exists()
    assert json.loads((tmp_path / "out" / "status.json").read_text())["ended"]
