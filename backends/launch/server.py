"""The lifetime of an engine as a `with` block: started, ready, watched, and gone afterwards however it ends.

    with running(backend, launch, marker="run/deployment/attempt") as engine:
        ...                                             # engine.url answers; engine.alive() says whether it still runs

The engine's processes hang on a supervisor (see `supervisor`), which kills them when this process closes its lease or
dies. Should the supervisor itself be killed together with this process, `clear_leftovers` finds what remains by the
marker in its environment: `running` calls it before each launch.
"""

import contextlib
import json
import math
import os
import re
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil

from backends.base import SECRET_NAME, Backend, Launch
from backends.launch import supervisor, task
from backends.launch.gpus import used_memory
from sweep.records import Outcome

LOG = "engine.log"
POLL = 0.05  # s between two looks at an engine that is starting
PORT_ATTEMPTS = 4
GPU_MEMORY_WITHIN = 60.0  # s that a GPU has to give back an ended engine's memory
GPU_MEMORY_SLACK = 256 * 2**20  # bytes that may stay in use: another process on that GPU may have grown a little
TAIL_BYTES = 65536
PORT_TAKEN = re.compile(r"address already in use|EADDRINUSE|couldn't bind|port \d+ is (already )?in use", re.IGNORECASE)
NOT_INHERITED = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONDONTWRITEBYTECODE", "PYTHONSTARTUP")
# For every engine: its models are local folders, so nothing is asked of the hub; nobody phones home; and its process
# titles must not overwrite the memory that /proc/PID/environ shows, by which strays are found.
ALWAYS = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1", "SPT_NOENV": "1"}


class LaunchError(Exception):
    """An engine did not become ready."""

    def __init__(self, outcome: Outcome, reason: str, log_tail: str = "") -> None:
        super().__init__(f"{outcome}: {reason}")
        self.outcome = outcome  # launch_failed, launch_timeout or oom_load
        self.reason = reason  # one line, with the engine's own last words
        self.log_tail = log_tail


