"""A run in an object store: against a real S3 server process on loopback."""

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pandas as pd
import pytest

import analysis
from backends.launch.server import free_port
from sweep.__main__ import main
from sweep.base.config import ISSUE_AGAIN, ROOT, ConfigError, Halted
from sweep.disk import compaction, heartbeat_lock, object_store, run_files
from sweep.disk.ledger import Ledger, Misplaced
from sweep.disk.run_files import RunPaths, read_trials
from sweep.disk.tables import read_table
from sweep.drive.monitor import status
from sweep.rerun.rows import capsules_of
from tests.rerun.test_rerun import row as capsule_row
from tests.rerun.test_rerun import rows as capsule_rows
from tests.rerun.test_rerun import write_run
from tests.support.results import committed_rows, run_of, trial
from tests.support.synthetic_run import make_records, make_run
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

pytest.importorskip("moto.server", reason="moto[server] is not installed")


@pytest.fixture(scope="module")
def s3():
    """An S3 server with an empty bucket; the environment points to it."""
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port := free_port())]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    endpoint = f"http://127.0.0.1:{port}"
    environment = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "not-so-secret",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    before = os.environ.copy()
    os.environ.update(environment)
    try:
        put(f"{endpoint}/bucket")
        yield endpoint
    finally:
        os.environ.clear()
        os.environ.update(before)
        server.terminate()
        server.wait()


def put(url):
    until = time.monotonic() + 60
    while True:
        try:
            return urllib.request.urlopen(urllib.request.Request(url, method="PUT"), timeout=5)
        except OSError:
            assert time.monotonic() < until, "the S3 server does not start"
            time.sleep(0.2)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(heartbeat_lock, "LOCK_TIMEOUT", 3.0)
    monkeypatch.setattr(heartbeat_lock, "LOCK_HEARTBEAT", 0.5)
    monkeypatch.setattr(heartbeat_lock, "LOCK_POLL", 0.1)
    monkeypatch.setattr(object_store, "LEDGER_POLL", 0.1)


def write_trial(ledger, name):
    """What a driver does for a trial: its files, then its row."""
    paths = RunPaths(Path(ledger.file.name).parent)
    files = paths.trial("d1", "1", name)
    files.folder.mkdir(parents=True, exist_ok=True)
    files.requests.write_bytes(b"PAR1" + bytes(100) + (100).to_bytes(4, "little") + b"PAR1")
    ledger.commit({"trial_id": name, "deployment_id": "d1", "attempt": "1", "outcome": "ok"})


def objects(url):
    return object_store.ObjectStore(url).list()


def test_a_row_in_the_store_has_its_files_there(s3, quick, tmp_path):
    url = "s3://bucket/run-a"
    with object_store.Mirror(object_store.ObjectStore(url), tmp_path, print):
        ledger = Ledger(tmp_path / "ledger.jsonl")
        write_trial(ledger, "t1")
        wait_until(
            lambda: any(
                name.startswith("ledger/") and b"t1" in object_store.ObjectStore(url).read(name)
                for name in objects(url)
            )
        )
        assert "deployments/d1/1/t1/requests.parquet" in objects(url)
        ledger.end_attempt("d1", "1", "done")
        (tmp_path / "report.html").write_text("<html>")
    assert {"report.html", "deployments/d1/1/t1/requests.parquet"} <= set(objects(url))
    assert heartbeat_lock.Lock.NAME not in objects(url), "the lock is released"


