"""Policy as tables: which failure is whose fault, final, retried where and how often, censored, and what ends a run.

The rows say what is decided, the functions below how it is asked: through the code that meets the exit, to the row,
and through a driver whose executor answers as a row says. Code that moves changes the functions and no row.
"""

import errno
import socket
import time
from collections import deque
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.base import Backend
from backends.launch import server
from backends.prepare import checkpoints, images, programs, retry, uv
from backends.prepare.checkpoints import ConversionFailed
from backends.prepare.environments import EnvironmentFailed, OptionalPartFailed
from sweep.base.config import ConfigError, Halted
from sweep.base.exits import Cause, Exit, Outage
from sweep.base.records import Fault, Outcome
from sweep.cli.run import exit_status
from sweep.client.measurement import STALLED
from sweep.cluster.breaker import Breaker
from sweep.disk import object_store
from sweep.disk.ledger import Ledger
from sweep.disk.row import TrialRow
from sweep.disk.run_files import RunPaths
from sweep.drive import policy
from sweep.drive.launch_state import Stage
from sweep.drive.policy import Failure
from sweep.inputs import hub, rows
from sweep.inputs.load import Batch, Constant
from sweep.inputs.model import ServedModel
from sweep.inputs.workload import Workload
from sweep.node import deployment, verdict
from sweep.node.events import Completed, Finished, Lost, NotStarted, Unprepared
from sweep.node.rows import identity
from sweep.node.work import Work
from sweep.plan.pending import pending_launches
from sweep.plan.plan import Deployment, Trial
from tests.drive.test_driver import ByNode, Scripted, drive, make_plan, new_driver, outcomes, replicated
from tests.drive.test_driver import deployment as planned
from tests.node.test_verdict import report
from tests.numbers.test_metrics import gather, record
from tests.support.settings import run_settings


def rows_of(table):
    """The rows of a table in text: its lines, split at bars."""
    return [tuple(cell.strip() for cell in line.split("|")) for line in table.strip().splitlines()]


SETTINGS = run_settings()


def trial(name="t", load=None, workload=None):
    return Trial(name, workload or Workload(name="w"), load or Batch(name="batch", batch_size=1), 0, 1, {}, {})


def work_of(*trials, **settings):
    its = Deployment("d", Backend(name="x"), ServedModel(name="m"), 0, None, list(trials))
    return Work(its, SETTINGS.model_copy(update=settings), "out", "1", ())


# Whose fault: an exit, from where it happens to the row ---------------------------------------------------------------


class Ended(server.Engine):
    """An engine that has ended with this status, and this log."""

    def __init__(self, status="", log=""):
        self.backend, self.launch, self.log = Backend(name="x", launch_timeout=5.0), SimpleNamespace(replica=""), Path()
        self.exit_status, self.text = None if status in ("", "supervisor killed") else int(status), log

    def log_tail(self, lines=40, since=0):
        return self.text

    def alive(self):
        return False


def row_of_launch(raised, monkeypatch):
    """The row of a trial whose engine could not be launched."""

    def fail(*arguments, **more):
        raise raised

    monkeypatch.setattr(deployment.agreement, "reference", lambda *arguments: "none")
    monkeypatch.setattr(deployment.server, "running_together", fail)
    node = SimpleNamespace(environment=SimpleNamespace(versions={}), launch=SimpleNamespace(gpus=(), host=""))
    work, events = work_of(), []
    failure = deployment._one_launch(work, node, None, lambda event: None)
    deployment._end_all(work, deque([trial()]), failure, events.append)
    return events[-1].row


def of_launch(engine, method, *arguments):
    start = object.__new__(server._Start)
    start.engine, start.oom_kills = engine, server._oom_kills()
    return getattr(start, method)(*arguments)


ENDS_OF_ENGINES = """
-9                | EngineCore ready                                      | surroundings
-15               | EngineCore ready                                      | surroundings
-11               | Segmentation fault (core dumped)                      | engine
-4                | loading                                               | engine
-8                | loading                                               | engine
-6                | loading                                               | engine
supervisor killed | EngineCore ready                                      | surroundings
137               | EngineCore ready                                      | surroundings
139               | EngineCore ready                                      | engine
1                 |                                                       | engine
1                 | ValueError: no such quantization: q9                  | engine
1                 | RuntimeError: a worker was killed by signal 15        | surroundings
1                 | RuntimeError: a worker was killed by signal 11        | engine
1                 | RuntimeError: CUDA error: uncorrectable ECC error     | surroundings
1                 | OSError: /dev/shm/nccl-1: No space left on device     | surroundings
1                 | fatal error: Python.h: No such file or directory      | engine
1                 | OSError: [Errno 104] Connection reset by peer         | surroundings
1                 | OSError: [Errno 28] No space left on device           | surroundings
1                 | OSError: [Errno 5] Input/output error                 | surroundings
1                 | OSError: [Errno 116] Stale file handle                | surroundings
1                 | hub: 503 Server Error: Service Unavailable for url    | surroundings
1                 | hub: 429 Client Error: Too Many Requests for url      | surroundings
1                 | 401 Client Error: Unauthorized for url                | engine
1                 | ValueError: a block of 502 tokens                     | engine
"""


