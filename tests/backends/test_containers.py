"""Engines in containers: stand-ins for docker, podman and apptainer refuse options that the real ones do not have."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import psutil
import pytest

from backends import installed
from backends.base import EnvironmentChoice, EnvironmentSpec, Host, Launch
from backends.launch import container, container_options, server, supervisor
from backends.launch.container_options import folders
from backends.launch.gpus import Gpu
from backends.prepare import environments, fit, images, locks
from backends.tgi import TGI
from sweep.__main__ import main
from sweep.base.config import Cluster
from sweep.base.records import Outcome
from sweep.disk.run_files import RunPaths, read_trials
from sweep.inputs.load import Batch
from sweep.node import trial
from sweep.node.work import PreparedNode, RunningEngine
from tests.backends.test_server import failed_launch
from tests.backends.test_tgi import STAND_IN, asked, executable, measure
from tests.backends.test_tgi import model as model
from tests.engines import conftest
from tests.node.test_gpus import nvml as nvml
from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
RUNTIMES = ("docker", "podman", "apptainer")
DIGEST = "sha256:" + "a1" * 32
IN_IMAGES = {  # by environment: the backend, and how its command begins in the image
    "vllm_image": ("vllm", ["python3", "-m", "vllm.entrypoints.cli.main", "serve"]),
    "sglang_image": ("sglang", ["python3", "-m", "sglang.launch_server"]),
    "tensorrt_llm_image": ("tensorrt_llm", ["python3", "-m", "tensorrt_llm.commands.serve", "serve"]),
    "llamacpp_image": ("llamacpp", ["/app/llama-server"]),
    "tgi": ("tgi", ["/tgi-entrypoint.sh"]),
}


@pytest.fixture(params=RUNTIMES)
def runtime(request, tmp_path, monkeypatch) -> str:
    """A runtime's stand-in, first on PATH, in which TGI's stand-in is what images have."""
    state, programs = tmp_path / "state", tmp_path / "bin"
    state.mkdir()
    programs.mkdir()
    for name in RUNTIMES:
        executable(programs / name, sys.executable, str(ROOT / "tests" / "support" / "container_stand_in.py"), name)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("CONTAINER_STAND_IN", str(state))
    monkeypatch.setenv("CONTAINER_STAND_IN_COMMAND", json.dumps(STAND_IN))
    monkeypatch.setenv("CONTAINER_STAND_IN_PYTHONPATH", str(ROOT))
    monkeypatch.setenv("HF_TOKEN", "hf_secret_value")
    return str(request.param)


def launch(tmp_path: Path, model: Path, runtime: str, **more: object) -> Launch:
    fields = {
        "model": model,
        "served_name": "tiny",
        "workdir": tmp_path / "attempt",
        "python": "python3",
        "image": str(tmp_path / "image.sif") if runtime == "apptainer" else f"repository/image@{DIGEST}",
        "runtime": runtime,
        "cache": tmp_path / "cache",
        "image_cache": "/var/cache/sweep",
        "max_model_len": 4096,
        "port": 8123,
    }
    (tmp_path / "attempt").mkdir(exist_ok=True)
    return Launch(**{**fields, **more})


def calls(tmp_path: Path) -> list[dict]:
    return [json.loads(line) for line in (tmp_path / "state" / "calls").read_text().splitlines()]


def containers(folder: Path) -> list[int]:
    """Process ids of what runs in containers of a test: the engine, and the shells around it."""
    lines = [(process.pid, process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    inside = [(pid, line) for pid, line in lines if "lease" in line or "tgi_stand_in.py" in " ".join(line)]
    return [pid for pid, line in inside if str(folder / "model") in line and "container" not in " ".join(line[:4])]


def wait_until_gone(folder: Path) -> None:
    wait_until(lambda: not containers(folder), 8.0)


def test_a_container_serves_and_is_removed(runtime, tmp_path, model):
    backend, its = TGI(name="tgi", stop_grace=2), launch(tmp_path, model, runtime, port=0)
    with server.running(backend, its, marker=f"container/{os.getpid()}") as engine:
        records = measure(engine, asked(2), Batch(batch_size=2), tmp_path).records
        assert list(records.output_tokens) == [16, 16]
        inside = set(containers(tmp_path))
        assert inside
        assert inside <= {process.pid for process in engine.processes()}, "its CPU time and memory are the engine's"
        assert engine.processes_known()
    wait_until_gone(tmp_path)
    made = [call["argv"][0] for call in calls(tmp_path)]
    assert made == (["exec"] if runtime == "apptainer" else ["rm", "run", "rm"])


@pytest.mark.parametrize("runtime", ["docker"], indirect=True)
def test_of_another_users_container_nothing_is_counted(runtime, tmp_path, model, monkeypatch):
    """docker's containers are root's: who may not read their environment does not know them."""
    backend, its = TGI(name="tgi", stop_grace=2), launch(tmp_path, model, runtime, port=0, cpus=(0,))
    work: Any = SimpleNamespace(
        settings=SimpleNamespace(cluster=Cluster(name="inline", kind="inline")),
        deployment=SimpleNamespace(backend=backend),
    )

    def sampled(running: RunningEngine) -> tuple[bool, bool]:
        foreign = trial._foreign(work, running)
        return foreign.cpu is not None, "processes" in [source.name for source in trial._sources(running, foreign)]

    with server.running(backend, its, marker=f"container/{os.getpid()}") as engine:
        node = PreparedNode(its, environments.Environment("python3"), set(), "here")
        running = RunningEngine(node, (engine,), {})
        assert sampled(running) == (True, True)
        hidden, read = set(containers(tmp_path)), supervisor.process_environment
        monkeypatch.setattr(supervisor, "process_environment", lambda pid: {} if pid in hidden else read(pid))
        assert engine.processes(), "docker's client is ours"
        assert sampled(running) == (False, False)
        monkeypatch.setattr(supervisor, "process_environment", read)


def test_what_is_left_of_a_container_is_found_by_its_marker(runtime, tmp_path, model):
    """As after the owner and every process around the container were killed, the lease's shell included."""
    backend, its = TGI(name="tgi", stop_grace=2), launch(tmp_path, model, runtime, port=0)
    marker = f"container/{os.getpid()}/leftover"
    with server.running(backend, its, marker=marker):
        inside = set(containers(tmp_path))
        assert inside
        assert inside <= set(server.clear_leftovers(stale=lambda each: each == marker))
        assert not set(containers(tmp_path)) & inside