def test_an_answer_is_drawn_from_runs_in_a_store(s3, tmp_path, capsys):
    """Two runs of one experiment; the engines' logs stay where they are."""
    for name, speed in (("monday", 110), ("tuesday", 100)):
        folder = tmp_path / name
        run_of(folder, [trial("vllm", 8, launch, speed + launch, launch=f"{name}{launch}") for launch in range(3)])
        store = object_store.ObjectStore(f"s3://bucket/{name}")
        store.upload(folder, [path for path in folder.rglob("*") if path.is_file()])
    assert main(["summary", "s3://bucket/monday", "s3://bucket/tuesday/"]) == 0
    out = capsys.readouterr().out
    assert "vllm (monday) (111 tokens/s" in out
    assert "ahead of vllm (tuesday)" in out
    assert main(["studies", "s3://bucket/monday"]) == 0
    capsys.readouterr()
    assert main(["compare", "s3://bucket/monday", "s3://bucket/tuesday"]) == 0
    assert "throughput: s3://bucket/tuesday against s3://bucket/monday: slower in 1 of 1" in capsys.readouterr().out


def test_the_status_of_a_stored_run_is_that_of_its_folder(s3, quick, tmp_path):
    folder, url = tmp_path / "run-status", "s3://bucket/run-status"
    paths = make_run(folder, batches=(1,), workloads=("qa",))
    rows = read_trials(paths.trials)[:2]
    paths.trials.unlink()  # or the folder's status would name the four results that the ledger lacks
    with object_store.Mirror(object_store.ObjectStore(url), folder, print):
        ledger = Ledger(paths.ledger)
        for row in rows:
            ledger.commit({key: row[key] for key in ("trial_id", "deployment_id", "attempt", "outcome")})
    here, there = (list(status.render(status.find(str(place)))) for place in (folder, url))
    assert there == here
    assert there[0] == "throughput_bound: 2 of 6 trials done (2 ok)"


def stored(folder, url):
    """The URL, at which the store has a run now."""
    store = object_store.ObjectStore(url)
    store.upload(folder, [path for path in folder.rglob("*") if path.is_file()])
    return url


def test_what_bought_the_gain_is_read_from_a_store(s3, tmp_path, capsys):
    run_of(
        tmp_path / "run",
        [
            trial("vllm", 8, launch, speed + launch, launch=f"{step}{launch}", ladder=step, ladder_parent=parent)
            for step, parent, speed in (("one", None, 100), ("two", "one", 150))
            for launch in range(3)
        ],
    )
    assert main(["explain", stored(tmp_path / "run", "s3://bucket/ladder")]) == 0
    assert "two" in capsys.readouterr().out


def test_a_report_of_a_stored_run_lies_beside_its_copy(s3, tmp_path, capsys):
    url = stored(make_run(tmp_path / "run", batches=(1, 8), workloads=("qa",)).out, "s3://bucket/reported")
    copy = tmp_path / "copy"
    assert main(["report", url, "--output", str(copy)]) == 0
    assert (copy / "report.html").read_text().startswith("<!doctype html>")
    assert list(copy.rglob("requests*.parquet")), "the files that the report links to"
    for arguments, message in (
        ([url], "add --output FOLDER"),
        ([url, "--output", str(copy)], "the folder is not empty"),
        ([str(copy), "--output", str(tmp_path / "new")], "expected a folder"),
    ):
        assert main(["report", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_a_copy_needs_a_folder_of_its_own(s3, tmp_path, capsys, monkeypatch):
    """Two runs in one folder are a ledger of one beside the trials of both."""
    one, two = (
        stored(run_of(tmp_path / name, [trial(name, 8, 0, 100)]).paths.out, f"s3://bucket/{name}")
        for name in ("one", "two")
    )
    copy = tmp_path / "copy"
    monkeypatch.setattr(object_store.ObjectStore, "download", failing_half_way)
    assert main(["copy", one, str(copy)]) == 75
    assert not copy.exists(), "or the same command would be refused"
    monkeypatch.undo()
    assert main(["copy", one, str(copy)]) == 0
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    assert main(["copy", two, str(copy)]) == 2
    assert f"error: {copy}: the folder is not empty; expected a new folder\n" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before


def failing_half_way(store, folder, names):
    folder.mkdir()
    (folder / "trials.parquet").write_bytes(b"")
    raise OSError("curlCode: 56, Recv failure: Connection reset by peer")


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("s3://bucket/sweeps/monday", "monday"),
        ("s3://bucket/monday/", "monday"),
        ("s3://bucket/monday?region=eu", "monday"),
        ("s3://bucket/monday?scheme=http&endpoint_override=http://h:9000", "monday"),
        ("gs://bucket", "bucket"),
    ],
)
def test_a_run_in_a_store_is_named_by_its_path(url, name):
    assert object_store.url_name(url) == name


