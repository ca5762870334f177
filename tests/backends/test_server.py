"""The lifetime of an engine, with a fake one whose helper detaches itself and ignores SIGTERM: nothing may be left."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from backends.base import Backend, Launch
from backends.declarations import LogReading
from backends.launch import server, supervisor, task
from sweep.base.records import Outcome
from tests.support.fake_engine import Handler
from tests.support.http_stub import serving
from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]


class Fake(Backend):
    arguments: tuple[str, ...] = ()
    stop_grace: float = 0.3

    def command(self, launch: Launch) -> list[str]:
        return [sys.executable, str(ROOT / "tests" / "support" / "fake_engine.py"), str(launch.port), *self.arguments]


def fake(*arguments: str, **fields: object) -> Fake:
    return Fake(name="fake", arguments=arguments, **fields)


@pytest.fixture
def launch(tmp_path):
    return Launch(model=tmp_path, served_name="m", workdir=tmp_path / "attempt")


@pytest.fixture
def marker(tmp_path):
    """A marker of this test alone; whatever is left with it makes the test fail."""
    name = f"test/{tmp_path.name}/{time.time_ns()}"
    yield name
    left = living(name)
    supervisor.send(left, signal.SIGKILL)
    assert left == [], "processes left behind"


def living(marker: str) -> list[int]:
    return supervisor.marked(lambda environ: environ[supervisor.MARKER] == marker)


def test_is_ready_then_gone_with_all_its_processes(launch, marker):
    backend = fake(flags={"quantization": "fp8"})
    with server.running(backend, launch, marker=marker, versions={"fake": "1"}) as engine:
        assert engine.alive()
        assert engine.exit_status is None
        assert len(engine.processes()) == 2  # the server and its detached helper
        assert engine.pid in {process.pid for process in engine.processes()}
        assert "starting" in engine.log_tail()
        facts = engine.facts()
        assert facts["engine_version"] == "1.2.3"
        assert facts["command"] == engine.command
        assert facts["coarser_format"] == "fp8"
        assert facts["versions"] == {"fake": "1"}
        assert 0 < facts["startup_seconds"] < 10
    assert living(marker) == []
    assert not engine.alive()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", engine.launch.port), timeout=1).close()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_gone_when_the_body_raises(launch, marker, error):
    with pytest.raises(error), server.running(fake(), launch, marker=marker):
        raise error
    assert living(marker) == []


@pytest.mark.parametrize(
    ("words", "outcome", "reason"),
    [
        ("Traceback\nValueError: no such quantization: q9\nleaked semaphore", "launch_failed", "ValueError: no such"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 9 GiB", "oom_load", "torch.OutOfMemoryError"),
    ],
)
def test_a_crash_while_starting_is_told_in_the_engines_own_words(launch, marker, words, outcome, reason):
    begin = time.monotonic()
    error = failed_launch(fake("--say", words, "--exit", "3"), launch, marker)
    assert error.outcome == outcome
    assert error.reason.startswith(reason)
    assert "(exit status 3)" in error.reason
    assert words in error.log_tail
    assert time.monotonic() - begin < 5


def failed_launch(backend, launch, marker):
    with pytest.raises(server.LaunchError) as caught, server.running(backend, launch, marker=marker):
        pytest.fail("it never was ready")
    return caught.value


@pytest.mark.slow
def test_an_engine_that_does_not_become_ready_in_time(launch, marker):
    error = failed_launch(fake("--deaf", "--say", "loading weights", launch_timeout=3), launch, marker)
    assert error.outcome is Outcome.LAUNCH_TIMEOUT
    assert error.reason == "not ready after 3 s; last log message: loading weights"


def test_a_command_that_does_not_exist(launch, marker):
    class Missing(Fake):
        def command(self, launch: Launch) -> list[str]:
            return ["/no/such/engine"]

    reason = failed_launch(Missing(name="x"), launch, marker).reason
    assert reason.startswith("error: cannot start /no/such/engine: ")


def test_a_fixed_port_that_is_taken_is_refused_at_the_door(launch, marker):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert server.port_problem(port) == (
            f"backend.port={port}: Address already in use; expected a free port, or null for any"
        )
        assert f"backend.port={port}" in failed_launch(fake(port=port), launch, marker).reason
        assert not (launch.workdir / server.LOG).exists()
    assert server.port_problem(port) is None
    with server.running(fake(port=port), launch, marker=marker) as engine:
        assert engine.url.endswith(f":{port}")


def test_another_port_is_taken_when_somebody_was_faster(launch, marker, tmp_path):
    first = tmp_path / "first"
    with server.running(fake("--taken-once", str(first)), launch, marker=marker) as engine:
        assert engine.launch.port != int(first.read_text())
        assert engine.alive()


@pytest.mark.slow
def test_an_answer_of_somebody_else_is_not_taken_for_the_engines(launch, marker, monkeypatch):
    with serving(Handler) as other:
        free = server.free_port()
        ports = iter([int(other.rpartition(":")[2]), free])
        monkeypatch.setattr(server, "free_port", lambda host: next(ports))
        # While it is slow to start, the other one answers in its place.
        with server.running(fake("--delay", "1"), launch, marker=marker) as engine:
            assert engine.launch.port == free


def test_the_death_of_the_main_process_is_noticed_at_once(launch, marker):
    with server.running(fake(), launch, marker=marker) as engine:
        os.kill(engine.pid, signal.SIGKILL)
        begin = time.monotonic()
        wait_until(lambda: not engine.alive(), 2)
        assert time.monotonic() - begin < 1
        assert engine.exit_status == -9
        assert engine.exit_reason() == "starting (killed by signal 9)"
        # What it leaves is cleared without waiting for the end of the block.
        wait_until(lambda: engine.processes() == [], 5)


def test_the_death_of_the_supervisor_takes_the_engine_along(launch, marker):
    with server.running(fake(), launch, marker=marker) as engine:
        os.kill(psutil.Process(engine.pid).ppid(), signal.SIGKILL)
        wait_until(lambda: not engine.alive(), 2)
        assert "supervisor" in engine.exit_reason()
    assert living(marker) == []


@pytest.mark.parametrize("both", [False, True])
def test_a_daemon_without_environment_and_session_ends_with_its_supervisor(launch, marker, both):
    with server.running(fake("--apart", "x"), launch, marker=marker) as engine:
        wait_until(lambda: len(set(supervisor.of_attempt(marker)) - set(living(marker))) == 1, 5)
        parent, guardian, *_ = psutil.Process(engine.pid).parents()
        for each in (guardian, parent) if both else (parent,):
            each.kill()
        wait_until(lambda: not engine.alive(), 5)
        wait_until(lambda: len(supervisor.of_attempt(marker)) == both, 5)
    assert supervisor.of_attempt(marker) == []


def test_a_log_keeps_its_head_and_its_tail_and_counts_the_rest(launch, marker):
    with server.running(fake("--flood", "40"), launch, marker=marker) as engine:
        wait_until(lambda: engine.log_left_out() > 0, 10)
        size = engine.log.stat().st_size
        kept = supervisor.LOG_HEAD + supervisor.LOG_TAIL
        assert size == kept + supervisor.NOTE_SIZE
        assert engine.log_position() == kept + engine.log_left_out() == len("starting\n") + 40 * (2**20 + 1)
        assert engine.log.read_bytes()[: len("starting")] == b"starting"
        with engine.log.open("a") as log:
            log.write("the end\n" + "y" * (size - 8))
        supervisor.cut_log(str(engine.log))
        assert engine.log_position() == kept + engine.log_left_out() == len("starting\n") + 40 * (2**20 + 1) + size
        assert engine.log_tail(1, engine.log_position() - 5).splitlines()[1:] == ["yyyyy"]
        assert engine.log_tail().startswith(f"sweep: {engine.log_left_out()} bytes of this log are omitted")
        assert max(map(len, engine.log_tail().splitlines())) < 3000, "patterns take long to search an endless line"


OWNER = """
    import signal, sys, time
    # Tests that run in the background or under nohup hand down signals that are ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    from pathlib import Path
    from backends.launch import server
    from backends.base import Launch
    from tests.backends.test_server import fake
    launch = Launch(model=Path("."), served_name="m", workdir=Path(sys.argv[2]))
    with server.running(fake(*sys.argv[3:]), launch, marker=sys.argv[1]) as engine:
        print(engine.pid, flush=True)
        time.sleep(600)