def test_the_conformance_suite_launches_an_image_in_a_container(runtime, tmp_path, model, monkeypatch):
    facts = Host(gpus=("NVIDIA L4",), executables=frozenset(RUNTIMES), driver="580", capability="8.9")
    for name, value in {"PLATFORM": "cuda", "HOST": facts, "CACHE": tmp_path / "cache"}.items():
        monkeypatch.setattr(conftest, name, value)
    choice = EnvironmentChoice(image=f"repository/image@{DIGEST}", runtime=runtime)
    backend = TGI(name="tgi", env=choice, stop_grace=2)
    assert conftest.runs_here(backend)
    spec = locks.locked(conftest.environment_of(backend), conftest.CACHE, print)
    its = conftest.make_launch(backend, model, environments.prepare(spec, conftest.CACHE, print), tmp_path / "attempt")
    assert (its.runtime, its.image_cache, its.shm_size) == (runtime, spec.cache, spec.shm_size)
    with server.running(backend, its, marker=f"container/{os.getpid()}"):
        assert containers(tmp_path)
    wait_until_gone(tmp_path)
    assert f"{tmp_path / 'cache' / 'containers'}" in json.dumps(calls(tmp_path))


def test_the_token_goes_by_file(runtime, tmp_path, model):
    """Neither on a command line, nor in the container's variables, nor in the log; and the file does not stay."""
    backend, its = TGI(name="tgi", stop_grace=2), launch(tmp_path, model, runtime, port=0)
    with server.running(backend, its, marker=f"container/{os.getpid()}") as engine:
        variables = [psutil.Process(pid).environ() for pid in containers(tmp_path)]
        files = {Path(each["HF_TOKEN_PATH"]) for each in variables if "HF_TOKEN_PATH" in each}
        (file,) = files
        assert file.read_text() == "hf_secret_value"
        assert file.parent.stat().st_mode & 0o077 == 0
        assert "hf_secret_value" not in json.dumps([variables, calls(tmp_path)])
    assert not file.exists()
    assert "hf_secret_value" not in engine.log_tail(1000)


