"""A machine that is not alone with one sweep: turns, disturbances, and whom they come from."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import analysis
from sweep.__main__ import main
from sweep.base.config import ROOT
from sweep.base.records import Sample
from sweep.node.machine import foreign_processes as foreign_module
from sweep.node.machine import lease, limits, quiet
from sweep.node.machine.foreign_processes import ForeignCpu
from sweep.node.machine.limits import CpuLimits
from sweep.node.machine.sharing import VARIABLE
from sweep.numbers.summarise import figures
from tests.support.waiting import wait_until

LINE = ["backend=simulated", "backend.ttft.mean=0.1", "backend.itl.mean=0.02", "model=tiny-llama", "workload=synthetic"]
LINE += ["workload.input_tokens=16", "workload.output_tokens=8", "workload.warmup_requests=0", "load=batch"]
LINE += ["load.batch_size=1", "cluster=inline", "tracking=none", "agreement=false", "retry=next_run"]

BURN = "while True: pass"


@contextlib.contextmanager
def burner() -> Iterator[int]:
    """The process of somebody else that keeps the engine's first core busy."""
    environ = {key: value for key, value in os.environ.items() if key != VARIABLE}
    with subprocess.Popen([sys.executable, "-S", "-c", BURN], env=environ) as process:
        os.sched_setaffinity(process.pid, {min(os.sched_getaffinity(0))})
        try:
            yield process.pid
        finally:
            process.kill()


def start(
    out: Path, *arguments: str, name: str = "", sharing: str | None = None, prefix: Sequence[str] = ()
) -> "subprocess.Popen[str]":
    """The command in a process of its own, that shares this machine under this name, or with none."""
    environ = {key: value for key, value in os.environ.items() if key != VARIABLE}
    environ |= {VARIABLE: sharing} if sharing else {}
    named = [f"name={name}"] if name else []
    command = [*prefix, sys.executable, "-m", "sweep", *LINE, *arguments, f"out={out}", *named]
    return subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def no_lease(devices: tuple[str, ...], sharing: str) -> str | None:
    """Why this process does not get the lease; None if it does."""
    reports: list[str] = []
    with lease.leased(devices, "test", sharing, reports.append, lambda: True) as leased:
        return None if leased else reports[0]


@pytest.fixture
def network() -> Iterator[list[str]]:
    """What puts a command into a network namespace of this test, in which there are no leases of others."""
    if os.geteuid() != 0:
        yield []
        return
    up = ["unshare", "--net", "sh", "-c", "ip link set lo up && echo up && exec sleep 300"]
    with subprocess.Popen(up, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        permitted = process.stdout.readline() == "up\n"
        yield ["nsenter", f"--target={process.pid}", "--net"] if permitted else []
        process.kill()


@pytest.mark.slow
def test_two_sweeps_on_one_machine_take_turns_and_the_second_names_the_first(
    tmp_path: Path, network: list[str]
) -> None:
    first = start(tmp_path / "first", "workload.num_requests=12", name="first sweep", prefix=network)
    wait_until(lambda: list((tmp_path / "first").rglob("engine.log")), 60)  # it has the lease, as nobody else had
    os.kill(first.pid, signal.SIGSTOP)  # so that it still has it, however long the second takes to begin
    second = start(tmp_path / "second", "workload.num_requests=2", "replicates=2", name="second sweep", prefix=network)
    assert second.stdout is not None
    report = ""
    while "waiting for" not in report:
        report = second.stdout.readline()
        assert report
    os.kill(first.pid, signal.SIGCONT)
    assert f"waiting for process {first.pid} (sweep first sweep)" in report
    reports = [process.communicate(timeout=100)[0] for process in (first, second)]
    assert "waiting for" not in reports[0]
    trials = [analysis.load(tmp_path / name) for name in ("first", "second")]
    assert [len(rows) for rows in trials] == [1, 2]
    assert trials[1]["started_at"].min() >= trials[0]["ended_at"].max()


def test_who_shares_a_machine_on_purpose_has_the_lease_together_and_nobody_else() -> None:
    with lease.leased(["GPU-a", "GPU-b"], "first", "night", print, lambda: True) as leased:
        assert leased
        assert no_lease(("GPU-b",), "night") is None
        assert f"process {os.getpid()} (sweep first), which measures on GPU-b" in str(no_lease(("GPU-b",), "day"))
        assert no_lease(("GPU-c",), "day") is None
    assert no_lease(("GPU-b",), "day") is None


def test_a_lease_ends_with_its_process(tmp_path: Path) -> None:
    code = "from sweep.node.machine import lease\nwith lease.leased(['GPU-x'], 's', '', print, lambda: True): input()"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE) as process:
        wait_until(lambda: no_lease(("GPU-x",), ""))
        process.kill()
        process.wait()
    assert no_lease(("GPU-x",), "") is None


