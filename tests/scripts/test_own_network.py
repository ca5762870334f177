"""A sweep in a network of its own: it measures as ever, and nobody else on the machine reaches its engine."""

import contextlib
import json
import socket
import subprocess
import sys
import time

import psutil
import pytest

from backends.launch import supervisor
from backends.launch.server import REACHABLE_BY_ALL, REACHABLE_BY_OURS
from sweep.base.config import ROOT
from tests.cluster.harness import SIMULATED
from tests.support.results import committed_rows

OWN_NETWORK = str(ROOT / "scripts" / "own-network")


def facts_of(out):
    rows = committed_rows(out / "ledger.jsonl")
    assert rows, "no trial has a row"
    return [(row["outcome"], json.loads(row["engine_facts"])["reachable_by"]) for row in rows]


def engine_of(sweep):
    """Return the process and the port of a sweep's engine; None before it is launched."""
    for pid in supervisor.marked(lambda environ: environ.get(supervisor.OWNER, "").startswith(f"{sweep.pid}:")):
        with contextlib.suppress(psutil.NoSuchProcess):
            command = psutil.Process(pid).cmdline()
            if "--port" in command:
                return pid, int(command[command.index("--port") + 1])
    return None


def connects(port, *prefix):
    """Return whether a process, in the namespaces that `prefix` enters, can connect to a port of its loopback."""
    program = f"import socket; socket.create_connection(('127.0.0.1', {port}), 5)"
    return subprocess.run([*prefix, sys.executable, "-c", program], capture_output=True, check=False).returncode == 0


@pytest.mark.slow
def test_nobody_outside_reaches_an_engine_and_the_row_says_so(tmp_path):
    if subprocess.run([OWN_NETWORK, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this kernel lets this user make no network namespaces")
    out = tmp_path / "out"
    arguments = [*SIMULATED, "cluster=inline", "backend.itl.mean=0.2", f"out={out}"]
    command = [OWN_NETWORK, sys.executable, "-m", "sweep", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as sweep:
        inside = outside = None
        while sweep.poll() is None and not inside:  # it listens some time after its start
            engine = engine_of(sweep)
            if engine is not None:
                outside = connects(engine[1])
                inside = connects(engine[1], "nsenter", f"--target={engine[0]}", "--user", "--net")
            time.sleep(0.2)
        output = sweep.communicate()[0]
    assert (inside, outside) == (True, False), output
    assert {reachable_by for _, reachable_by in facts_of(out)} == {REACHABLE_BY_OURS}


@pytest.mark.slow
def test_elsewhere_the_row_says_that_others_reach_it(tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "sweep", *SIMULATED, "cluster=inline", f"out={out}"]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    alone = [name for _, name in socket.if_nameindex()] == ["lo"]
    assert {reachable_by for _, reachable_by in facts_of(out)} == {REACHABLE_BY_OURS if alone else REACHABLE_BY_ALL}