def test_a_container_ends_with_its_owner_even_when_everything_is_killed(runtime, tmp_path, model):
    """SIGKILL of the wrapper and of the client: only the lease inside the container is left to end it."""
    backend, its = TGI(name="tgi", stop_grace=2), launch(tmp_path, model, runtime, port=0)
    with server.running(backend, its, marker=f"container/{os.getpid()}") as engine:
        inside = set(containers(tmp_path))
        assert inside
        clients = {process.pid for process in engine.processes()} - inside
        assert clients
        for pid in clients:
            with contextlib.suppress(ProcessLookupError):  # it ended with the one before it
                os.kill(pid, signal.SIGKILL)
        wait_until_gone(tmp_path)
        wait_until(lambda: not engine.alive(), 2, "told a moment after the last process has ended")


@pytest.mark.skipif(os.getuid() != 0, reason="gives files to another user")
@pytest.mark.parametrize(("owner", "expected"), [("12345:12345", 12345), (None, 0)])
def test_what_a_container_of_root_leaves_in_the_cache_is_its_users(owner, expected, tmp_path):
    """Else only root could remove it."""
    cache = tmp_path / "cache"
    cache.mkdir()
    owners = {"SWEEP_CACHE_OWNER": owner} if owner else {}
    variables = owners | {"PATH": os.environ["PATH"], "XDG_CACHE_HOME": str(cache)}
    engine = ["sh", "-c", f"mkdir {cache}/kernels && touch {cache}/kernels/a && exit 3"]
    with subprocess.Popen(
        ["/bin/sh", "-c", container.LEASE, "lease", *engine], stdin=subprocess.PIPE, env=variables
    ) as its:
        assert its.wait(timeout=30) == 3
    assert {path.stat().st_uid for path in cache.rglob("*")} == {expected}


def test_a_failed_engine_is_told_in_its_own_words(runtime, tmp_path, model):
    (model / "config.json").unlink()
    backend, its = TGI(name="tgi", stop_grace=2), launch(tmp_path, model, runtime, port=0)
    assert "has no config.json" in failed_launch(backend, its, f"container/{os.getpid()}").reason
    wait_until_gone(tmp_path)


@pytest.mark.parametrize("ends", ["kill -9 $$", "echo 'Worker proc VllmWorker-1 died unexpectedly'; exit 1"])
@pytest.mark.parametrize("kills", [1, 0])
def test_the_kernels_kill_for_memory_is_out_of_memory(runtime, kills, ends, tmp_path, model, monkeypatch):
    """Also of a child. The shell in the container says 137 where a process of ours would be ended by signal 9."""
    monkeypatch.setenv("CONTAINER_STAND_IN_COMMAND", json.dumps(["sh", "-c", f"sleep 0.2; {ends}"]))
    counts = iter([0, kills])
    monkeypatch.setattr(server, "_oom_kills", lambda: next(counts, kills))
    backend, its = TGI(name="tgi", stop_grace=2), launch(tmp_path, model, runtime, port=0)
    error = failed_launch(backend, its, f"container/{os.getpid()}")
    assert error.outcome is (Outcome.OOM_LOAD if kills else Outcome.LAUNCH_FAILED)
    assert ("dmesg" in error.reason) == bool(kills)