@pytest.mark.parametrize("prefix", ["sweep-lease", "sweep-lease-waits"])
@pytest.mark.parametrize(("rest", "listens"), [("-taking", False), ("/GPU-v/0/1/x", False), ("/GPU-v/0/1/x", True)])
def test_a_name_that_any_process_may_bind_stops_nobody(prefix: str, rest: str, listens: bool) -> None:
    """Nor delays it: only the process that the name gives can hold the lease, or wait for it."""
    with socket.socket(socket.AF_UNIX) as foreign:
        foreign.bind(f"\0{prefix}{rest}".encode())
        if listens:
            foreign.listen()
        assert no_lease(("GPU-v",), "") is None


@contextlib.contextmanager
def taking(device: str, launches: int) -> Iterator["subprocess.Popen[str]"]:
    """The process of another sweep, with launches of 0.3 s one after the other on a device. It prints its reports."""
    code = (
        "import functools, time\nfrom sweep.node.machine import lease\nreport = functools.partial(print, flush=True)\n"
    )
    code += f"for number in range({launches}):\n"
    code += f"    with lease.leased(['{device}'], 'other', '', report, lambda: False): report(number); time.sleep(0.3)"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.slow
def test_a_sweep_of_many_launches_lets_another_have_its_turn() -> None:
    with taking("GPU-y", launches=8) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "0\n"
        with lease.leased(["GPU-y"], "test", "", print, lambda: False) as leased:
            assert leased
            reports = [process.stdout.readline()]
            while reports[-1].strip().isdecimal():
                reports.append(process.stdout.readline())
        holder = f"process {os.getpid()} (sweep test), which measures on GPU-y"
        assert reports[-1] == f"waiting for {holder}; to continue now, stop that process\n"
        assert len(reports) <= 4, "it comes between two of the next launches"
        assert int(process.stdout.readline()) == len(reports), "the other sweep goes on where it was"


@pytest.mark.slow
def test_who_waits_and_is_suspended_holds_nobody_up() -> None:
    with contextlib.ExitStack() as other:
        with lease.leased(["GPU-w"], "test", "", print, lambda: False):
            process = other.enter_context(taking("GPU-w", launches=1))
            assert process.stdout is not None
            assert "waiting for process" in process.stdout.readline()
            os.kill(process.pid, signal.SIGSTOP)
        begin = time.monotonic()
        with lease.leased(["GPU-w"], "test", "", print, lambda: False) as leased:
            assert leased
        assert lease.POLL <= time.monotonic() - begin < 2 * lease.GIVE_WAY


def row_of(out: Path) -> dict[str, Any]:
    (row,) = analysis.load(out).to_dict("records")
    return row


needs_two_cores = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="the client needs a core of its own")


@pytest.mark.slow
@needs_two_cores
def test_a_process_of_somebody_else_on_the_engines_core_is_measured_named_and_warned_of(tmp_path: Path) -> None:
    command = ["workload.num_requests=4", "retry=in_run"]
    with burner():
        start(tmp_path / "out", *command, sharing="tests").communicate(timeout=100)
    row = row_of(tmp_path / "out")
    assert row["foreign_cpu_share"] > 0.1
    assert re.match(r"process \d+ \(.+\) \d.\d\d cores", row["foreign_processes"])
    assert row["outcome"] != "ok" or "foreign-cpu" in row["warnings"]


@pytest.mark.slow
def test_a_node_that_does_not_get_quiet_gives_a_row_that_names_who(tmp_path: Path) -> None:
    with burner():
        process = start(tmp_path / "out", "quiet={foreign_cpu: 0.2, within: 0}", sharing="tests")
        assert process.communicate(timeout=100)
        assert process.returncode == 1
    row = row_of(tmp_path / "out")
    assert row["outcome"] == "disturbed"
    assert re.search(r"not quiet within quiet.within=0 s; .+: process \d+ \(.+\) \d.\d\d cores", row["reason"])


