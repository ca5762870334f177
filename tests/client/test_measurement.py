"""The measuring client as a whole, against a server that knows the truth."""

import contextlib
import math
import os
import socket
import subprocess
import sys
import threading
import time
from array import array
from pathlib import Path
from typing import Any

import psutil
import pytest

from backends.simulated_server.truth import Truth, read_log
from sweep.__main__ import main
from sweep.base.records import Request, Timeouts
from sweep.client.job import Job
from sweep.client.measurement import ClientDied, Measurement, measure
from sweep.client.modes import ClosedLoop, Lockstep, Mode, OpenLoop
from sweep.client.process import _peak_memory
from sweep.client.process_count import process_count
from sweep.client.wire import Target
from tests.support.http_stub import Stub, serving
from tests.support.simulated_engine import behind_tls, simulated
from tests.support.waiting import wait_until

SHORT = Timeouts(connect=1.0, first_token=0.5, between_tokens=0.3, total=2.0)


def requests(count: int, tokens: int = 5, name: str = "r") -> list[Request]:
    phase: Any = "warmup" if name == "w" else "measured"
    return [Request(f"{name}{i}", f"say {i}", tokens, phase=phase) for i in range(count)]


def errors(measurement: Measurement) -> list[str | None]:
    return measurement.records.error


def run(url: str, folder: Path, count: int, mode: Mode, **more: Any) -> Measurement:
    target = Target(url, "simulated", **more.pop("target", {}))
    tokens = more.pop("tokens", 5)
    return measure(target, more.pop("warmup", []), requests(count, tokens), mode, folder=folder, **more)


def truth_of(path: Path, measurement: Measurement) -> list[Truth]:
    truths = read_log(path)
    return [truths[request_id, 0] for request_id in measurement.records.request_id]


def clients_of(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess):
            command = process.cmdline()
            if "sweep.client.process" in command and str(folder) in command:
                found.append(process)
    return found


# -- exactness


