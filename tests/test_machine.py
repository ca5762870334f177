"""A machine that is not alone with one sweep: turns, disturbances, and whom they come from."""

import os
import subprocess
import sys
import time
from pathlib import Path

import analysis
from sweep.config import ROOT
from sweep.node.machine import lease
from sweep.node.machine.sharing import VARIABLE

LINE = ["backend=simulated", "backend.ttft.mean=0.1", "backend.itl.mean=0.02", "model=tiny-llama", "workload=synthetic"]
LINE += ["workload.input_tokens=16", "workload.output_tokens=8", "workload.warmup_requests=0", "load=batch"]
LINE += ["load.batch_size=1", "cluster=inline", "tracking=none", "agreement=false", "retry=next_run"]


def start(out: Path, *arguments: str, name: str = "", sharing: str | None = None) -> "subprocess.Popen[str]":
    """The command in a process of its own, that shares this machine under this name, or with none."""
    environ = {key: value for key, value in os.environ.items() if key != VARIABLE}
    environ |= {VARIABLE: sharing} if sharing else {}
    command = [sys.executable, "-m", "sweep", *LINE, *arguments, f"out={out}", *([f"name={name}"] if name else [])]
    return subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def no_lease(devices: tuple[str, ...], sharing: str) -> str | None:
    """Why this process does not get the lease; None if it does."""
    reports: list[str] = []
    with lease.leased(devices, "test", sharing, reports.append, lambda: True) as leased:
        return None if leased else reports[0]


def test_two_sweeps_on_one_machine_take_turns_and_the_second_names_the_first(tmp_path: Path) -> None:
    first = start(tmp_path / "first", "workload.num_requests=12", name="first sweep")
    while not any(holder.pid == first.pid for holder in lease.holders()):
        assert first.poll() is None
        time.sleep(0.1)
    second = start(tmp_path / "second", "workload.num_requests=2", "replicates=2", name="second sweep")
    reports = [process.communicate(timeout=100)[0] for process in (first, second)]
    assert f"waiting for process {first.pid} (sweep first sweep)" in reports[1]
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
        while no_lease(("GPU-x",), "") is None:
            time.sleep(0.05)
        process.kill()
        process.wait()
    assert no_lease(("GPU-x",), "") is None