def test_a_report_of_several_runs_names_a_stored_one_by_its_url_and_links_to_none_of_its_files(s3, tmp_path):
    here = make_run(tmp_path / "here", batches=(1, 8), workloads=("qa",)).out
    url = stored(here, "s3://bucket/there")
    assert main(["report", str(here), url, "--output", str(tmp_path / "both")]) == 0
    text = (tmp_path / "both" / "report.html").read_text()
    page = json.loads(text.partition('id="page-data">')[2].partition("</script>")[0])
    assert {path.split("/")[1] for _, path in page["files"]} == {"here"}
    again = dict(zip(page["points"]["name"], page["points"]["again"], strict=True))
    assert again["vllm (there), qa, batch size 8"].startswith(f"sweep rerun {url}#")
    assert f"<dd>{url}</dd>" in text
    assert "sweep-run-" not in text, "the copy is removed"


def test_the_library_reads_a_stored_run_as_it_reads_a_folder(s3, tmp_path):
    folder = make_run(tmp_path / "run", batches=(1, 8), workloads=("qa",)).out
    url = stored(folder, "s3://bucket/library")
    for read in (analysis.load, analysis.requests, analysis.telemetry, lambda run: analysis.quantiles(run).table):
        pd.testing.assert_frame_equal(read(url), read(folder))
    results = analysis.open_results(url)
    pd.testing.assert_frame_equal(results.summary, analysis.open_results(folder).summary)
    local = results.run.paths.out
    with pytest.raises(ValueError, match="needs a folder"):
        analysis.write_all(results)
    assert local.exists()
    del results
    gc.collect()
    assert not local.exists(), "the copy is removed with what was read from it"
    with pytest.raises(analysis.RunNotFound, match="s3://bucket/nothing: no run here"):
        analysis.load("s3://bucket/nothing")


def test_a_row_of_a_stored_run_becomes_the_same_capsule(s3, tmp_path):
    folder = write_run(tmp_path / "run", capsule_rows())
    url = stored(tmp_path / "run", "s3://bucket/rerun")
    here, there = (capsules_of(f"{run}#{capsule_row()['trial_id']}")[0] for run in (folder, url))
    assert there.text().replace(url, str(folder)) == here.text()


def test_a_run_in_a_store_is_exported(s3, tmp_path, capsys):
    folder = make_run(tmp_path / "run", batches=(1, 8), workloads=("qa",)).out
    store = object_store.ObjectStore("s3://bucket/exported")
    store.upload(folder, [path for path in folder.rglob("*") if path.is_file()])
    assert main(["export", "s3://bucket/exported", str(tmp_path / "files")]) == 0
    assert "8 results of 4 points" in capsys.readouterr().out