class Engine:
    """A running engine: its URL, its processes, its log. Made by `running`."""

    def __init__(self, backend: Backend, launch: Launch, marker: str, versions: Mapping[str, str]) -> None:
        self.backend = backend
        self.launch = launch
        self.marker = marker
        self.url = f"http://{launch.host}:{launch.port}"
        self.log = launch.workdir / LOG
        self.command = backend.command(launch)
        self.startup_seconds = 0.0
        self.pid = 0
        self.exit_status: int | None = None  # negative: the signal that killed it; None while it runs, or if unknown
        self._versions = versions
        self._gone = False
        self._lock = threading.Lock()
        self._buffer = b""
        environ = _environ(backend, launch, marker)
        self._secrets = _secrets(environ) | _secrets(os.environ)
        self._log_begin = self.log_position()
        self._gpu_memory = used_memory(launch.gpus)
        self._lease, self._status = self._supervise(environ)

    def alive(self) -> bool:
        """Whether the engine's main process runs. Costs one read of a pipe; callable from any thread."""
        with self._lock:
            self._listen()
            return not self._gone and self.exit_status is None

    def log_position(self) -> int:
        """How many bytes the log has now: what comes later is told by `ran_out_of_memory(since)`."""
        return self.log.stat().st_size if self.log.exists() else 0

    def log_tail(self, lines: int = 40, since: int = 0) -> str:
        """The last lines that this launch has logged (after position `since`), without the secrets it was given."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as file:
            file.seek(max(self._log_begin, since, self.log_position() - TAIL_BYTES))
            text = file.read().decode(errors="replace")
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return "\n".join(text.splitlines()[-lines:])

    def ran_out_of_memory(self, since: int = 0) -> bool:
        """Whether the log of this launch says so, after position `since`: an engine may survive it."""
        return self.backend.ran_out_of_memory(self.log_tail(1000, since))

    def obituary(self) -> str:
        """How the engine ended, in one line, with its own last words. For an engine that is not alive."""
        words = self.backend.last_words(self.log_tail(1000))
        if self.exit_status is None:
            ending = "its supervisor was killed"
        elif self.exit_status < 0:
            ending = f"killed by signal {-self.exit_status}"
        else:
            ending = f"exit status {self.exit_status}"
        return f"{words[:500]} ({ending})" if words else ending

    def processes(self) -> list[psutil.Process]:
        """Every living process of the engine, whatever its parent is by now; not its supervisor."""
        found = []
        for pid in supervisor.marked(self._is_mine):
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(pid))
        return found

    def facts(self) -> dict[str, Any]:
        """What a result must cite: engine_version, command, flags, dtype, versions, startup_seconds, max_model_len."""
        reported = self._get(self.backend.version_path).get("version")
        models = self._get("/v1/models").get("data") or [{}]
        named = self._versions.get(self.backend.distribution or "")
        return {
            "engine_version": reported or named,
            "command": self.command,
            "flags": self.backend.flags_on(self.launch),
            "dtype": self._dtype(),
            "max_model_len": models[0].get("max_model_len") or self.launch.max_model_len,
            "versions": dict(self._versions),
            "startup_seconds": self.startup_seconds,
            "log": str(self.log),
            **self.backend.facts(self.launch),
        }

    def stop(self) -> None:
        """End the engine and all its processes: SIGTERM, `stop_grace`, SIGKILL. Does nothing the second time."""
        with self._lock:
            if self._lease is None:
                return
            os.close(self._lease)
            self._lease = None
            deadline = time.monotonic() + self.backend.stop_grace + supervisor.GONE_WITHIN + 5
            while not self._gone and time.monotonic() < deadline:
                self._listen(seconds=0.5)
            os.close(self._status)
            self._gone = True
        # Nothing is left to do here unless the supervisor was killed.
        supervisor.kill_all(lambda: supervisor.marked(lambda environ: environ[supervisor.MARKER] == self.marker))
        self._wait_for_gpu_memory()

    def _wait_for_gpu_memory(self) -> None:
        """Until the GPUs have back what they had before: the driver frees it some time after the last process ended."""
        deadline = time.monotonic() + GPU_MEMORY_WITHIN
        while (used := used_memory(self.launch.gpus)) > self._gpu_memory + GPU_MEMORY_SLACK:
            if time.monotonic() > deadline:
                with self.log.open("a") as log:
                    log.write(
                        f"sweep: the GPUs still hold {used - self._gpu_memory} bytes more than before the launch\n"
                    )
                return
            time.sleep(0.1)

    def _is_mine(self, environ: Mapping[str, str]) -> bool:
        return environ[supervisor.MARKER] == self.marker and supervisor.SUPERVISOR not in environ

    def _supervise(self, environ: dict[str, str]) -> tuple[int | None, int]:
        """Start the supervisor, which starts the engine. The lease's write end and the status' read end."""
        lease_read, lease_write = os.pipe()
        status_read, status_write = os.pipe()
        spec = {
            "argv": self.command,
            "env": environ,
            "cwd": str(self.launch.workdir),
            "log": str(self.log),
            "cpus": list(self.launch.cpus),
            "grace": self.backend.stop_grace,
        }
        marks = {name: environ[name] for name in (supervisor.MARKER, supervisor.OWNER)} | {supervisor.SUPERVISOR: "1"}
        try:
            subprocess.run(
                # -I -S: neither the user's settings nor site-packages are wanted there.
                [sys.executable, "-I", "-S", supervisor.__file__, str(lease_read), str(status_write)],
                input=json.dumps(spec).encode(),
                pass_fds=(lease_read, status_write),
                env=marks,
                check=True,
            )
        except BaseException:
            os.close(lease_write)
            os.close(status_read)
            raise
        finally:
            os.close(lease_read)
            os.close(status_write)
        os.set_blocking(status_read, False)
        return lease_write, status_read

    def _listen(self, seconds: float = 0.0) -> None:
        """Read what the supervisor says. Its end of file without a word means that it was killed."""
        if self._gone:
            return
        if seconds:
            select.select([self._status], [], [], seconds)
        try:
            data = os.read(self._status, 65536)
        except BlockingIOError:
            return
        if not data:
            self._gone = True
            return
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            self.pid = message.get("pid", self.pid)
            self.exit_status = message.get("exit", self.exit_status)

    def _dtype(self) -> str | None:
        """What it computes in; None for an engine that is not ours and was told nothing."""
        if self.launch.dtype != "auto":
            return self.launch.dtype
        if not self.backend.launches:
            return None
        if self.backend.dtype_pattern:
            said = re.search(self.backend.dtype_pattern, self.log.read_text(errors="replace"))
            return said[1] if said else None
        try:
            config = json.loads((self.launch.model / "config.json").read_text())
        except (OSError, ValueError):
            return None
        stored = config.get("dtype") or config.get("torch_dtype")
        return str(stored) if stored else None

    def _get(self, path: str) -> dict[str, Any]:
        """A JSON object that the engine serves; empty where it serves none there."""
        key = os.environ.get(self.backend.api_key_env or "")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            with httpx.Client(verify=self.backend.verify_tls, trust_env=not self.backend.launches) as client:
                answer = client.get(self.url + path, headers=headers, timeout=10)
            found = answer.json() if answer.status_code == 200 else {}
        except (httpx.HTTPError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


class Endpoint(Engine):
    """An engine that somebody else runs: nothing is launched, watched or ended; there is no log and no process."""

    def __init__(self, backend: Backend, launch: Launch) -> None:
        assert backend.url is not None, "a backend that does not launch says where its endpoint is"
        self.backend = backend
        self.launch = launch
        self.marker = ""
        self.url = backend.url.rstrip("/").removesuffix("/v1")
        self.log = launch.workdir / LOG
        self.command = []
        self.startup_seconds = 0.0
        self.pid = 0
        self.exit_status = None
        self._versions: Mapping[str, str] = {}
        self._secrets: set[str] = set()
        self._log_begin = 0
        self._seen = -math.inf  # when it last was there

    def alive(self) -> bool:
        """Whether somebody accepts connections there. Asked once a second at most: it is not our machine."""
        parts = urlsplit(self.url)
        address = (parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
        if time.monotonic() - self._seen < 1.0:
            return True
        try:
            socket.create_connection(address, timeout=5.0).close()
        except OSError:
            return False
        self._seen = time.monotonic()
        return True

    def obituary(self) -> str:
        return f"{self.url} accepts no connections"

    def processes(self) -> list[psutil.Process]:
        return []

    def stop(self) -> None:
        """It is not ours to stop."""


@contextmanager
def running(
    backend: Backend,
    launch: Launch,
    *,
    marker: str,
    versions: Mapping[str, str] | None = None,
) -> Iterator[Engine]:
    """Launch an engine, yield it when it is ready, and leave nothing of it behind.

    `marker` names the attempt, e.g. "<run>/<deployment>/<attempt>"; `versions` are those of its environment.
    Raises LaunchError. An engine that dies later raises nothing: ask `engine.alive()`.
    """
    launch.workdir.mkdir(parents=True, exist_ok=True)
    if not backend.launches:
        endpoint = Endpoint(backend, launch)
        if not endpoint.alive():
            raise LaunchError(Outcome.LAUNCH_FAILED, f"backend.url={backend.url}: accepts no connections")
        yield endpoint
        return
    clear_leftovers()
    fixed = backend.port or launch.port
    if fixed and (problem := port_problem(fixed, launch.host)):
        raise LaunchError(Outcome.LAUNCH_FAILED, problem)
    for attempt in range(1, PORT_ATTEMPTS + 1):
        engine = Engine(backend, replace(launch, port=fixed or free_port(launch.host)), marker, versions or {})
        try:
            if _ready(engine, retry=not fixed and attempt < PORT_ATTEMPTS):
                yield engine
                return
        finally:
            engine.stop()


def _ready(engine: Engine, retry: bool) -> bool:
    """Wait until the engine answers. False: somebody else took its port meanwhile, and `retry` allows another.

    Raises LaunchError, or task.Stopped.
    """
    begin, oom_kills = time.monotonic(), _oom_kills()
    ready_url = engine.url + engine.backend.ready_path
    with httpx.Client(timeout=2.0, trust_env=False) as client:
        while time.monotonic() - begin < engine.backend.launch_timeout:
            if not engine.alive():
                tail = engine.log_tail(1000)
                if retry and PORT_TAKEN.search(tail):
                    return False
                killed = engine.exit_status == -9 and _oom_kills() > oom_kills
                memory = killed or engine.backend.ran_out_of_memory(tail)
                outcome = Outcome.OOM_LOAD if memory else Outcome.LAUNCH_FAILED
                raise LaunchError(outcome, engine.obituary(), engine.log_tail())
            try:
                answers = client.get(ready_url).status_code == 200
            except httpx.TransportError:
                answers = False
            if answers and engine.alive():
                if _foreign(engine) and retry:
                    return False
                engine.startup_seconds = time.monotonic() - begin
                return True
            task.pause(POLL)
    words = engine.backend.last_words(engine.log_tail(1000))
    reason = f"not ready after {engine.backend.launch_timeout:g} s; its last words: {words[:500]}"
    raise LaunchError(Outcome.LAUNCH_TIMEOUT, reason, engine.log_tail())


def clear_leftovers(stale: Callable[[str], bool] = lambda marker: False) -> list[int]:
    """Kill engines on this node whose owner is dead, and those whose marker `stale` says yes to. Their pids.

    An owner is the process that called `running`, known by pid and start time. The driver of a run that goes on after
    a kill -9 passes a `stale` that knows the markers of its predecessor, whose tasks may still be alive.
    """

    def left(environ: Mapping[str, str]) -> bool:
        pid, _, started = environ.get(supervisor.OWNER, "").partition(":")
        owned = pid.isdecimal() and supervisor.start_time(int(pid)) == started
        return not owned or stale(environ[supervisor.MARKER])

    found = supervisor.marked(left)
    supervisor.kill_all(lambda: supervisor.marked(left))
    return found


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on now. Somebody may before the engine does: `running` then takes another."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def port_problem(port: int, host: str = "127.0.0.1") -> str | None:
    """Why an engine cannot be given this port, in one line; None if it can."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one in TIME_WAIT is free
        try:
            probe.bind((host, port))
        except OSError as error:
            return f"backend.port={port}: {os.strerror(error.errno or 0)}; allowed: a free port, or null for any"
    return None