@pytest.mark.parametrize("environment", IN_IMAGES)
def test_every_engine_in_its_image_by_options_that_exist(runtime, environment, tmp_path, model, monkeypatch):
    """The stand-in prints the command: it ends with an error if an option is unknown to the runtime."""
    name, begins = IN_IMAGES[environment]
    spec = environments.resolve(EnvironmentChoice(cuda=environment), "cuda")
    fields = {"python": spec.python, "binary": spec.binary, "gpus": ("GPU-b", "GPU-a"), "cpus": (0, 1)}
    its = launch(tmp_path, model, runtime, **fields, shm_size=spec.shm_size, image_cache=spec.cache)
    present = {uuid: Gpu(uuid, number, "NVIDIA L4", "8.9") for number, uuid in enumerate(("GPU-a", "GPU-b"))}
    monkeypatch.setattr(container_options, "find_gpu", present.get)
    backend = installed.configured(name)
    theirs_alone = {"CUDA_VISIBLE_DEVICES": "0", "PATH": "/opt", "HF_TOKEN": "hf_secret_value"}
    marks = {supervisor.MARKER: "a", supervisor.OWNER: "1:2"}
    command = container_options.wrap(backend.command(its), its, {**backend.environment(its), **theirs_alone, **marks})
    variables = [option.partition("=")[2].partition("=")[0] for option in command if option.startswith("--env=")]
    assert len(set(variables)) == len(variables), "of two of one name the last would win"
    assert command[command.index(its.image) + 1 :][: len(begins)] == begins
    assert "127.0.0.1" in command
    assert backend.facts(its), "none needs a program of this machine"
    monkeypatch.setenv("CONTAINER_STAND_IN_COMMAND", json.dumps(["echo", "runs:"]))
    answer = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    assert "unknown flag" not in answer.stderr, answer.stderr
    assert f"{model}" in answer.stdout
    text = " ".join(command)
    pinned = {
        "docker": '--gpus="device=GPU-b,GPU-a"',
        "podman": "--device=nvidia.com/gpu=1 --device=nvidia.com/gpu=0",
        "apptainer": "--nv ",
    }
    assert pinned[runtime] in text
    assert not any(f"--env={name}" in command for name in theirs_alone), "the runtime pins; the token is a file"
    assert runtime == "apptainer" or {"--network=host", "--cpuset-cpus=0,1"} <= set(command)
    assert f"{tmp_path / 'cache'}:{spec.cache}:rw" in text
    assert f"--env=XDG_CACHE_HOME={spec.cache}" in text
    assert f"{model}:{model}:ro" in text
    assert runtime == "apptainer" or f"--shm-size={spec.shm_size}" in text


def test_an_option_that_does_not_exist_is_refused(runtime, tmp_path, model, monkeypatch):
    monkeypatch.setenv("CONTAINER_STAND_IN_COMMAND", json.dumps(["true"]))
    its = launch(tmp_path, model, runtime)
    command = container_options.wrap(["engine"], its, {})
    command.insert(command.index(its.image), "--gpu=all")
    answer = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    assert "unknown flag: --gpu" in answer.stderr


