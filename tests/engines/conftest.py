"""Real engines for tests: every backend of conf/backend that runs on this machine, in its own environment."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from backends.base import AMPERE, Backend, EnvironmentSpec, Host, Launch, Platform
from backends.launch import host_facts, server, supervisor
from backends.launch.gpus import visible
from backends.prepare import environments as prepared
from backends.prepare import fit, locks
from backends.prepare.fit import older
from backends.prepare.sources import cpu_features
from sweep.base.config import CONF, ROOT, build, cache_directory
from sweep.base.options import load_option
from sweep.base.records import Outcome
from tests.engines import circuit

CONTEXT = 512  # tokens that engines are told to make room for
CACHE = cache_directory(os.environ.get("SWEEP_TEST_CACHE"))
PLATFORM: Platform = "cuda" if os.environ.get("SWEEP_TEST_ON") == "cuda" else "cpu"  # set by scripts/gpu-check
HOST = host_facts.host() if PLATFORM == "cuda" else Host(cpu_features=cpu_features())
GPUS = tuple(gpu.uuid for gpu in visible()[:1]) if PLATFORM == "cuda" else ()
DTYPE = "float16" if older(HOST.capability, AMPERE) else "bfloat16"


def own_core() -> int:
    """The core of this process's engines: each of the processes that share the tests has one."""
    cores = sorted(os.sched_getaffinity(0))
    return cores[int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % len(cores)]


def configured(group: str, name: str) -> Any:
    return build(load_option(group, name), group)


def here() -> list[str]:
    """Names of the backends that this machine can launch on this platform and that serve the model they are given."""
    names = []
    for path in sorted((CONF / "backend").glob("*.yaml")):
        backend = configured("backend", path.stem)
        has_environment = getattr(backend.env, PLATFORM) or backend.env.python or backend.env.binary
        real = backend.launches and backend.traits.computes_model and has_environment
        if real and not backend.unavailable(HOST) and (PLATFORM == "cpu" or runs_here(backend)):
            names.append(path.stem)
    return names


def runs_here(backend: Backend) -> bool:
    """Return whether the GPUs, the driver and the programs of this machine are enough for its environment."""
    spec = locks.with_lock(environment_of(backend), *locks.committed(), locks.remembered(CACHE))
    return not fit.problem(spec, HOST) and not locks.needed(spec)


def environment_of(backend: Backend) -> EnvironmentSpec:
    return prepared.resolve(backend.env, PLATFORM, host=HOST)


@pytest.fixture(scope="session")
def model() -> Path:
    """Random weights whose text can be compared: see `circuit`."""
    return circuit.prepared(configured("model", "tiny-llama"), CACHE)


@pytest.fixture(scope="session")
def environments() -> Any:
    def environment(backend: Backend) -> prepared.Environment:
        return prepared.prepare(locks.locked(environment_of(backend), CACHE, print), CACHE, print)

    return environment


@pytest.fixture
def launch_for(model, environments, tmp_path) -> Any:
    """launch_for(backend) -> Launch for this test, on one core as engines are tested (facts: spinning threads)."""

    def launch(backend: Backend) -> Launch:
        return make_launch(backend, model, environments(backend), tmp_path / "attempt")

    return launch


def make_launch(backend: Backend, model: Path, environment: prepared.Environment, workdir: Path) -> Launch:
    """The launch of an engine, in a container where its environment is an image: conversions are made outside."""
    spec = environment_of(backend)
    return Launch(
        model=backend.weights(model, sys.executable if environment.image else environment.python, CACHE, print),
        served_name="tiny",
        workdir=workdir,
        python=environment.python,
        binary=environment.binary,
        image=environment.image,
        runtime=environment.runtime,
        cache=CACHE / "containers" / spec.name,
        image_cache=spec.cache,
        shm_size=spec.shm_size,
        cpus=() if GPUS else (own_core(),),
        gpus=GPUS,
        dtype=DTYPE,
        max_model_len=CONTEXT,
    )


@pytest.fixture(scope="module", params=here())
def backend(request) -> Backend:
    return configured("backend", request.param)


@pytest.fixture(scope="module")
def engine(backend, model, environments, tmp_path_factory) -> Iterator[server.Engine]:
    """One engine for all tests of a module. The first port it is given is taken by somebody else meanwhile."""
    environment = environments(backend)
    launch = make_launch(backend, model, environment, tmp_path_factory.mktemp(backend.name))
    with socket.socket() as other, pytest.MonkeyPatch.context() as patch:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        ports = iter([taken])
        free = server.free_port
        patch.setattr(server, "free_port", lambda host: next(ports, None) or free(host))
        with server.running(backend, launch, marker=f"test/{os.getpid()}/{backend.name}") as running:
            assert running.launch.port != taken
            yield running


def printed_by_library(source: str, python: str) -> Any:
    """The last line, as JSON, of a program that an engine's interpreter runs, given the folder of a small model."""
    command = [python, "-c", source, str(configured("model", "tiny-llama").prepare(CACHE, print))]
    ended = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, timeout=300
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    return json.loads(ended.stdout.splitlines()[-1])


@dataclass
class Completion:
    """What came back for one prompt of a call."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    events: int = 0
    usage: dict[str, int] = field(default_factory=dict)  # as of its last chunk
    finish_reason: str | None = None


def stream(engine: server.Engine, prompt: Any, max_tokens: int, **more: Any) -> tuple[list[Completion], dict[str, int]]:
    """Ask an engine as the measuring client does: its completions in order, and the usage of the whole call."""
    body = {
        "model": engine.launch.served_name,
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": engine.backend.continuous_usage},
        "ignore_eos": True,
        "return_token_ids": True,
        **engine.backend.extra_body,
        **more,
    }
    many = isinstance(prompt, list) and not isinstance(prompt[0], int)
    found = [Completion() for _ in range(len(prompt) if many else 1)]
    total: dict[str, int] = {}
    with httpx.stream("POST", f"{engine.url}/v1/completions", json=body, timeout=120, trust_env=False) as answer:
        assert answer.status_code == 200, answer.read()
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    for chunk in map(json.loads, lines[:-1]):
        assert "error" not in chunk, chunk
        for choice in chunk["choices"]:
            completion = found[choice["index"]]
            completion.text += choice["text"]
            completion.events += 1
            completion.token_ids += choice.get("token_ids") or []
            completion.usage = chunk.get("usage") or completion.usage
            completion.finish_reason = choice["finish_reason"] or completion.finish_reason
        if not chunk["choices"] or not many:  # a call's usage comes alone, or with the last words of its only prompt
            total = chunk.get("usage") or total
    return found, total


def assert_oom_load(backend: Backend, launch_for: Any) -> str:
    """Launch a backend that asks for too much memory: it ends as `oom_load`, and nothing is left. Return its reason."""
    marker = f"test/{os.getpid()}/oom"
    with pytest.raises(server.LaunchError) as caught, server.running(backend, launch_for(backend), marker=marker):
        pytest.fail("it must not become ready")
    assert caught.value.outcome is Outcome.OOM_LOAD, caught.value.log_tail
    assert left_behind(marker) == []
    return caught.value.reason


def left_behind(marker: str) -> list[int]:
    left = supervisor.marked(lambda environ: environ[supervisor.MARKER] == marker)
    supervisor.send(left, signal.SIGKILL)
    return left