def _foreign(engine: Engine) -> bool:
    """Whether the one who listens on the engine's port is some other attempt's or was there before it."""
    try:
        begin = psutil.Process(engine.pid).create_time()
    except psutil.NoSuchProcess:
        return False  # it has ended: the next look at it says so
    listening = [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.pid]
    for connection in listening:
        if connection.laddr and connection.laddr.port == engine.launch.port:
            marker = supervisor.environment_of(connection.pid or 0).get(supervisor.MARKER)
            if marker == engine.marker:
                return False
            with contextlib.suppress(psutil.NoSuchProcess):
                if marker or psutil.Process(connection.pid).create_time() < begin:
                    return True
    return False


def inherited_environment() -> dict[str, str]:
    """This process's environment without secrets and without what bends another interpreter."""
    return {
        name: value for name, value in os.environ.items() if name not in NOT_INHERITED and not SECRET_NAME.search(name)
    }


def _environ(backend: Backend, launch: Launch, marker: str) -> dict[str, str]:
    """The environment of an engine: what it may inherit, and its own."""
    return {
        **inherited_environment(),
        "PYTHONUNBUFFERED": "1",
        **ALWAYS,
        "CUDA_VISIBLE_DEVICES": ",".join(launch.gpus),
        **backend.environment(launch),
        supervisor.MARKER: marker,
        supervisor.OWNER: supervisor.this_process(),
    }


def _secrets(environ: Mapping[str, str]) -> set[str]:
    return {value for name, value in environ.items() if SECRET_NAME.search(name) and len(value) >= 8}


def _oom_kills() -> int:
    """How many processes the kernel has killed for memory since boot."""
    for line in Path("/proc/vmstat").read_text().splitlines():
        name, _, count = line.partition(" ")
        if name == "oom_kill":
            return int(count)
    return 0