def test_links_of_the_hubs_cache_can_be_followed_in_the_container(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    (blobs / "1234").write_text("x")
    (snapshot / "model.safetensors").symlink_to("../../blobs/1234")
    assert folders(snapshot) == [snapshot, blobs]


# -- images as environments


class Registry:
    """Docker's registry protocol: a challenge, a token, and the digest of a tag."""

    def __init__(self) -> None:
        self.requests: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(f"{request.method} {request.url}")
        if request.url.path == "/token":
            return httpx.Response(200, json={"token": "anonymous"})
        if "authorization" not in request.headers:
            challenge = f'Bearer realm="https://{request.url.host}/token",service="registry",scope="repository:x:pull"'
            return httpx.Response(401, headers={"www-authenticate": challenge})
        if not request.url.path.endswith("/v0.32.0"):
            return httpx.Response(404)
        return httpx.Response(200, headers={"docker-content-digest": DIGEST})


@pytest.fixture
def registry(monkeypatch):
    made = Registry()
    client = httpx.Client
    monkeypatch.setattr(images.httpx, "Client", lambda **more: client(transport=httpx.MockTransport(made), **more))
    return made


def test_an_image_is_locked_by_its_digest(registry, tmp_path):
    spec = environments.resolve(EnvironmentChoice(cuda="vllm_image"), "cuda")
    assert locks.needed(spec)
    before = environments.fingerprint(spec)
    locked = locks.resolve_lock(spec, tmp_path, print)
    assert locked.lock is not None
    assert locked.lock.pins == (f"vllm/vllm-openai@{DIGEST}",)
    assert registry.requests[0] == "HEAD https://registry-1.docker.io/v2/vllm/vllm-openai/manifests/v0.32.0"
    assert environments.fingerprint(locked) != before
    kept = locks.with_lock(spec, {locks.file_name(locked): locks.text(locked)})
    assert kept.lock == locked.lock, "as the results keep it"
    assert images.by_digest("ubuntu:v0.32.0") == f"ubuntu@{DIGEST}"
    assert registry.requests[-1] == "HEAD https://registry-1.docker.io/v2/library/ubuntu/manifests/v0.32.0"
    with pytest.raises(environments.EnvironmentFailed, match="not found in its registry"):
        locks.resolve_lock(spec.model_copy(update={"image": "ghcr.io/a/b:new"}), tmp_path, print)


def test_an_image_of_the_users_by_digest_needs_no_registry(registry):
    choice = EnvironmentChoice(image=f"mine/vllm@{DIGEST}", runtime="podman")
    spec = locks.with_lock(environments.resolve(choice, "cuda"))
    assert spec.lock is not None
    assert spec.lock.pins == (f"mine/vllm@{DIGEST}",)
    assert (spec.python, spec.runtime) == ("python3", "podman")
    assert not registry.requests


def test_an_image_is_pulled_by_its_digest_and_is_its_version(runtime, tmp_path):
    spec = EnvironmentSpec(name="x", image=f"a/b@{DIGEST}", runtime=runtime, python="python3")
    environment = environments.prepare(locks.with_lock(spec), tmp_path, print)
    assert environment.versions == {"image": f"a/b@{DIGEST}"}
    assert environment.runtime == runtime
    if runtime == "apptainer":
        assert calls(tmp_path)[0]["argv"][::2] == ["pull", f"docker://a/b@{DIGEST}"]
        assert environment.image is not None
        assert environment.image.endswith(".sif")
    else:
        assert environment.image == f"a/b@{DIGEST}"


def test_a_node_without_a_runtime_cannot_take_an_image():
    spec = environments.resolve(EnvironmentChoice(cuda="vllm_image"), "cuda")
    gpu = Host(gpus=("NVIDIA L4",), driver="550")
    assert fit.problem(spec, gpu) == (
        "no apptainer or docker or podman on PATH; install it with NVIDIA's container toolkit"
    )
    docker = Host(gpus=gpu.gpus, driver="550", executables=frozenset({"docker"}))
    assert fit.problem(spec, docker) is None, "by its compatibility libraries"
    named = environments.resolve(EnvironmentChoice(cuda="vllm_image", runtime="podman"), "cuda")
    assert "podman" in (fit.problem(named, docker) or "")


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["docker"], indirect=True)
def test_a_trial_in_an_image_through_the_whole_command(runtime, nvml, tmp_path, monkeypatch):
    """The row's versions are the image's digest, and the GPU is pinned by its UUID."""

    def computing(_handle: object) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=pid, usedGpuMemory=1) for pid in psutil.pids()]

    monkeypatch.setattr(nvml(), "nvmlDeviceGetComputeRunningProcesses", computing)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    words = "backend=tgi model=tiny-llama model.max_model_len=512 workload=qa workload.num_requests=2 hardware=gpu"
    common = f"workload.output_tokens=64 load.batch_size=2 cluster=inline tracking=none out={tmp_path / 'out'}"
    flags = "backend.flags.max-batch-total-tokens=null"  # which the stand-in does not have
    more = (f"backend.env.image=mine/tgi@{DIGEST}", flags)
    main([*words.split(), *common.split(), *more, f"cache_dir={tmp_path / 'cache'}"])
    (row,) = read_trials(RunPaths(tmp_path / "out").trials)
    assert row["outcome"] in ("ok", "client_limited"), row["reason"]
    if row["outcome"] == "ok":
        assert json.loads(row["versions"])["image"] == f"mine/tgi@{DIGEST}"
    runs = [call["argv"] for call in calls(tmp_path) if call["argv"][0] == "run"]
    assert runs
    assert all('--gpus="device=GPU-bb"' in argv for argv in runs)
    assert (tmp_path / "out" / "locks").is_dir()
    assert containers(tmp_path) == []