@pytest.mark.parametrize(("status", "log", "fault"), rows_of(ENDS_OF_ENGINES))
def test_whose_fault_the_end_of_an_engine_is(monkeypatch, status, log, fault):
    engine = Ended(status, log)
    launched = row_of_launch(of_launch(engine, "_failure"), monkeypatch)
    assert (launched["outcome"], launched["fault"]) == ("launch_failed", fault)
    crashed = row_of_trial("the engine died", engine)
    assert (crashed["outcome"], crashed["fault"]) == ("engine_crashed", fault)


@pytest.mark.parametrize(
    ("log", "fault"), [("loading weights", "engine"), ("retrying: 503 Service Unavailable", "surroundings")]
)
def test_whose_fault_an_engine_is_that_is_not_ready_in_time(monkeypatch, log, fault):
    row = row_of_launch(of_launch(Ended(log=log), "_timeout"), monkeypatch)
    assert (row["outcome"], row["fault"]) == ("launch_timeout", fault)


@pytest.mark.parametrize("status", ["-9", "1"])
def test_memory_that_is_too_small_is_no_failure(monkeypatch, status):
    engine = Ended(status, "torch.OutOfMemoryError: CUDA out of memory")
    launched, ran = row_of_launch(of_launch(engine, "_failure"), monkeypatch), row_of_trial("the engine died", engine)
    assert [(row["outcome"], row["fault"]) for row in (launched, ran)] == [("oom_load", None), ("oom_run", None)]


def row_of_trial(end, engine=None, launches=True, gateway=None, **reported):
    """The row of a trial that ended so: `end` is a reason to stop, else the errors of its requests by commas."""
    errors = end.split(", ") if ": " in end else []
    requests = (
        [
            record(float(i), [] if error != "ok: " else [(0.5, 1)], error=None if error == "ok: " else error)
            for i, error in enumerate(errors)
        ]
        if errors
        else [record(0.0, [(0.5, 1)])]
    )
    stopped = None if errors or not end else end
    running = SimpleNamespace(
        engine=engine or Ended(),
        gateway=gateway,
        alive=lambda: engine is None,
        dead=lambda: engine,
        ran_out_of_memory=lambda logged: False,
    )
    work, asked = work_of(trial_timeout=9.0), trial()
    backend = SimpleNamespace(name="x", launches=launches, ignores_eos=False)
    judged_by = SimpleNamespace(settings=work.settings, deployment=SimpleNamespace(backend=backend, gateway=None))
    measured = SimpleNamespace(num_requests=reported.pop("asked", len(requests)), load=SimpleNamespace(duration=None))
    result = SimpleNamespace(records=gather(*requests), report=report(stopped=stopped, **reported))
    judged = verdict.judge(judged_by, measured, running, result, {Path(): 0})
    return TrialRow(identity=identity(work, asked), verdict=judged).flat()


@pytest.mark.parametrize(("status", "fault"), [("-9", "surroundings"), ("1", "engine")])
def test_whose_fault_the_end_of_a_gateway_is(status, fault):
    row = row_of_trial("the gateway died", gateway=SimpleNamespace(alive=lambda: False, process=Ended(status)))
    assert (row["outcome"], row["fault"]) == ("engine_crashed", fault)


def test_an_endpoint_that_is_gone_is_no_answer_of_an_engine(monkeypatch):
    launch = SimpleNamespace(workdir=Path(), replica="", host="", port=0)
    gone = server.AttachedEngine(SimpleNamespace(url="http://127.0.0.1:9/v1", proxy="none"), launch)
    assert gone.outage() == "accepts no connections"
    monkeypatch.setattr(gone, "ran_out_of_memory", lambda since: False)
    gone.log = Path()
    monkeypatch.setattr(gone, "log_tail", lambda: "")
    row = row_of_trial("the engine died", gone, launches=False)
    assert (row["outcome"], row["fault"]) == ("engine_crashed", "surroundings")


def test_nobody_waits_for_an_endpoint_that_drops_packets(monkeypatch):
    """A trial asks often whether its endpoint is alive, and must be stopped in time meanwhile."""
    monkeypatch.setattr(server, "PROBE_TIMEOUT", 0.5)
    launch = SimpleNamespace(workdir=Path(), replica="", host="", port=0)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = full.getsockname()
        clients = [socket.socket() for _ in range(4)]
        for client in clients:  # until the backlog is full: the kernel then drops what comes
            client.setblocking(False)
            client.connect_ex(address)
        silent = server.AttachedEngine(SimpleNamespace(url=f"http://127.0.0.1:{address[1]}", proxy="none"), launch)
        began, answers = time.monotonic(), []
        while not answers or (answers[-1] and time.monotonic() < began + 10):
            asked = time.monotonic()
            answers.append(silent.alive())
            assert time.monotonic() - asked < 0.2
            time.sleep(0.05)
        for client in clients:
            client.close()
    assert answers[0]
    assert not answers[-1], "three probes in a row got no connection"