def test_compact_files_take_the_place_of_the_small_ones(s3, quick, tmp_path):
    url, paths = "s3://bucket/run-compact", RunPaths(tmp_path / "here")
    trials = [paths.trial("d1", "1", name) for name in ("t1", "t2")]
    with object_store.Mirror(object_store.ObjectStore(url), paths.out, print) as mirror:
        ledger = Ledger(paths.ledger)
        for files in trials:
            run_files.write_requests(files, make_records(2, 1, 3, 0.1, 0.01))
            run_files.write_trial(files, trial("vllm", 1, 0, 10.0))
            ledger.commit({"trial_id": files.folder.name, "deployment_id": "d1", "attempt": "1", "outcome": "ok"})
        assert mirror.settle()
        small = {f"deployments/d1/1/{files.folder.name}/requests.parquet" for files in trials}
        assert small <= objects(url).keys()
        tables = [read_table(files.requests) for files in trials]
        assert compaction.compact(paths, fewest=2) == 4
    assert not small & objects(url).keys()
    object_store.copy(url, tmp_path / "copy")
    again = [RunPaths(tmp_path / "copy").trial("d1", "1", files.folder.name).requests for files in trials]
    assert all(read_table(path).equals(table) for path, table in zip(again, tables, strict=True))
    with object_store.Mirror(object_store.ObjectStore(url), tmp_path / "there", print) as mirror:
        mirror.fetch_trials()  # another machine, for its report
        there = [RunPaths(tmp_path / "there").trial("d1", "1", files.folder.name).requests for files in trials]
        assert all(read_table(path).equals(table) for path, table in zip(there, tables, strict=True))


def test_another_machine_goes_on_where_the_first_died(s3, quick, tmp_path):
    url = "s3://bucket/run-b"
    dead = object_store.Mirror(object_store.ObjectStore(url), tmp_path / "one", print)
    dead.lock.acquire(print)
    ledger = Ledger(tmp_path / "one" / "ledger.jsonl")
    write_trial(ledger, "t1")
    dead.sync()  # and then its machine is gone: no release, no beat
    with object_store.Mirror(object_store.ObjectStore(url), tmp_path / "two", print) as mirror:
        resumed = Ledger(tmp_path / "two" / "ledger.jsonl")
        assert resumed.valid_row("t1") is not None
        write_trial(resumed, "t2")
        mirror.fetch_trials()
        assert (tmp_path / "two/deployments/d1/1/t1/requests.parquet").exists()
    object_store.copy(url, tmp_path / "copy")
    assert set(Ledger(tmp_path / "copy" / "ledger.jsonl", write=False).rows) == {"t1", "t2"}


def test_a_mirror_that_stood_still_uploads_nothing_once_another_has_taken_over(s3, quick, tmp_path):
    url = "s3://bucket/run-g"
    frozen = object_store.Mirror(object_store.ObjectStore(url), tmp_path / "one", print)
    frozen.lock.acquire(print)
    write_trial(Ledger(tmp_path / "one" / "ledger.jsonl"), "t1")
    heartbeat_lock.Lock(object_store.ObjectStore(url)).beat()
    frozen.lock.last_beat = time.monotonic() - 60, time.time() - 60
    with pytest.raises(Misplaced, match="another driver has taken over"):
        frozen.sync()
    assert not any(name.startswith("ledger/") for name in objects(url))


def test_the_same_machine_is_ahead_of_the_store_and_loses_nothing(s3, quick, tmp_path):
    url = "s3://bucket/run-c"
    with object_store.Mirror(object_store.ObjectStore(url), tmp_path, print):
        write_trial(Ledger(tmp_path / "ledger.jsonl"), "t1")
    write_trial(Ledger(tmp_path / "ledger.jsonl"), "t2")  # killed before it was uploaded
    with object_store.Mirror(object_store.ObjectStore(url), tmp_path, print):
        pass
    object_store.copy(url, tmp_path / "copy")
    assert set(Ledger(tmp_path / "copy" / "ledger.jsonl", write=False).rows) == {"t1", "t2"}


def test_a_folder_that_is_not_the_stores_run_is_moved_aside(s3, quick, tmp_path):
    url = "s3://bucket/run-d"
    with object_store.Mirror(object_store.ObjectStore(url), tmp_path / "one", print):
        write_trial(Ledger(tmp_path / "one" / "ledger.jsonl"), "t1")
    write_trial(Ledger(tmp_path / "two" / "ledger.jsonl"), "other")
    with object_store.Mirror(object_store.ObjectStore(url), tmp_path / "two", print):
        assert set(Ledger(tmp_path / "two" / "ledger.jsonl").rows) == {"t1"}
    assert len(list(tmp_path.glob("two.*"))) == 1