@pytest.mark.parametrize(
    ("api", "options"),
    [("completions", {"continuous_usage": True}), ("chat", {}), ("responses", {}), ("messages", {}), ("tgi", {})],
)
def test_agrees_with_the_server_request_by_request(api: str, options: dict[str, Any], tmp_path: Path) -> None:
    with simulated(log=str(tmp_path / "log"), tokens_per_event=1 if api == "tgi" else 2) as (url, _):
        seen = run(url, tmp_path / "job", 24, ClosedLoop(8), tokens=11, target={"api": api, **options})
    assert errors(seen) == [None] * 24
    if sys.platform == "linux":
        assert seen.report.stamp_source == "kernel"
    differences = []
    for record, truth in zip(seen.records, truth_of(tmp_path / "log", seen), strict=True):
        assert record.output_tokens == 11
        assert record.input_tokens == 2
        assert len(record.chunk_us) == len(truth.writes)
        if options:
            assert list(record.chunk_tokens) == [2] * 5 + [1]
        times = zip(record.chunk_us, truth.writes, strict=True)
        differences += [us / 1e6 - (write - truth.arrival) / 1e9 for us, write in times]
    # Neither can be early by more than the clocks' offset; both share a machine with others, so late now and then.
    assert min(differences) > -0.0005
    assert sorted(differences)[len(differences) // 2] < 0.001


def test_list_prompts_become_one_record_each(tmp_path: Path) -> None:
    with simulated(log=str(tmp_path / "log")) as (url, _):
        target = {"batch_form": "list", "continuous_usage": True}
        seen = run(url, tmp_path / "job", 10, Lockstep(4), warmup=requests(4, 2, "w"), target=target)
    assert seen.report.batch_form == "list"
    assert seen.records.request_id == [*(f"w{i}" for i in range(4)), *(f"r{i}" for i in range(10))]
    assert seen.records.phase == ["warmup"] * 4 + ["measured"] * 10
    assert list(seen.records.batch) == [0] * 4 + [0] * 4 + [1] * 4 + [2] * 2
    assert list(seen.records.output_tokens) == [2] * 4 + [5] * 10
    assert list(seen.records.input_tokens) == [2] * 14
    assert all(sent < 0 for sent in seen.records.sent[:4])
    assert all(sent >= 0 for sent in seen.records.sent[4:])
    assert len(read_log(tmp_path / "log")) == 14


def test_lists_of_mixed_lengths_go_as_streams(tmp_path: Path) -> None:
    mixed = [Request(f"r{i}", "x", 2 + i) for i in range(4)]
    with simulated() as (url, _):
        target = Target(url, "m", batch_form="list")
        seen = measure(target, [], mixed, Lockstep(4), folder=tmp_path)
    assert seen.report.batch_form == "streams"
    assert list(seen.records.output_tokens) == [2, 3, 4, 5]


def test_prompts_may_be_token_ids(tmp_path: Path) -> None:
    with simulated() as (url, _):
        seen = measure(Target(url, "m"), [], [Request("a", (5, 6, 7), 2)], ClosedLoop(1), folder=tmp_path)
    assert seen.records.input_tokens[0] == 3


# -- loads


def test_lockstep_waits_for_the_last_token_of_a_batch(tmp_path: Path) -> None:
    with simulated(itl={"kind": "lognormal", "mean": 0.004}) as (url, _):
        seen = run(url, tmp_path, 12, Lockstep(4))
    records = list(seen.records)
    for batch in (1, 2):
        ends = [r.sent + r.chunk_us[-1] / 1e6 for r in records if r.batch == batch - 1]
        begins = [r.released for r in records if r.batch == batch]
        assert len(set(begins)) == 1
        assert -1e-5 < begins[0] - max(ends) < 0.005  # with the last token, or the end mark behind it


def test_closed_loop_keeps_its_users_busy_and_lets_them_think(tmp_path: Path) -> None:
    think, start = array("d", [0.05] * 9), array("d", [0.0, 0.1, 0.2])
    with simulated() as (url, _):
        seen = run(url, tmp_path, 9, ClosedLoop(3, think=think, offsets=start))
    records = sorted(seen.records, key=lambda record: record.sent)
    assert errors(seen) == [None] * 9
    assert round(records[0].released, 1) == 0.0
    ends = sorted(record.sent + record.chunk_us[-1] / 1e6 for record in records)
    later = sorted(record.released for record in records if record.released not in start)[-6:]
    assert all(abs(begin - end - 0.05) < 0.01 for begin, end in zip(later, ends[:6], strict=True))
    for record in records:
        assert record.scheduled is None, "its users have no schedule"
        assert 0 <= record.sent - record.released < 0.05
        overlapping = [r for r in records if r.sent <= record.sent < r.sent + r.chunk_us[-1] / 1e6]
        assert len(overlapping) <= 3


def test_users_that_end_together_think_as_long_as_each_was_told(tmp_path: Path) -> None:
    think = array("d", [0.05, 0.1, 0.15, 0.2, 9, 9, 9, 9])
    with simulated() as (url, _):
        seen = run(url, tmp_path, 8, ClosedLoop(4, think=think))
    ends = sorted(record.sent + record.chunk_us[-1] / 1e6 for record in seen.records)[:4]
    later = sorted(record.released for record in seen.records)[4:]
    assert [begin - end for begin, end in zip(later, ends, strict=True)] == pytest.approx(think[:4], abs=0.02)


def test_open_loop_keeps_its_times_and_its_cap(tmp_path: Path) -> None:
    due = array("d", [0.0, 0.0, 0.01, 0.02, 0.2])
    with simulated(ttft={"mean": 0.1}) as (url, _):
        seen = run(url, tmp_path / "a", 5, OpenLoop(due, cap=2), tokens=1)
        free = run(url, tmp_path / "b", 5, OpenLoop(due), tokens=1)
    for result in (seen, free):
        assert errors(result) == [None] * 5
        assert list(result.records.scheduled) == pytest.approx(list(due), abs=1e-6)
    waits = [r.released - r.scheduled for r in seen.records]
    assert waits == pytest.approx([0, 0, 0.09, 0.08, 0], abs=0.03)
    assert min(waits) == 0.0
    assert [r.released - r.scheduled for r in free.records] == [0.0] * 5
    assert all(0 <= r.sent - r.released < 0.03 for m in (seen, free) for r in m.records)
    assert (seen.report.offered, seen.report.sent) == (5, 5)


@pytest.mark.parametrize(
    "mode",
    [
        Lockstep(2, duration=0.3),
        ClosedLoop(2, duration=0.3),
        OpenLoop(array("d", [i * 0.01 for i in range(1000)]), duration=0.3),
        OpenLoop(array("d", [i * 0.01 for i in range(1000)]), cap=2, duration=0.3),
    ],
    ids=["lockstep", "closed", "open", "capped"],
)
def test_duration_stops_sending_and_drains(mode: Mode, tmp_path: Path) -> None:
    with simulated() as (url, _):
        seen = run(url, tmp_path, 1000, mode)
    sent = [record for record in seen.records if not math.isnan(record.sent)]
    assert 2 < len(sent) < 200
    assert [record.error for record in sent] == [None] * len(sent)
    assert 0.2 < max(record.released for record in sent) < 0.3
    assert (seen.report.sent, seen.report.offered) == (len(sent), len(seen.records))
    assert all(record.error.startswith("unsent: ") for record in seen.records if math.isnan(record.sent))
    if isinstance(mode, OpenLoop):
        assert list(seen.records.scheduled) == pytest.approx(
            [due for due in mode.arrivals if due < (mode.duration or 0)]
        ), "all that was due has a record"


def test_warm_up_longer_than_the_arrivals_repeats_them(tmp_path: Path) -> None:
    due = array("d", [0.0, 0.01])
    with simulated() as (url, _):
        seen = run(url, tmp_path, 2, OpenLoop(due), warmup=requests(5, 1, "w"))
    assert errors(seen) == [None] * 7


@pytest.mark.parametrize(
    ("mode", "cores", "wanted"),
    [
        (ClosedLoop(1024), 8, 1),
        (ClosedLoop(2500), 8, 3),
        (ClosedLoop(2500), 2, 2),
        (OpenLoop(array("d", [i / 100 for i in range(3000)])), 8, 1),  # 1,000 tokens/s
        (OpenLoop(array("d", [i / 1000 for i in range(3000)]), cap=3000), 8, 1),
        (OpenLoop(array("d", [i / 9000 for i in range(20_000)])), 8, 3),
        (OpenLoop(array("d", [i / 9000 for i in range(20_000)]), cap=8), 8, 1),
        (Lockstep(3000), 8, 1),
    ],
)
def test_processes_are_as_many_as_the_load_is_work_for(mode: Mode, cores: int, wanted: int) -> None:
    asked = [Request(f"r{i}", "x", 10) for i in range(len(mode.arrivals) if isinstance(mode, OpenLoop) else 3000)]
    assert process_count("auto", mode, asked, set(range(cores))) == wanted


@pytest.mark.slow
def test_two_processes_share_the_work_and_the_clock(tmp_path: Path) -> None:
    starts: list[float] = []
    due = array("d", [i * 0.004 for i in range(50)])
    with simulated(log=str(tmp_path / "log")) as (url, _):
        mode = OpenLoop(due, cap=20)
        more: dict[str, Any] = {"processes": 2, "on_start": starts.append, "warmup": requests(4, 2, "w")}
        seen = run(url, tmp_path / "job", 50, mode, **more)
    with simulated() as (url, _):
        closed = run(url, tmp_path / "closed", 30, ClosedLoop(5), processes=2)
    assert seen.report.processes == closed.report.processes == 2
    assert starts == [seen.start_monotonic]
    assert seen.records.request_id[4:] == [f"r{i}" for i in range(50)]
    assert errors(seen) == [None] * 54
    assert list(seen.records.scheduled[4:]) == pytest.approx(list(due), abs=1e-6)
    for record, truth in zip(seen.records, truth_of(tmp_path / "log", seen), strict=True):
        assert record.sent + seen.start_monotonic == pytest.approx(truth.arrival / 1e9, abs=0.02)
    assert errors(closed) == [None] * 30


def test_which_reads_may_wait(tmp_path: Path) -> None:
    closed, lockstep = ClosedLoop(2), Lockstep(2)
    with simulated() as (url, _):
        for name, mode, target in (
            ("known", closed, {"ignore_eos": True}),
            ("unknown", closed, {}),
            ("list", lockstep, {"ignore_eos": True, "batch_form": "list"}),
        ):
            run(url, tmp_path / name, 2, mode, target=target)
    assert [Job.open(tmp_path / name, 0).patient_until(0) for name in ("known", "unknown", "list")] == [4, 0, 0]


def test_the_same_job_gives_the_same_bytes(tmp_path: Path) -> None:
    with simulated() as (url, _):
        for name in ("a", "b"):
            run(url, tmp_path / name, 8, ClosedLoop(2))
    for file in ("requests", "job"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


# -- trouble


@pytest.mark.parametrize(
    ("fault", "kind", "chunks"),
    [
        ("status_503", "status: 503 retry_after=1 503 The engine is currently busy", 0),
        ("status_429", "status: 429 retry_after=1", 0),
        ("reset", "reset: ", 2),
        ("error_event", "engine: 500 simulated failure", 2),
        ("hang", "timeout_first_token: 0.5 s", 0),
        ("stall", "timeout_between: 0.3 s", 2),
        ("trickle", "timeout_between: 0.3 s", 2),
        ("early_close", "closed: by the server", 2),
    ],
)
@pytest.mark.parametrize("api", ["completions", "tgi"])
def test_every_fault_is_a_typed_error(fault: str, kind: str, chunks: int, api: str, tmp_path: Path) -> None:
    with simulated(faults={fault: 1.0}) as (url, _):
        seen = run(url, tmp_path, 4, ClosedLoop(2), timeouts=SHORT, target={"api": api})
    if api == "tgi":
        kind = kind.replace("engine: 500", "engine: generation")
    assert len(seen.records) == 4
    for record in seen.records:
        assert record.error is not None
        assert record.error.startswith(kind)
        assert len(record.chunk_us) == chunks
        assert record.sent >= 0


def test_faults_by_rate_spare_the_others(tmp_path: Path) -> None:
    rates = {"status_503": 0.2, "reset": 0.2, "error_event": 0.1, "early_close": 0.1}
    with simulated(faults=rates, seed=3) as (url, _):
        seen = run(url, tmp_path, 200, ClosedLoop(16), timeouts=SHORT)
    kinds = [error.split(":")[0] if error else "ok" for error in errors(seen)]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == pytest.approx(
        {"ok": 80, "status": 40, "reset": 40, "engine": 20, "closed": 20}, abs=18
    )
    good = [record for record in seen.records if record.error is None]
    assert all(record.output_tokens == 5 for record in good)


@pytest.mark.slow
def test_total_time_out(tmp_path: Path) -> None:
    with simulated(itl={"mean": 0.2}) as (url, _):
        seen = run(url, tmp_path, 1, ClosedLoop(1), timeouts=SHORT, tokens=50)
    assert errors(seen) == ["timeout_total: 2 s"]
    (record,) = seen.records
    assert record.ended is not None
    assert 2.0 <= record.ended - record.sent < 3.0  # when it was given up, not when its last token came


def test_many_answers_without_a_body_keep_their_connection(tmp_path: Path) -> None:
    """Their heads were added up, as if one head had no end."""

    class Busy(Stub):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.reply(429, headers={"X-Long": "x" * 8000})

    with serving(Busy) as url:
        records = run(url, tmp_path, 20, ClosedLoop(1)).records
    assert [(each.error, each.connected is None) for each in records] == [("status: 429", i > 0) for i in range(20)]


def test_nobody_listens(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        seen = run(f"http://127.0.0.1:{unused.getsockname()[1]}", tmp_path, 20, ClosedLoop(2))
    assert len(seen.records) == 20
    assert all(error is not None and error.startswith("connect: ") for error in errors(seen))


def test_an_engine_that_dies_of_memory(tmp_path: Path) -> None:
    with simulated(memory_limit=3) as (url, process):
        seen = run(url, tmp_path, 8, ClosedLoop(8), timeouts=SHORT)
        assert process.wait(5) == 1
    assert all(error is not None for error in errors(seen))


@pytest.mark.slow
def test_should_stop_ends_the_trial_at_once(tmp_path: Path) -> None:
    begun = time.monotonic()
    due = array("d", [i * 0.01 for i in range(1000)])
    with simulated(ttft={"mean": 30.0}) as (url, _):
        stop = begun + 1.5
        seen = run(
            url,
            tmp_path,
            1000,
            OpenLoop(due, cap=5),
            should_stop=lambda: "the engine died" if time.monotonic() > stop else None,
        )
    assert time.monotonic() - begun < 5
    assert seen.report.stopped == "the engine died"
    assert 5 < len(seen.records) < 1000
    assert set(errors(seen)) == {"cancelled: the engine died"}
    sent = [record for record in seen.records if not math.isnan(record.sent)]
    assert len(sent) == 5, "the others waited for a slot"
    assert all(record.sent >= record.released >= record.scheduled for record in sent)


def test_a_killed_client_is_a_typed_error(tmp_path: Path) -> None:
    def kill() -> str | None:
        for process in clients_of(tmp_path):
            process.kill()
        return None

    with simulated(ttft={"mean": 30.0}) as (url, _), pytest.raises(ClientDied, match="killed by SIGKILL"):
        run(url, tmp_path, 4, ClosedLoop(2), should_stop=kill)


def test_the_client_ends_with_its_parent(tmp_path: Path) -> None:
    program = f"""
from pathlib import Path
from sweep.client.measurement import measure
from sweep.client.wire import Target
from sweep.client.process_count import process_count
from sweep.client.modes import ClosedLoop
from sweep.base.records import Request
import os
target = Target(os.environ["URL"], "m")
measure(target, [], [Request("a", "b", 5)], ClosedLoop(1), folder=Path({str(tmp_path)!r}),
        on_start=lambda start: print("started", flush=True))
"""
    with simulated(ttft={"mean": 30.0}) as (url, _):
        command = [sys.executable, "-c", program]
        parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "URL": url})
        assert parent.stdout is not None
        assert parent.stdout.readline() == "started\n"
        parent.kill()
        parent.communicate()
        wait_until(lambda: not clients_of(tmp_path), 5, "the client ends with its parent")


# -- secrets, TLS, weight


def test_the_key_reaches_the_server_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    with socket.create_server(("127.0.0.1", 0)) as server:
        heard: list[bytes] = []
        threading.Thread(target=_refuse_one, args=(server, heard), daemon=True).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        seen = run(url, tmp_path, 1, ClosedLoop(1), target={"api_key_env": "MY_KEY"})
    assert b"Authorization: Bearer sk-very-secret" in heard[0]
    assert errors(seen) == ["status: 401 who are you"]
    assert all(b"sk-very" not in path.read_bytes() for path in tmp_path.iterdir())
    with pytest.raises(ValueError, match="api_key_env='NO_SUCH'"):
        run(url, tmp_path, 1, ClosedLoop(1), target={"api_key_env": "NO_SUCH"})


def _refuse_one(server: socket.socket, heard: list[bytes]) -> None:
    connection, _ = server.accept()
    with connection:
        heard.append(connection.recv(65536))
        connection.sendall(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 11\r\n\r\nwho are you")
        connection.recv(1)


def test_https(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with simulated() as (url, _), behind_tls(url, tmp_path) as tls_url:
        refused = run(tls_url, tmp_path / "a", 2, ClosedLoop(2))
        assert all(error is not None and "CERTIFICATE_VERIFY_FAILED" in error for error in errors(refused))
        unchecked = run(tls_url, tmp_path / "b", 2, ClosedLoop(2), target={"verify_tls": False})
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
        checked = run(tls_url, tmp_path / "c", 2, ClosedLoop(2))
    for seen in (unchecked, checked):
        assert errors(seen) == [None, None]
        assert list(seen.records.output_tokens) == [5, 5]


def test_the_measuring_process_imports_nothing_heavy() -> None:
    program = "import sys, sweep.client.process; print(sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    for heavy in ("numpy", "pydantic", "pyarrow", "httpx", "ray", "pandas"):
        assert f"'{heavy}'" not in loaded


def test_memory_does_not_grow_with_the_trial(tmp_path: Path) -> None:
    with simulated(ttft={"mean": 0.0}, itl={"mean": 0.0}, events_per_write=64) as (url, _):
        peaks = []
        for count in (100, 2000):
            seen = run(url, tmp_path / str(count), count, ClosedLoop(32), tokens=128)
            assert list(seen.records.output_tokens) == [128] * count
            peaks.append(seen.report.peak_memory_bytes)
    assert peaks[1] < peaks[0] + 8e6  # 256,000 chunks more
    assert peaks[1] < 80e6


def test_the_peak_memory_is_known_without_a_high_water_mark_in_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda path, **options: "Name:\tpython\nVmRSS:\t9000 kB\n")
    assert _peak_memory() > 1 << 20


@pytest.mark.slow
def test_selfcheck_finds_what_the_client_is_worth(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["selfcheck", "--streams", "4", "--itl", "0.05"])
    words = capsys.readouterr().out
    assert words.startswith("4 streams, ")
    assert ("not certified" in words) is bool(status)
    assert "certified" in words