TRIALS = """
stall_timeout                         | yes | hung           | engine
trial_timeout                         | yes | hung           | engine
timeout_first_token: 9 s              | yes | hung           | engine
timeout_first_token: 9 s              | no  | hung           | surroundings
connect: Connection refused           | no  | invalid        | surroundings
protocol: not an event stream         | yes | invalid        | engine
engine: HTTP 503 Service Unavailable  | yes | invalid        | engine
status: 400 no such model             | no  | invalid        | surroundings
ok: , ok: , status: 400 too long      | yes | invalid        | engine
ok: , ok: , status: 400 too long      | no  | invalid        | surroundings
"""


@pytest.mark.parametrize(("end", "launched", "outcome", "fault"), rows_of(TRIALS))
def test_whose_fault_a_trial_is_whose_engine_lives(end, launched, outcome, fault):
    end = {"stall_timeout": STALLED, "trial_timeout": verdict.TIMED_OUT}.get(end, end)
    row = row_of_trial(end, launches=launched == "yes")
    assert (row["outcome"], row["fault"]) == (outcome, fault)


@pytest.mark.parametrize(
    ("reported", "outcome", "fault"),
    [
        ({"asked": 9}, "invalid", "engine"),
        ({"clock_steps": 1}, "invalid", "surroundings"),
        ({"cpu": 0.95}, "client_limited", "surroundings"),
        ({}, "ok", None),
    ],
    ids=["requests were never sent", "the clock was set", "a busy client", "none"],
)
def test_whose_fault_the_measuring_is(reported, outcome, fault):
    row = row_of_trial("", **reported)
    assert (row["outcome"], row["fault"]) == (outcome, fault)


def test_a_trial_that_is_stopped_while_its_engine_dies_is_the_engines():
    row = row_of_trial("the engine died", asked=9)
    assert (row["outcome"], row["fault"]) == ("engine_crashed", "engine")