def test_the_ledger_is_kept_in_pieces(s3, quick, tmp_path, monkeypatch):
    url = "s3://bucket/run-e"
    monkeypatch.setattr(object_store, "PIECE", 1000)
    monkeypatch.setattr(object_store, "LEDGER_POLL", 1000)  # only when told
    with object_store.Mirror(object_store.ObjectStore(url), tmp_path, print) as mirror:
        ledger = Ledger(tmp_path / "ledger.jsonl")
        for index in range(30):
            write_trial(ledger, f"t{index}")
            mirror.sync() if index % 7 == 0 else None
    sizes = [size for name, size in objects(url).items() if name.startswith("ledger/")]
    assert len(sizes) > 2
    assert max(sizes) < 3000
    object_store.copy(url, tmp_path / "copy")
    assert (tmp_path / "copy" / "ledger.jsonl").read_bytes() == (tmp_path / "ledger.jsonl").read_bytes()


def test_a_second_driver_is_refused_while_the_first_lives(s3, quick, tmp_path):
    url = "s3://bucket/run-f"
    with (
        object_store.Mirror(object_store.ObjectStore(url), tmp_path / "one", print),
        pytest.raises(ConfigError, match="another sweep is running with this out"),
        object_store.Mirror(object_store.ObjectStore(url), tmp_path / "two", print),
    ):
        pass


def test_a_slow_upload_does_not_lose_the_lock(s3, quick, tmp_path, monkeypatch):
    url, begun = "s3://bucket/run-g", threading.Event()

    def slow(store, folder, files):
        if list(files):
            begun.set()
            time.sleep(2 * heartbeat_lock.LOCK_TIMEOUT)

    with object_store.Mirror(object_store.ObjectStore(url), tmp_path / "one", print):
        monkeypatch.setattr(object_store.ObjectStore, "upload", slow)
        write_trial(Ledger(tmp_path / "one" / "ledger.jsonl"), "t1")
        assert begun.wait(20)
        with pytest.raises(ConfigError, match="another sweep is running with this out"):
            heartbeat_lock.Lock(object_store.ObjectStore(url)).acquire(print)
        monkeypatch.undo()


class Refusing(object_store.ObjectStore):
    """A store that takes nothing but the lock, this many times."""

    def __init__(self, url, times):
        super().__init__(url)
        self.times = times

    def write(self, name, content):
        if name != heartbeat_lock.Lock.NAME and self.times:
            self.times -= 1
            raise OSError("503 slow down")
        super().write(name, content)


def test_the_last_upload_is_tried_again(s3, quick, tmp_path, monkeypatch):
    monkeypatch.setattr(object_store, "RETRY", 0.05)
    monkeypatch.setattr(object_store, "LEDGER_POLL", 1000)  # only when it ends
    url = "s3://bucket/run-h"
    with object_store.Mirror(Refusing(url, 5), tmp_path, print):
        write_trial(Ledger(tmp_path / "ledger.jsonl"), "t1")
    object_store.copy(url, tmp_path / "copy")
    assert set(Ledger(tmp_path / "copy" / "ledger.jsonl", write=False).rows) == {"t1"}
    assert heartbeat_lock.Lock.NAME not in objects(url)


def test_an_incomplete_store_is_no_success(s3, quick, tmp_path, monkeypatch):
    monkeypatch.setattr(object_store, "PATIENCE", 0.5)
    monkeypatch.setattr(object_store, "RETRY", 0.05)
    with (
        pytest.raises(Halted, match=r"is incomplete \(503 slow down\); run the same command again to complete it"),
        object_store.Mirror(Refusing("s3://bucket/run-i", 10**6), tmp_path, print),
    ):
        write_trial(Ledger(tmp_path / "ledger.jsonl"), "t1")


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("s3://no-such-bucket/run", "NO_SUCH_BUCKET|NoSuchBucket|does not exist|no-such-bucket"),
        ("ftp://bucket/run", "expected a folder, s3://bucket/path or gs://bucket/path"),
        ("s3://key:secret@bucket/run", "the URL contains a secret"),
        ("s3://bucket/run?secret_key=abc", "the URL contains a secret"),
    ],
)
def test_a_store_that_cannot_be_used_says_so_at_the_door(s3, quick, tmp_path, url, word):
    with (
        pytest.raises(ConfigError, match=word) as error,
        object_store.Mirror(object_store.ObjectStore(url), tmp_path, print),
    ):
        pass
    assert "secret@" not in str(error.value)
    assert "abc" not in str(error.value)