@pytest.mark.slow
@needs_two_cores
@pytest.mark.parametrize(("in_trial", "disturbed"), [(0.125, False), (0.625, True)])
def test_quiet_waits_for_the_node_and_a_trial_that_is_disturbed_is_no_result(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    in_trial: float,
    disturbed: bool,
) -> None:
    """Through the whole command, with readings of the CPU that are fixed: the first of a wait is of no time yet."""
    waiting, waited_until = [None, 0.9, 0.8, 0.1], 0.0

    def share(self: ForeignCpu) -> float | None:
        nonlocal waited_until
        waited_until = time.monotonic() if waiting else waited_until
        return waiting.pop(0) if waiting else in_trial

    monkeypatch.setattr(quiet, "LOOK", 0.01)
    monkeypatch.setattr(ForeignCpu, "share", share)
    monkeypatch.setattr(ForeignCpu, "busiest", lambda self: f"process 7 (watched from {self.began:.6f})")
    command = [*LINE, "quiet={foreign_cpu: 0.3, within: 60}", "workload.num_requests=2", "attempts=1"]
    main([*command, f"out={tmp_path / 'out'}"])
    report = capsys.readouterr().out
    waiting_for = (
        "waiting until the node is quiet; other processes used 90% of the cores (quiet.foreign_cpu=0.3): process 7 "
    )
    assert report.count(waiting_for) == 1
    assert not waiting, "it went on at the quiet reading"
    row = row_of(tmp_path / "out")
    assert row["foreign_cpu_share"] == pytest.approx(in_trial)
    assert (row["outcome"] == "disturbed") is disturbed
    watched_from = float(row["foreign_processes"].split()[-1].strip(")"))
    assert watched_from > waited_until, "who was waited for is not named beside the trial"
    if disturbed:
        assert row["fault"] == "surroundings"
        assert row["reason"].startswith("other processes used 62% of the cores (quiet.foreign_cpu=0.3): process 7 ")
        assert pd.isna(row["output_throughput"])


@pytest.mark.slow
def test_who_shares_the_machine_on_purpose_is_no_foreigner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign_module, "NAMED_PROCESSES", 1000)
    monkeypatch.setattr(foreign_module, "LEAST_NAMED", 0.0)
    core = min(os.sched_getaffinity(0))
    environ = {**os.environ, VARIABLE: "together"}
    burners = [
        subprocess.Popen([sys.executable, "-S", "-c", BURN], env=environ, start_new_session=True) for _ in range(2)
    ]
    try:
        for process in burners:
            os.sched_setaffinity(process.pid, {core})
        foreign = {name: ForeignCpu({core}, name, list) for name in ("together", "apart")}
        for each in foreign.values():
            each.share()
        time.sleep(1.5)
        shares = {name: each.share() or 0.0 for name, each in foreign.items()}
        names = {name: each.busiest() for name, each in foreign.items()}
    finally:
        for process in burners:
            process.kill()
            process.wait()
    assert shares["apart"] > 0.3
    assert shares["together"] < shares["apart"]
    assert all(f"process {process.pid} (python" in names["apart"] for process in burners)
    assert not any(f"process {process.pid} (" in names["together"] for process in burners)


def test_the_limits_of_a_container_and_of_hot_cores_are_counted(tmp_path: Path, monkeypatch: Any) -> None:
    cores, quota = tmp_path / "cpu", tmp_path / "cpu.stat"
    (cores / "cpu0/thermal_throttle").mkdir(parents=True)
    monkeypatch.setattr(limits, "CORES", cores)
    source = CpuLimits([0, 1])
    source.quota = quota
    samples = []
    for moment, (throttled, hot) in enumerate([(0, 5), (30, 7)]):
        quota.write_text(f"usage_usec 9\nnr_periods {100 * (moment + 1)}\nnr_throttled {throttled}\n")
        (cores / "cpu0/thermal_throttle/core_throttle_count").write_text(f"{hot}\n")
        samples += [Sample(float(moment), series, value, core) for series, core, value in source.read()]
    row = figures({"samples": samples, "begin": 0.0, "duration": 1.0})
    assert row["cpu_throttled_share"] == 0.3
    assert row["cpu_thermal_limits"] == 2


def test_shares_are_means_over_the_measured_time_and_of_the_worst_gpu() -> None:
    readings = [(-1.0, 1.0), (0.5, 0.0), (1.0, 0.5), (1.5, 1.0), (9.0, 1.0)]
    samples = [Sample(moment, "gpu_thermal_limit", value, "0") for moment, value in readings]
    samples += [Sample(moment, "gpu_thermal_limit", 0.0, "1") for moment, _ in readings]
    samples += [Sample(moment, "foreign_cpu_share", value) for moment, value in readings]
    row = figures({"samples": samples, "begin": 0.0, "duration": 1.2})
    assert (row["gpu_thermal_share"], row["foreign_cpu_share"]) == (0.5, 0.5)
    assert row["gpu_power_share"] is None