"""


@pytest.fixture
def owner(marker, tmp_path, request):
    """Another process that holds an engine, as a task does; and the engine's pid."""
    words = [marker, str(tmp_path / "attempt"), *getattr(request, "param", ())]
    command = [sys.executable, "-c", textwrap.dedent(OWNER), *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    yield process, int(process.stdout.readline())
    process.kill()
    process.wait()
    process.stdout.close()


def test_nothing_is_left_when_the_owner_is_killed(owner, marker):
    process, _ = owner
    assert len(living(marker)) == 3  # with the supervisor
    process.kill()
    wait_until(lambda: living(marker) == [], 5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_nothing_is_left_when_the_owner_gets_a_signal(owner, marker, number):
    process, _ = owner
    process.send_signal(number)
    process.wait(10)
    wait_until(lambda: living(marker) == [], 5)


@pytest.mark.slow
@pytest.mark.parametrize("owner", [(), ("--apart", "x")], indirect=True)
def test_the_janitor_clears_what_nobody_is_left_to_clear(owner, marker, launch):
    process, engine = owner
    parent, guardian, *_ = psutil.Process(engine).parents()
    for each in (guardian, parent, process):
        each.kill()
    process.wait()
    wait_until(lambda: not psutil.pid_exists(engine))
    # The helper that ignores SIGTERM belongs to nobody any more.
    wait_until(lambda: len(supervisor.of_attempt(marker)) == 1)
    with server.running(fake(), launch, marker=f"{marker}/next") as engine:
        assert supervisor.of_attempt(marker) == []
        assert engine.alive()


def test_the_janitor_leaves_living_owners_alone_unless_told(owner, marker):
    server.clear_leftovers()
    assert len(living(marker)) == 3
    assert len(server.clear_leftovers(lambda other: other == marker)) == 3
    assert living(marker) == []


@pytest.mark.parametrize(("namespace", "killed"), [("", True), ("own", True), ("7", False)])
def test_the_janitor_leaves_the_engines_of_another_container_alone(marker, namespace, killed):
    """Seen from the host, its owner's process id means nothing: a sweep on the host killed the container's engines."""
    namespace = supervisor.pid_namespace() if namespace == "own" else namespace
    environ = {supervisor.MARKER: marker, supervisor.OWNER: f"{2**22 + 1}:1"}
    environ |= {supervisor.OWNER_NAMESPACE: namespace} if namespace else {}
    with subprocess.Popen(["sleep", "60"], env=environ) as engine:
        assert (engine.pid in server.clear_leftovers()) == killed
        assert engine.poll() is None or killed
        engine.kill()


def test_secrets_reach_no_engine_and_no_log_tail(launch, marker, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_inherited_secret")
    monkeypatch.setenv("WANDB_API_KEY", "wandb_secret_key")
    with server.running(fake("--say", "my token is hf_inherited_secret"), launch, marker=marker) as engine:
        environ = psutil.Process(engine.pid).environ()
        assert "HF_TOKEN" not in environ
        assert "WANDB_API_KEY" not in environ
        assert "my token is ***" in engine.log_tail()


def test_an_engine_is_bound_to_its_cores_and_hidden_from_other_gpus(launch, marker, monkeypatch):
    monkeypatch.setattr(server, "used_memory", lambda gpus: 0)
    core = min(os.sched_getaffinity(0))
    with server.running(fake(), server.replace(launch, cpus=(core,), gpus=("3", "4")), marker=marker) as engine:
        assert {tuple(process.cpu_affinity()) for process in engine.processes()} == {(core,)}
        environ = psutil.Process(engine.pid).environ()
        assert environ["CUDA_VISIBLE_DEVICES"] == "3,4"
        assert environ["OMP_NUM_THREADS"] == "1"
        assert environ["HF_HUB_OFFLINE"] == "1"


def test_other_children_of_the_owner_are_left_alone(launch, marker):
    with subprocess.Popen(["sleep", "0.1"]) as child:
        with server.running(fake(), launch, marker=marker):
            wait_until(lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE)
        assert child.wait() == 0  # its status was not taken away


def test_an_endpoint_that_somebody_else_runs_is_only_asked(launch, marker):
    with serving(Handler) as url:
        backend = Backend(name="attached", url=f"{url}/v1")
        with server.running(backend, launch, marker=marker) as engine:
            assert engine.url == url
            assert engine.alive()
            assert engine.processes() == []
            assert engine.log_tail() == ""
            assert engine.facts()["engine_version"] == "1.2.3"
        assert engine.alive()
    assert "accepts no connections" in failed_launch(backend, launch, marker).reason


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("", ""),
        ("loading\n50 %", "50 %"),
        ("x.py: error: unrecognized arguments: --nope\nbye", "x.py: error: unrecognized arguments: --nope"),
        ("Traceback\nKeyError: 'a'\nDuring handling\nOSError: no space\nleaked", "OSError: no space"),
        (
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for Config\n"
            "  Value error, no such model [type=value_error, input_value=1]\n    For further information",
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for Config Value error, no such model",
        ),
    ],
)
def test_last_words_are_the_last_error(log, words):
    assert LogReading().failure_line(log) == words


def test_a_gpu_is_released_only_when_its_memory_is_back(launch, marker, monkeypatch):
    readings = iter([0, 9, 9, 0])  # GiB: before the launch, and while the driver frees what the engine held
    asked = []

    def memory(gpus):
        asked.append(tuple(gpus))
        return next(readings) * 2**30

    monkeypatch.setattr(server, "used_memory", memory)
    with server.running(fake(), server.replace(launch, gpus=("1",)), marker=marker):
        assert asked == [("1",)]
    assert asked == [("1",)] * 4


def test_memory_that_a_gpu_does_not_give_back_is_said_in_the_log(launch, marker, monkeypatch):
    readings = iter([0])
    monkeypatch.setattr(server, "used_memory", lambda gpus: next(readings, 2**30))
    monkeypatch.setattr(server, "GPU_MEMORY_WITHIN", 0.2)
    with server.running(fake(), server.replace(launch, gpus=("1",)), marker=marker) as engine:
        pass
    assert f"the GPUs still hold {2**30} bytes more than before" in engine.log.read_text()


@pytest.mark.parametrize(
    ("flag", "said"),
    [*((flag, "by HTTP on") for flag in ("host", "hostname", "uds", "ssl_keyfile")), ("trust_remote_code", "code")],
)
def test_flags_that_open_a_machine_or_hide_its_engine_are_refused(flag, said):
    with pytest.raises(ValueError, match=said):
        Fake(name="fake", flags={flag: "0.0.0.0"})


def program(file: Path, output: str = "") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!/bin/sh\necho '{output}'\n")
    file.chmod(0o755)
    return file


def environment_with_compiler(folder: Path) -> tuple[Path, Path]:
    """Make what an installed environment with a CUDA compiler has; return its interpreter and compiler."""
    compiler = folder / "lib" / "python3.11" / "site-packages" / "nvidia" / "cu13" / "bin" / "nvcc"
    program(compiler, "Cuda compilation tools, release 13.0, V13.0.88")
    python = program(folder / "bin" / "ninja").with_name("python")
    (folder / "pyvenv.cfg").write_text("")
    python.symlink_to(sys.executable)
    return python, compiler


def test_an_engine_runs_as_in_its_activated_environment(tmp_path, marker, monkeypatch):
    """Without ninja on PATH vLLM switches FlashInfer off without an error; its environment has one."""
    python, compiler = environment_with_compiler(tmp_path / "environment")
    monkeypatch.setenv("PATH", str(tmp_path / "a-system-without-ninja"))
    monkeypatch.setenv("VIRTUAL_ENV", "/of/the/orchestrator")
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    launch = Launch(model=tmp_path, served_name="m", workdir=tmp_path / "attempt", python=str(python))
    with server.running(fake(), launch, marker=marker) as engine:
        environ = psutil.Process(engine.pid).environ()
    assert shutil.which("ninja", path=environ["PATH"]) == str(python.with_name("ninja"))
    assert shutil.which("nvcc", path=environ["PATH"]) == str(compiler)
    assert environ["VIRTUAL_ENV"] == str(python.parents[1])
    assert environ["CUDA_HOME"] == str(compiler.parents[1])
    assert environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


@pytest.mark.parametrize("variable", ["CUDA_HOME", "CUDA_PATH"])
@pytest.mark.parametrize(("release", "fits"), [("13.0", True), ("13.5", False), ("12.8", False), (None, False)])
def test_a_users_cuda_toolkit_is_used_where_its_release_fits(tmp_path, monkeypatch, variable, release, fits):
    """Of the environment's headers; one of another release ends the first kernel's compilation."""
    python, compiler = environment_with_compiler(tmp_path / "environment")
    toolkit = tmp_path / "cuda"
    if release:
        program(toolkit / "bin" / "nvcc", f"Cuda compilation tools, release {release}, V{release}.1")
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(toolkit))
    environ = task.activated(str(python))
    assert environ["CUDA_HOME"] == str(toolkit if fits else compiler.parents[1])
    assert shutil.which("nvcc", path=environ["PATH"]) == f"{environ['CUDA_HOME']}/bin/nvcc"