ARGUMENTS = [
    *("backend=simulated", "backend.ttft.mean=0.5", "load.batch_size=1,2,4"),  # slow, so that the client keeps up
    *("workload.num_requests=4", "workload.output_tokens=16", "tracking=none", "cluster=inline"),
]


def test_a_lock_that_is_missing_is_written_again_and_one_that_another_takes_ends_the_run(s3, quick, tmp_path, capsys):
    url = "s3://bucket/sweeps/taken"
    store = object_store.ObjectStore(url)
    other = heartbeat_lock.Lock(store)

    def take():
        wait_until(lambda: any("requests.parquet" in name for name in objects(url)), 100)
        store.delete(other.NAME)
        wait_until(lambda: other.NAME in objects(url))
        other.beat()

    taken = threading.Thread(target=take)
    taken.start()
    line = [*ARGUMENTS, "workload.num_requests=20", "replicates=9", f"out={url}", f"cache_dir={tmp_path}"]
    assert main(line) == ISSUE_AGAIN, "the same command goes on"
    taken.join()
    assert f"out={url}: another driver has taken over; this run stops writing" in capsys.readouterr().err
    assert other.ours(), "it is left to the other"


def test_a_killed_sweep_is_finished_from_another_folder(s3, tmp_path):
    """kill -9 of the driver after a good row; the same command with another cache finds nothing but the store."""
    command = [sys.executable, "-m", "sweep", *ARGUMENTS, "out=s3://bucket/sweeps/killed"]
    first = subprocess.Popen([*command, f"cache_dir={tmp_path / 'one'}"], cwd=ROOT, start_new_session=True)
    url = "s3://bucket/sweeps/killed"
    try:
        wait_until(lambda: first.poll() is not None or any("requests.parquet" in name for name in objects(url)), 100)
        assert first.poll() is None
        wait_until(
            lambda: (
                b'"outcome": "ok"'
                in b"".join(object_store.ObjectStore(url).read(n) for n in objects(url) if n.startswith("ledger/"))
            )
        )
    finally:
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    object_store.copy(url, tmp_path / "killed")
    before = [row["trial_id"] for row in committed_rows(tmp_path / "killed" / "ledger.jsonl") if row["outcome"] == "ok"]
    assert before, "something was done before the kill"
    second = subprocess.run(
        [*command, f"cache_dir={tmp_path / 'two'}"], cwd=ROOT, timeout=200, capture_output=True, text=True, check=False
    )
    object_store.copy(url, tmp_path / "copy")
    rows = read_trials(tmp_path / "copy" / "trials.parquet")
    # That the machine is too busy for the client is no fault that this test is about; such a trial is tried once more.
    outcomes = {row["outcome"] for row in rows}
    assert outcomes <= {"ok", "client_limited"}, second.stderr
    assert second.returncode == (0 if outcomes == {"ok"} else 1), second.stderr
    trials = committed_rows(tmp_path / "copy" / "ledger.jsonl")
    assert {row["trial_id"] for row in trials} == {row["trial_id"] for row in rows}
    assert len(rows) == 3
    done = [row["trial_id"] for row in trials if row["outcome"] == "ok"]
    assert len(done) == len(set(done)), "what was done is not done again"
    assert [row["trial_id"] for row in trials].count(before[0]) == 1
    assert (tmp_path / "copy" / "report.html").exists()