@pytest.mark.parametrize(
    ("raised", "outcome", "fault"),
    [
        (EnvironmentFailed("no docker on PATH: Connection refused"), "launch_failed", "engine"),
        (OptionalPartFailed("kernels do not build"), "unavailable", None),
        (ValueError("model.repo=org/model@main: 403 Forbidden"), "launch_failed", "engine"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), "launch_failed", "engine"),
        (deployment.Contradiction("another GPU"), "invalid", "surroundings"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_whose_fault_a_preparation_is(monkeypatch, raised, outcome, fault):
    def prepare(*arguments):
        raise raised

    monkeypatch.setattr(deployment, "patiently", lambda prepared, *arguments: prepared())
    monkeypatch.setattr(deployment, "prepare_node", prepare)
    (finished,) = run_on_node(work_of(trial()))
    assert (finished.row["outcome"], finished.row["fault"]) == (outcome, fault)


# Wait, or not: the errors of what prepares a node, and of what is asked while planning --------------------------------


def failed_tool(words, monkeypatch, run):
    def fail(*arguments):
        raise programs.ToolFailed(1, [words])

    monkeypatch.setattr(programs, "run", fail)
    run()


def through_uv(words, monkeypatch, tmp_path):
    failed_tool(words, monkeypatch, lambda: uv.Uv("vllm", tmp_path, tmp_path / "log", print).pip("sync"))


def through_docker(words, monkeypatch, tmp_path):
    spec = SimpleNamespace(name="vllm_image", runtime="docker")
    monkeypatch.setattr(images, "runtime", lambda spec: "docker")
    failed_tool(words, monkeypatch, lambda: images.pull_image(spec, "a/b@sha256:0", tmp_path, print))


def through_hub(words, monkeypatch, tmp_path):
    status = int(words)
    request = hub.httpx.Request("GET", "https://hub")
    error = hub.HfHubHTTPError(f"status {status}", response=hub.httpx.Response(status, request=request))
    raise (hub._refused if hub._is_answer(error) else hub._absent)("org/model", "main", error, "model")


def through_store(words, monkeypatch, tmp_path):
    raise object_store.store_error("out=s3://bucket/run", OSError(words))


def through_system(words, monkeypatch, tmp_path):
    raise OSError(getattr(errno, words), words)


def through_registry(words, monkeypatch, tmp_path):
    answer = images.httpx.Response(int(words), request=images.httpx.Request("HEAD", "https://registry"))
    monkeypatch.setattr(images.httpx.Client, "head", lambda *arguments, **more: answer)
    images.by_digest("host:5000/name:tag")


TOOLS = {
    function.__name__.removeprefix("through_"): function
    for function in (through_uv, through_docker, through_hub, through_store, through_system, through_registry)
}
PREPARATIONS = """
uv       | error sending request for url (https://index/vllm): dns error: failed to lookup  | wait
uv       | Failed to fetch https://index/vllm: operation timed out                           | wait
uv       | HTTP status server error (502 Bad Gateway) for url (https://index/vllm)           | wait
uv       | No solution found when resolving dependencies: x==5020                            | answer
uv       | Failed to fetch https://index/vllm: HTTP status client error (403 Forbidden)      | answer
uv       | failed to write to file: No space left on device (os error 28)                    | wait
docker   | dial tcp: lookup registry-1.docker.io: Temporary failure in name resolution       | wait
docker   | net/http: TLS handshake timeout                                                   | wait
docker   | unexpected EOF                                                                    | wait
store    | Server disconnected without sending a response.                                   | wait
store    | [SSL: UNEXPECTED_EOF_WHILE_READING] EOF occurred in violation of protocol         | wait
docker   | manifest unknown: manifest unknown                                                | answer
docker   | toomanyrequests: You have reached your unauthenticated pull rate limit.           | wait
hub      | 403                                                                               | answer
hub      | 404                                                                               | answer
hub      | 408                                                                               | wait
hub      | 429                                                                               | wait
hub      | 500                                                                               | wait
hub      | 503                                                                               | wait
store    | AWS Error NETWORK_CONNECTION during HeadBucket: Couldn't connect to server        | wait
store    | AWS Error UNKNOWN (HTTP status 503) during PutObject: Service Unavailable         | wait
store    | AWS Error NETWORK_CONNECTION during GetObject: curlCode: 28, Timeout was reached  | wait
store    | AWS Error NETWORK_CONNECTION during GetObject: curlCode: 52, Server returned none | wait
store    | AWS Error SLOW_DOWN during PutObject operation: Please reduce your request rate.  | wait
store    | google::cloud::Status(UNAVAILABLE: Retry policy exhausted in ReadObject()         | wait
store    | AWS Error NETWORK_CONNECTION during GetObject: curlCode: 60, SSL peer certificate | answer
store    | AWS Error ACCESS_DENIED during PutObject operation: Access Denied                 | answer
registry | 404                                                                               | answer
registry | 503                                                                               | wait
registry | 429                                                                               | wait
registry | 500                                                                               | wait
system   | ECONNRESET                                                                        | wait
system   | ECONNREFUSED                                                                      | wait
system   | ETIMEDOUT                                                                         | wait
system   | ESTALE                                                                            | wait
system   | EIO                                                                               | wait
system   | EHOSTUNREACH                                                                      | wait
system   | ENOENT                                                                            | answer
system   | EACCES                                                                            | answer
system   | ENOSPC                                                                            | answer
system   | EDQUOT                                                                            | answer
"""


@pytest.mark.parametrize(("tool", "words", "decision"), rows_of(PREPARATIONS))
def test_what_is_waited_for_and_what_is_an_answer(monkeypatch, tmp_path, tool, words, decision):
    tries = []

    def prepare():
        if tries:
            return "prepared"
        tries.append(1)
        TOOLS[tool](words, monkeypatch, tmp_path)

    monkeypatch.setattr(retry, "task", SimpleNamespace(pause=lambda seconds: None))
    if decision == "wait":
        assert retry.patiently(prepare, 60.0, lambda reason: None) == "prepared"
    else:
        with pytest.raises((EnvironmentFailed, OSError, ValueError)):
            retry.patiently(prepare, 60.0, lambda reason: None)


@pytest.mark.parametrize(
    ("words", "decision"),
    [("OSError: [Errno 5] Input/output error", "wait"), ("KeyError: 'model.layers.0'", "answer")],
)
def test_a_conversion_is_judged_by_what_its_program_printed(monkeypatch, tmp_path, words, decision):
    with pytest.raises(ConversionFailed) as caught:
        failed_tool(words, monkeypatch, lambda: checkpoints.execute([], "to_gguf", tmp_path / "log", print))
    with pytest.raises(Outage if decision == "wait" else ConversionFailed):
        retry.patiently(lambda: (_ for _ in ()).throw(caught.value), 0.0, lambda reason: None)


# On a node: how often an engine is launched again, and what its trials get -------------------------------------------

ENDS = {  # of a launch
    "flag": (Outcome.LAUNCH_FAILED, {"status": 1, "words": "ValueError: no such flag"}),
    "model": (Outcome.LAUNCH_FAILED, {"status": 1, "words": "KeyError: no such model"}),
    "port1": (Outcome.LAUNCH_FAILED, {"status": 1, "words": "worker at port 40001 died"}),
    "port2": (Outcome.LAUNCH_FAILED, {"status": 1, "words": "worker at port 40002 died"}),
    "worker": (Outcome.LAUNCH_FAILED, {"status": 1, "words": "RuntimeError: a worker was killed by signal 15"}),
    "died": (Outcome.LAUNCH_FAILED, {"status": 1, "words": "RuntimeError: a worker died"}),
    "segfault": (Outcome.LAUNCH_FAILED, {"signal": 11}),
    "broken": (Outcome.LAUNCH_FAILED, {"status": 1, "words": "RuntimeError: CUDA error: uncorrectable ECC error"}),
    "mendable": (Outcome.LAUNCH_FAILED, {"status": 1, "words": "fatal error: Python.h: No such file or directory"}),
    "killed": (Outcome.LAUNCH_FAILED, {"signal": 9}),
    "killed+words": (Outcome.LAUNCH_FAILED, {"signal": 9, "words": "EngineCore ready"}),
    "lost": (Outcome.LAUNCH_FAILED, {"words": "EngineCore ready"}),
    "slow": (Outcome.LAUNCH_TIMEOUT, {"words": "loading weights"}),
    "memory": (Outcome.OOM_LOAD, {"status": 1, "words": "CUDA out of memory"}),
    "crash": (Outcome.ENGINE_CRASHED, {"status": 1, "words": "RuntimeError: assertion"}),
    "hung": (Outcome.HUNG, {}),
}


def failure_of(end):
    """The Failure of a launch that ended so: `crash*` after a good trial."""
    outcome, ended = ENDS[end.rstrip("*")]
    if outcome is Outcome.HUNG:
        return Failure(outcome, "hung", Exit(Cause.STALLED))
    engine = Ended(log=ended.get("words", ""))
    engine.exit_status = -ended["signal"] if "signal" in ended else ended.get("status")
    raised = of_launch(engine, "_timeout" if outcome is Outcome.LAUNCH_TIMEOUT else "_failure")
    return Failure(outcome, raised.reason, raised.exit, good=end.endswith("*"))


def run_on_node(work):
    events = []
    stop = deployment.threading.Event()
    deployment.run_deployment(work, (), events.append, stop, deployment.threading.Event())
    return [event for event in events if isinstance(event, Finished)]


LAUNCHES = """
flag flag flag                 | 3 | 2 | launch_failed
flag model flag                | 3 | 3 | launch_failed
flag model model               | 9 | 3 | launch_failed
flag slow flag slow            | 3 | 3 | launch_failed
slow slow                      | 3 | 2 | launch_timeout
port1 port2 port1              | 3 | 2 | launch_failed
killed killed killed           | 3 | 3 | launch_failed
killed+words killed+words flag | 3 | 3 | launch_failed
worker worker worker           | 3 | 3 | launch_failed
died died died                 | 3 | 2 | launch_failed
lost lost lost                 | 3 | 2 | launch_failed
segfault segfault segfault     | 3 | 2 | launch_failed
broken broken                  | 3 | 1 | launch_failed
memory flag                    | 3 | 1 | oom_load
flag memory                    | 3 | 2 | oom_load
crash crash crash              | 3 | 3 | engine_crashed
crash crash                    | 2 | 2 | engine_crashed
hung hung hung                 | 3 | 3 | hung
crash flag flag                | 9 | 3 | launch_failed
flag crash flag flag           | 9 | 4 | launch_failed
crash crash crash* crash crash | 3 | 5 | engine_crashed
crash crash fine crash crash   | 3 | 0 | none
flag                           | 1 | 1 | launch_failed
"""


@pytest.mark.parametrize(("ends", "attempts", "launches", "outcome"), rows_of(LAUNCHES))
def test_how_often_a_node_launches_an_engine_again(monkeypatch, ends, attempts, launches, outcome):
    script, launched = deque(ends.split()), []

    def launch(work, node, pending, emit, spread):
        launched.append(script.popleft())
        if launched[-1] == "fine":
            pending.trials.clear()
            return None
        return failure_of(launched[-1])

    monkeypatch.setattr(deployment, "prepare_node", lambda *arguments: SimpleNamespace(client_cpus={0}))
    monkeypatch.setattr(deployment, "_one_launch", launch)
    finished = run_on_node(work_of(trial("1"), trial("2"), attempts=int(attempts)))
    if outcome == "none":
        assert not finished
        return
    assert len(launched) == int(launches)
    assert [event.row["outcome"] for event in finished] == [outcome] * 2


# On a node and in the driver: censoring -------------------------------------------------------------------------------

CENSORED = """
batch 8 w   | batch 16 w  | censored
batch 8 w   | batch 8 w   | run
batch 8 w   | batch 4 w   | run
batch 8 w   | batch 16 v  | run
batch 8 w   | rate 16 w   | run
rate 8 w    | batch 16 w  | run
"""


@pytest.mark.parametrize(("smaller", "larger", "decision"), rows_of(CENSORED))
def test_what_a_batch_that_ran_out_of_memory_censors(tmp_path, smaller, larger, decision):
    def asked(name, described):
        load, size, workload = described.split()
        made = Batch(name="l", batch_size=int(size)) if load == "batch" else Constant(name="l", rate=float(size))
        return trial(name, made, Workload(name=workload))

    first, second = asked("1", smaller), asked("2", larger)
    found = policy.censored([second], [first])
    assert len(found) == (decision == "censored")
    plan = make_plan(replace(planned("a", []), trials=[first]), replace(planned("a", []), trials=[second], replicate=1))
    driver = new_driver(plan, RunPaths(tmp_path), Ledger(tmp_path / "ledger.jsonl"), Scripted({}))
    driver.by_deployment["a"][0].stage = Stage.DONE
    driver._record_one(driver.by_deployment["a"][0], first, "1", {"outcome": Outcome.OOM_RUN})
    driver._conclude("a")
    rows = [(row["outcome"], row["reason"], row.get("fault")) for row in list(driver.ledger.rows.values())[1:]]
    assert rows == [("censored", reason, None) for _, reason in found], "the driver decides as the node does"


# In the driver: again in this run, where, and in the next ------------------------------------------------------------


def failed_row(outcome, fault, words="", driver="580.1"):
    return {
        "outcome": outcome,
        "reason": words,
        "fault": None if fault == "-" else Fault(fault).value,
        "driver": driver,
    }


# outcome | fault | launches in this run (retry=in_run) | pending in the next | after the same once more | exit status
OUTCOMES = """
ok             | -            | 1 | no  | no  | 0
oom_load       | -            | 1 | no  | no  | 0
oom_run        | -            | 1 | no  | no  | 0
censored       | -            | 1 | no  | no  | 0
cancelled      | -            | 1 | yes | yes | 0
dropped        | -            | 1 | yes | yes | 0
unavailable    | -            | 1 | yes | yes | 0
launch_failed  | engine       | 2 | no  | no  | 1
launch_failed  | surroundings | 2 | yes | yes | 1
launch_timeout | engine       | 2 | no  | no  | 1
launch_timeout | surroundings | 2 | yes | yes | 1
engine_crashed | engine       | 2 | no  | no  | 1
engine_crashed | surroundings | 2 | yes | yes | 1
hung           | engine       | 2 | no  | no  | 1
hung           | surroundings | 2 | yes | yes | 1
invalid        | engine       | 2 | no  | no  | 1
invalid        | surroundings | 2 | yes | yes | 1
client_limited | surroundings | 2 | yes | yes | 1
disturbed      | surroundings | 2 | yes | yes | 1
"""


@pytest.mark.parametrize(("outcome", "fault", "launches", "pending", "again", "status"), rows_of(OUTCOMES))
def test_what_is_tried_again_in_this_run_and_in_the_next(tmp_path, outcome, fault, launches, pending, again, status):
    executor = ByNode(lambda name, node: failed_row(outcome, fault), nodes=2)
    plan = make_plan(planned("a", ["1"]), retry="in_run")
    _, ledger = drive(plan, tmp_path, executor)
    nodes = [node for _, node in executor.placed]
    assert len(nodes) == len(set(nodes)) == int(launches), "a second try is on another node"
    assert bool(pending_launches(plan, ledger)) == (pending == "yes")
    row = {"trial_id": "1", "deployment_id": "a", "attempt": "3"}
    ledger.commit(row | failed_row(outcome, fault))
    assert bool(pending_launches(plan, ledger)) == (again == "yes")
    assert exit_status(plan, ledger, interrupted=False) == int(status)


# failures so far | retry | retry_failed | drivers of the nodes | run again by the next command
HISTORIES = """
flag                     | in_run   | false | -          | yes
flag                     | next_run | false | -          | yes
flag                     | none     | false | -          | no
flag flag                | in_run   | false | -          | no
flag flag                | in_run   | true  | -          | yes
flag flag                | none     | true  | -          | yes
flag flag                | in_run   | false | same       | no
flag flag                | in_run   | false | other      | yes
flag flag                | none     | false | other      | no
flag flag                | in_run   | false | same other | no
flag model               | in_run   | false | -          | yes
flag model flag          | in_run   | false | -          | yes
flag model model         | in_run   | false | -          | no
port1 port2              | in_run   | false | -          | no
flag slow                | in_run   | false | -          | yes
flag killed flag         | in_run   | false | -          | yes
flag killed flag flag    | in_run   | false | -          | no
flag ok flag             | in_run   | false | -          | yes
flag flag@other          | in_run   | false | -          | yes
flag flag@other          | in_run   | false | other      | yes
flag@other flag@other    | in_run   | false | other      | no
killed killed            | in_run   | false | -          | yes
killed killed            | none     | false | -          | no
segfault segfault        | in_run   | false | -          | no
mendable mendable        | in_run   | false | -          | yes
flag unavailable flag    | in_run   | false | -          | yes
unavailable              | none     | false | -          | yes
"""


def row_of_end(end):
    end, _, driver = end.partition("@")
    if end in ("ok", "unavailable"):
        row = {"outcome": end, "reason": None, "fault": None}
    else:
        failure = failure_of(end)
        fault = "surroundings" if end.startswith("killed") else "engine"
        row = {"outcome": failure.outcome.value, "reason": failure.reason, "fault": fault}
        row["exit"] = failure.exit.stored()
    return row | {"trial_id": "1", "deployment_id": "a", "driver": driver or "same"}


@pytest.mark.parametrize(("failures", "retry", "retry_failed", "drivers", "again"), rows_of(HISTORIES))
@pytest.mark.parametrize("replayed", [False, True], ids=["at once", "from the file"])
def test_what_a_history_decides_for_the_next_run(tmp_path, failures, retry, retry_failed, drivers, again, replayed):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for attempt, end in enumerate(failures.split()):
        ledger.commit(row_of_end(end) | {"attempt": str(attempt)})
    if replayed:
        ledger._compact()
        ledger = Ledger(tmp_path / "ledger.jsonl")
    plan = make_plan(planned("a", ["1"]), retry=retry, retry_failed=retry_failed == "true")
    nodes = None if drivers == "-" else set(drivers.split())
    assert bool(pending_launches(plan, ledger, nodes)) == (again == "yes")


# what the launches of seven replicates of a deployment bring | launches in all | outcomes of the others
SIBLINGS = """
launch_failed                                 | 1 | launch_failed
launch_timeout                                | 1 | launch_timeout
oom_load                                      | 1 | oom_load
engine_crashed                                | 3 | engine_crashed
hung                                          | 3 | hung
invalid: all requests failed                  | 3 | invalid
invalid: some requests failed                 | 7 | invalid
invalid: not measured                         | 7 | invalid
client_limited                                | 7 | client_limited
oom_run                                       | 7 | oom_run
ok engine_crashed                             | 7 | engine_crashed
ok launch_failed                              | 7 | launch_failed
client_limited launch_failed                  | 2 | launch_failed
engine_crashed hung engine_crashed            | 3 | engine_crashed
"""
COUNTS = {"all": (4, 4), "some": (1, 4), "not": (None, None)}


@pytest.mark.parametrize(("script", "launches", "outcome"), rows_of(SIBLINGS))
def test_when_a_deployment_is_given_up(tmp_path, script, launches, outcome):
    ends = deque([script] if ":" in script else script.split())
    executor = ByNode(lambda name, node: row_of(ends.popleft() if len(ends) > 1 else ends[0]), nodes=1)

    def row_of(end):
        end, _, requests = end.partition(": ")
        failed, asked = COUNTS.get(requests.partition(" ")[0], (0, 4))
        return failed_row(end, "-") | {"num_failed": failed, "num_requests": asked}

    _, ledger = drive(make_plan(replicated("a", [1], 7), relaunch="per_replicate"), tmp_path, executor)
    assert len(executor.placed) == int(launches)
    assert list(outcomes(ledger).values())[-1] == outcome
    assert len(outcomes(ledger)) == 7


# how attempts end | submitted | outcome | fault
ENDS_OF_ATTEMPTS = """
lost        | 20 | invalid       | surroundings
our error   | 3  | invalid       | surroundings
not started | 0  | unavailable   | -
unprepared  | 1  | launch_failed | surroundings
"""
END_OF_ATTEMPT = {
    "lost": [Lost("node died")],
    "our error": [Lost("KeyError: x", "Traceback")],
    "not started": [NotStarted("busy")],
    "unprepared": [Unprepared("the hub is away"), Completed()],
}


@pytest.mark.parametrize(("end", "submitted", "outcome", "fault"), rows_of(ENDS_OF_ATTEMPTS))
def test_how_often_an_attempt_is_made_again(tmp_path, end, submitted, outcome, fault):
    class Ending(ByNode):
        def events(self):
            work, node = self.pending.popleft()
            if end != "not started":
                yield from self.start(work, node)
            yield from ((work, event) for event in END_OF_ATTEMPT[end])

    executor = Ending(None, nodes=1)
    cluster = {"name": "ray", "kind": "ray", "wait_for_nodes": 0.05}
    _, ledger = drive(make_plan(planned("a", ["1"]), cluster=cluster), tmp_path, executor)
    if end != "not started":  # which takes a time and no number of tries
        assert len(executor.placed) == int(submitted)
    row = ledger.rows["1"]
    assert (row["outcome"], row.get("fault") or "-") == (outcome, fault)
    assert END_OF_ATTEMPT[end][0].reason in row["reason"]


BLAMED_ON_A_NODE = """
launch_failed  | yes
launch_timeout | yes
engine_crashed | yes
hung           | yes
invalid        | no
client_limited | no
disturbed      | no
oom_load       | no
oom_run        | no
"""


@pytest.mark.parametrize(("outcome", "blamed"), rows_of(BLAMED_ON_A_NODE))
def test_what_may_be_a_nodes_fault(tmp_path, outcome, blamed):
    """Two deployments fail on one node and nowhere else: it is quarantined, and they are retried on the other."""
    executor = ByNode(lambda name, node: outcome if node == "n0" else "ok", nodes=2)
    drive(make_plan(*(planned(name, [name]) for name in "abcd")), tmp_path, executor)
    assert bool(executor.driver.nodes.quarantined) == (blamed == "yes")
    assert (len(executor.placed) > 4) == (blamed == "yes")


# A run that pauses, and ends ----------------------------------------------------------------------------------------

# deployments whose preparation fails in a row | one worked before | seconds since, by patience | pauses | ends
BREAKER = """
a   | no  | 0   | no  | no
a a | no  | 0   | no  | no
a b | no  | 0   | yes | yes
a b | yes | 0   | yes | no
a b | yes | 3.9 | yes | no
a b | yes | 4.1 | yes | yes
"""


@pytest.mark.parametrize(("failing", "worked", "patience", "pauses", "ends"), rows_of(BREAKER))
def test_when_a_run_pauses_and_ends(failing, worked, patience, pauses, ends):
    breaker = Breaker()
    if worked == "yes":
        breaker.prepared("before")
    opened = [breaker.stall(f"{name}-{i}", name, "away") for i, name in enumerate(failing.split())]
    assert any(opened) == (pauses == "yes")
    if breaker.opened is not None:
        breaker.opened -= float(patience) * 60.0
    if ends == "yes":
        with pytest.raises(Halted):
            breaker.check(60.0)
    else:
        breaker.check(60.0)


# Rewording ----------------------------------------------------------------------------------------------------------

BAIT = st.sampled_from(
    ["killed by signal 9", "Connection reset by peer", "503 Service Unavailable", "CUDA out of memory"]
)
WORDS = st.text(max_size=20) | BAIT | st.tuples(st.text(max_size=9), BAIT).map(" ".join)


def decisions(failures, settings):
    """All that is decided on launches that failed so, one after another."""
    history, asked, rows = policy.TrialHistory(), trial(), []
    for failure in failures:
        judged = verdict.Verdict(outcome=failure.outcome, reason=failure.reason, exit=failure.exit)
        rows.append(TrialRow(identity=identity(work_of(), asked), verdict=judged).flat() | {"driver": "same"})
        history = history.after(rows[-1])
        yield rows[-1]["fault"], history.times, policy.needs_run(rows[-1], history, settings, {"same"})
        yield policy.retried_at_the_tail(settings, failure.outcome, history)
    yield policy.launches_again(failures, settings.attempts)
    yield policy.hopeless(rows, settings.attempts) in rows


@given(
    ends=st.lists(st.tuples(st.sampled_from(sorted(ENDS)), WORDS), min_size=1, max_size=4),
    retry=st.sampled_from(["in_run", "next_run", "none"]),
)
@hypothesis.settings(deadline=None)
def test_rewording_our_messages_changes_no_decision(ends, retry):
    settings = SETTINGS.model_copy(update={"retry": retry})
    failures = [failure_of(end) for end, _ in ends]
    reworded = [failure._replace(reason=words) for failure, (_, words) in zip(failures, ends, strict=True)]
    assert list(decisions(reworded, settings)) == list(decisions(failures, settings))


def refused_rows(words):
    rows.read_rows(Path("prompts.unknown"), words)


def raised(error, source=None):
    def fail(words):
        raise error(words) from source

    return fail


ERRORS = [
    (refused_rows, False),
    (raised(EnvironmentFailed), False),
    (raised(ConversionFailed), False),
    (raised(ConfigError, OSError(errno.ECONNRESET, "Connection reset by peer")), False),
    (raised(EnvironmentFailed, OSError(errno.ECONNRESET, "Connection reset by peer")), True),
    (raised(EnvironmentFailed, FileNotFoundError(errno.ENOENT, "No such file")), False),
    (raised(Outage), True),
]


@given(words=WORDS)
@pytest.mark.parametrize(("fails", "waited_for"), ERRORS)
def test_rewording_our_errors_changes_no_decision(fails, waited_for, words):
    with pytest.raises(Exception) as caught:
        fails(words)
    assert policy.is_waited_for(caught.value) is waited_for
