"""Runs an engine within a `with` block: starts it, waits until it is ready, watches it, and always ends it.

A supervisor (see `supervisor`) owns the engine's processes and kills them when this process closes its lease or dies.
If both are killed, `clear_leftovers` finds the processes by their marks before the next launch.
"""

import contextlib
import json
import math
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import psutil

from backends.base import AMPERE, Backend, Launch
from backends.launch import container_options, supervisor, task
from backends.launch.control_client import ControlClient
from backends.launch.engine_environment import ENGINE_ENVIRON, engine_environment, telling_variables
from backends.launch.gpus import find_gpu, gpus_show, used_memory
from backends.prepare.fit import older
from backends.tables.log_causes import cause_table
from sweep.base.exits import Blame, Cause, Exit
from sweep.base.masking import masked, secret_values
from sweep.base.records import API_VERSION, HTTP2_ONLY, Outcome, Proxy, proxy_of, tls_context, tls_remedy

LOG = "engine.log"
READY_POLL = 0.05  # seconds between two checks of a starting engine
PORT_ATTEMPTS = 4
CHILD_DIED = re.compile(r"died unexpectedly|is dead\b|EOFError")  # a parent's words, if its log has no better ones
KILLED_STATUSES = (-9, 137)  # exit status of an engine that SIGKILL ended, directly or (in a container) through a shell
GPU_MEMORY_WITHIN = 60.0  # seconds within which the driver must release an ended engine's GPU memory
GPU_MEMORY_SLACK = 256 * 2**20  # bytes that may stay in use, since another process's use of the GPU may have grown
TAIL_BYTES = 2**18
LOG_PART = 2**20  # bytes at a log's beginning, and at its end, that are searched for an engine's choices
LINE_PART = 1000  # characters at a log line's beginning, and at its end, that are kept of a longer one
LOG_LINES = 3000  # lines at a log's end that are searched for the cause of a failure
PROBE_EVERY, PROBE_TIMEOUT = 1.0, 5.0  # seconds between two probes of an endpoint, and seconds allowed for a connection
PROBES, PROBE_PAUSE = 3, 0.2  # refused connections in a row that show an endpoint is down, and seconds between them
GATEWAY_ERRORS = (502, 503, 504)  # statuses of a proxy whose server is gone, or of a server that is starting
PORT_TAKEN = re.compile(r"address already in use|EADDRINUSE|couldn't bind|port \d+ is (already )?in use", re.IGNORECASE)
REACHABLE_BY_ALL = "every process in its network namespace, at 127.0.0.1, without a key"
REACHABLE_BY_OURS = "this sweep: its network namespace has no interface but loopback"


class LaunchError(Exception):
    """An engine failed to become ready."""

    def __init__(self, outcome: Outcome, reason: str, exit: Exit, log_tail: str = "") -> None:
        super().__init__(reason)
        self.exit = exit
        self.outcome = outcome  # launch_failed, launch_timeout or oom_load
        self.reason = reason  # one line, with the engine's error message
        self.log_tail = log_tail


class Engine:
    """A running engine with its URL, processes and log. `running` creates it."""

    served_from = 0  # position in the log at which the engine became ready
    proxy: Proxy | None = None  # the proxy between sweep and an endpoint
    headers: Mapping[str, str] = MappingProxyType({})  # that a request to `url` needs

    def __init__(self, backend: Backend, launch: Launch, marker: str, versions: Mapping[str, str]) -> None:
        self.backend = backend
        self.launch = launch
        self.marker = marker
        self.url = f"http://{launch.host}:{launch.port}"
        self.log = launch.workdir / LOG
        self.startup_seconds = 0.0
        self.pid = 0
        self.exit_status: int | None = None  # negative: the signal that killed it; None: still running, or unknown
        self._versions = versions
        self._stopped = False
        self._gone = False
        self._lock = threading.Lock()
        self._buffer = b""
        self._secrets: set[str] = set()
        self.variables: dict[str, str] = {}  # empty for an attached endpoint, whose variables are unknown
        self._log_begin = self.log_position()
        self._start()

    def _start(self) -> None:
        self.command = self.backend.command(self.launch)
        environ = engine_environment(self.backend, self.launch, self.marker)
        self.variables = telling_variables(environ)
        if self.launch.image:
            # With the marker, processes in the container count as the engine's, also when leftovers are searched for.
            marks = {name: environ[name] for name in supervisor.MARKS}
            variables = {**ENGINE_ENVIRON, **self.launch.environ, **self.backend.environment(self.launch), **marks}
            self.command = container_options.wrap(self.command, self.launch, variables)
            if "HF_TOKEN" in os.environ:  # which the wrapper passes on as a file
                environ["HF_TOKEN"] = os.environ["HF_TOKEN"]
        self._secrets = secret_values(environ) | secret_values(os.environ)
        self._gpu_memory = used_memory(self.launch.gpus)
        self._lease, self._status = self._supervise(environ)

    def alive(self) -> bool:
        """Return whether the engine's main process runs. This costs one pipe read and works from any thread."""
        with self._lock:
            self._listen()
            return not self._gone and self.exit_status is None

    def log_position(self) -> int:
        """Bytes logged so far, to pass as `since` to `log_tail` and `ran_out_of_memory`."""
        return self.log.stat().st_size + self._log_shift() if self.log.exists() else 0

    def log_left_out(self) -> int:
        """Bytes that were removed from the middle of the log, whose size is limited."""
        return supervisor.bytes_left_out(str(self.log))

    def _log_shift(self) -> int:
        missing = self.log_left_out()
        return missing - supervisor.NOTE_SIZE if missing else 0

    def log_tail(self, lines: int = 40, since: int = 0) -> str:
        """Return the last lines that this launch logged after position `since`, with secrets masked."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            oldest = self._log_begin if self._log_begin <= supervisor.LOG_HEAD else self._log_begin - self._log_shift()
            begin = max(oldest, since - self._log_shift(), end - TAIL_BYTES)
            file.seek(begin)
            text = file.read().decode(errors="replace")
        tail = [_cut(line) for line in masked(text, self._secrets).splitlines()[-lines:]]
        cut = [f"sweep: {missing} bytes of this log are omitted"] if (missing := self.log_left_out()) and tail else []
        return "\n".join(cut + tail)

    def ran_out_of_memory(self, since: int = 0) -> bool:
        """Return whether this launch logged an out-of-memory error after position `since`, even if it survived."""
        return self.backend.log.ran_out_of_memory(self.log_tail(1000, since))

    def exit_reason(self) -> str:
        """Return one line about how the engine ended, with its error message."""
        return self.named(self._ending())

    def named(self, reason: str) -> str:
        """Return a reason, preceded by the replica's name if there are replicas."""
        return f"{self.launch.replica}: {reason}" if self.launch.replica else reason

    def _ending(self) -> str:
        message = self.words()
        if self.exit_status is None:
            ending = "its supervisor was killed"
        elif self.exit_status < 0:
            ending = f"killed by signal {-self.exit_status}"
        else:
            ending = f"exit status {self.exit_status}"
        reason = f"{message} ({ending})" if message else ending
        cause = self.backend.log.known_cause(message) or cause_table().find(ending)
        if cause is None or (self.exit_status == -signal.SIGKILL and cause.whose != Blame.ITSELF.value):
            return reason
        return f"{reason}; {cause.remedy}"

    def words(self) -> str:
        """Return the engine's error message from its log."""
        log = self.log_tail(LOG_LINES, self.served_from) or self.log_tail(LOG_LINES)
        return self.backend.log.failure_line(log)[:500]

    def exit(self) -> Exit:
        """Return how the engine exited."""
        logged, status = self.backend.log.exit_told_by(self.words()), self.exit_status
        if status is None:
            return replace(logged, cause=Cause.SUPERVISOR)
        if status in (128 + signal.SIGKILL, 128 + signal.SIGTERM):  # as a shell reports it, e.g. in a container
            status = 128 - status
        return replace(logged, signal=-status) if status < 0 else replace(logged, status=status)

    def processes(self) -> list[psutil.Process]:
        """Return the engine's living processes, including reparented processes but not its supervisor."""
        processes, mine = [], self.marker
        for pid in supervisor.marked(lambda env: env[supervisor.MARKER] == mine and supervisor.SUPERVISOR not in env):
            with contextlib.suppress(psutil.NoSuchProcess):
                processes.append(psutil.Process(pid))
        return processes

    def shows_on_gpus(self) -> bool:
        """Return whether the engine appears on its GPUs; True if it has no GPU or computes nothing."""
        if not self.launch.gpus or not self.backend.traits.computes_model:
            return True
        return gpus_show(self.launch.gpus, {process.pid for process in self.processes()}, self._gpu_memory)

    def processes_known(self) -> bool:
        """Return whether `processes` finds every process; False if a container runs as another user."""
        if not self.launch.image:
            return True
        own_pids = {process.pid for process in self.processes()}
        return any(
            connection.pid in own_pids
            for connection in psutil.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
            if connection.laddr and connection.laddr.port == self.launch.port
        )

    def facts(self) -> dict[str, Any]:
        """Return the facts recorded with results: engine version, command, flags, dtype, startup time etc."""
        info = self._get(self.backend.wire.version_path)
        stated = self.backend.stated(self._get, self.launch.served_name)
        named = self._versions.get(self.backend.traits.distribution or "")
        # Only a separate network namespace keeps other processes from an engine's routes.
        reachable_by = REACHABLE_BY_OURS if [name for _, name in socket.if_nameindex()] == ["lo"] else REACHABLE_BY_ALL
        return {
            "engine_version": info.get("version") or named,
            "command": self.command,
            "flags": self.backend.flags_on(self.launch),
            "environ": self.variables,
            "dtype": self._dtype(),
            "coarser_format": self.backend.coarser(self.launch),
            "versions": dict(self._versions),
            "startup_seconds": self.startup_seconds,
            "chosen": self._chosen(info),
            "prefix_block": self._prefix_block(),
            "log": str(self.log),
            "reachable_by": reachable_by if self.backend.launches else None,
            "max_model_len": stated.pop("max_model_len", None) or self.launch.max_model_len,
            **self.backend.facts(self.launch),
            **stated,
        }

    def release(self) -> None:
        """Begin to stop the engine and all its processes: SIGTERM, then SIGKILL after `stop_grace`."""
        with self._lock:
            if self._lease is not None:
                os.close(self._lease)
            self._lease = None

    def stop(self) -> None:
        """Release the engine and wait until all its processes have ended. A second call does nothing."""
        self.release()
        with self._lock:
            if self._stopped:
                return
            self._stopped = True
            deadline = time.monotonic() + self.backend.stop_grace + supervisor.GONE_WITHIN + 5
            while not self._gone and time.monotonic() < deadline:
                self._listen(seconds=0.5)
            os.close(self._status)
            self._gone = True
        # This matters only if the supervisor was killed.
        supervisor.kill_all(lambda: supervisor.of_attempt(self.marker))
        self._wait_for_gpu_memory()

    def _wait_for_gpu_memory(self) -> None:
        deadline = time.monotonic() + GPU_MEMORY_WITHIN
        while (used := used_memory(self.launch.gpus)) > self._gpu_memory + GPU_MEMORY_SLACK:
            if time.monotonic() > deadline:
                with self.log.open("a") as log:
                    log.write(
                        f"sweep: the GPUs still hold {used - self._gpu_memory} bytes more than before the launch\n"
                    )
                return
            time.sleep(0.1)

    def _supervise(self, environ: dict[str, str]) -> tuple[int | None, int]:
        """Start the supervisor, which starts the engine. Return the lease's write end and the status's read end."""
        lease_read, lease_write = os.pipe()
        status_read, status_write = os.pipe()
        spec = {
            "argv": self.command,
            "env": environ,
            "cwd": str(self.launch.workdir),
            "log": str(self.log),
            "cpus": list(self.launch.cpus),
            "grace": self.backend.stop_grace,
            "marks": {name: environ[name] for name in supervisor.MARKS},
        }
        try:
            subprocess.run(
                # -I -S: without the user's settings and site-packages.
                [sys.executable, "-I", "-S", supervisor.__file__, "guard", str(lease_read), str(status_write)],
                input=json.dumps(spec).encode(),
                pass_fds=(lease_read, status_write),
                env={},  # searches for markers find the supervisor, but not its guardian
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
        """Read the supervisor's status messages. End of file means that the supervisor has ended or was killed."""
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

    def _log_text(self) -> str:
        if not self.log.exists():
            return ""
        with self.log.open("rb") as file:
            file.seek(min(self._log_begin, supervisor.LOG_HEAD))
            head = file.read(LOG_PART)
            file.seek(max(file.tell(), file.seek(0, os.SEEK_END) - LOG_PART))
            return (head + file.read(LOG_PART)).decode(errors="replace")

    def _chosen(self, info: Mapping[str, Any]) -> dict[str, str]:
        text, patterns = self._log_text(), self.backend.log.choices.items()
        logged = {name: match[1] for name, pattern in patterns if (match := re.search(pattern, text))}
        settled = {name: info.get(name.replace("-", "_")) for name in self.backend.flag_rules.settled}
        return logged | {name.replace("-", "_"): str(value) for name, value in settled.items() if value is not None}

    def _prefix_block(self) -> int | None:
        pattern, path = self.backend.wire.prefix_block, self.backend.metrics_path
        match = re.search(pattern, self._page(path) or "") if pattern and path else None
        return int(match[1]) if match else None

    def _dtype(self) -> str | None:
        if self.launch.dtype != "auto":
            return self.launch.dtype
        if not self.backend.launches:
            return None
        if self.backend.log.dtype:
            match = re.search(self.backend.log.dtype, self._log_text())
            return match[1] if match else None
        try:
            config = json.loads((self.launch.model / "config.json").read_text())
        except (OSError, ValueError):
            return None
        stored = config.get("dtype") or config.get("torch_dtype")
        if stored == "bfloat16" and self.backend.traits.before_ampere == "float16":
            gpus = filter(None, map(find_gpu, self.launch.gpus))
            stored = "float16" if any(older(gpu.capability, AMPERE) for gpu in gpus) else stored
        return str(stored) if stored else None

    def _http(self) -> httpx.Client:
        proxy = self.proxy.url if self.proxy else None
        return ControlClient(verify=tls_context(self.backend.verify_tls), proxy=proxy)

    def _get(self, path: str) -> dict[str, Any]:
        with contextlib.suppress(ValueError, RecursionError):
            content = json.loads(self._page(path) or "{}")
            return content if isinstance(content, dict) else {}
        return {}

    def _page(self, path: str) -> str | None:
        try:
            with self._http() as client:
                answer = client.get(self.url + path, headers=self.backend.key_headers(), timeout=10)
            return answer.text if answer.status_code == 200 else None
        except (httpx.HTTPError, ValueError):
            return None


class AttachedEngine(Engine):
    """An endpoint run by someone else. sweep does not launch, watch or stop it, and sees no log or process."""

    def __init__(self, backend: Backend, launch: Launch) -> None:
        super().__init__(backend, launch, marker="", versions={})
        parts = urlsplit(str(backend.url))
        self.url = f"{parts.scheme}://{parts.netloc}{API_VERSION.sub('', parts.path.rstrip('/'))}"
        self.proxy = proxy_of(self.url, backend.proxy)
        self._accepts, self._is_probing = True, False
        self._last_probe = -math.inf  # monotonic time of its end

    def _start(self) -> None:
        self.command = []

    def facts(self) -> dict[str, Any]:
        return super().facts() | {"proxy": str(self.proxy or "none")}  # docs/endpoints.md states the rule

    def alive(self) -> bool:
        """Return whether the endpoint accepts connections, according to a probe in a separate thread.

        This call never waits for the endpoint, which may drop packets. The endpoint is probed at most once a second.
        """
        with self._lock:
            due = not self._is_probing and time.monotonic() - self._last_probe >= PROBE_EVERY
            self._is_probing |= due
        if due:
            threading.Thread(target=self._probe, daemon=True, name="probe").start()
        return self._accepts

    def _probe(self) -> None:
        """Find whether the endpoint accepts connections: one refusal may be an accident, several in a row are not."""
        parts = urlsplit(self.url)
        address = (parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
        address, accepts = self.proxy.address if self.proxy else address, False
        try:
            for probe in range(PROBES):
                time.sleep(PROBE_PAUSE if probe else 0)
                with contextlib.suppress(OSError):
                    socket.create_connection(address, timeout=PROBE_TIMEOUT).close()
                    accepts = True
                    break
        finally:
            with self._lock:
                self._accepts, self._is_probing, self._last_probe = accepts, False, time.monotonic()

    def outage(self) -> str | None:
        """Return why the endpoint does not serve, even if a proxy accepts connections; None if it serves."""
        self._probe()
        if not self._accepts:
            return "accepts no connections"
        try:
            with self._http() as client:
                status = client.get(f"{self.url}/v1/models", timeout=10).status_code
        except (httpx.ReadError, httpx.WriteError, httpx.CloseError, httpx.RemoteProtocolError) as error:
            # An answer in HTTP/2 is not an outage: the requests will fail with a message about it.
            return None if HTTP2_ONLY in tls_remedy(error) else "closes connections without an answer"
        except httpx.ProxyError as error:
            return f"its proxy answers {error}" if str(error).startswith(tuple(map(str, GATEWAY_ERRORS))) else None
        except httpx.HTTPError:  # e.g. a bad certificate or a timeout, on which requests will fail too
            return None
        return f"answers with status {status}" if status in GATEWAY_ERRORS else None

    def exit_reason(self) -> str:
        return f"{self.url} accepts no connections: it refused {PROBES} in a row"

    def exit(self) -> Exit:
        return Exit(Cause.UNREACHABLE)

    def processes(self) -> list[psutil.Process]:
        return []

    def shows_on_gpus(self) -> bool:
        return True

    def stop(self) -> None:
        """Do nothing, since sweep did not start the endpoint."""


@contextmanager
def running(
    backend: Backend, launch: Launch, *, marker: str, versions: Mapping[str, str] | None = None
) -> Iterator[Engine]:
    """Launch an engine, yield it once it is ready, and stop all its processes afterwards. Raises LaunchError."""
    with running_together(backend, [launch], marker=marker, versions=versions) as (engine,):
        yield engine


@contextmanager
def running_together(
    backend: Backend, launches: Sequence[Launch], *, marker: str, versions: Mapping[str, str] | None = None
) -> Iterator[tuple[Engine, ...]]:
    """Launch several engines of one backend together, as `running` does. If one fails, all are stopped."""
    for launch in launches:
        launch.workdir.mkdir(parents=True, exist_ok=True)
    if not backend.launches:
        yield (_attached(backend, launches[0]),)
        return
    clear_leftovers()
    fixed = backend.port or launches[0].port
    if fixed and (problem := port_problem(fixed, launches[0].host)):
        raise LaunchError(Outcome.LAUNCH_FAILED, problem, Exit(Cause.PORT))
    starts: list[_Start] = []
    try:
        for launch in launches:
            launch_marker = f"{marker}/{launch.workdir.name}" if len(launches) > 1 else marker
            starts.append(_Start(backend, launch, launch_marker, versions or {}))
        with ControlClient(timeout=2.0) as client:
            while any([not start.ready(client) for start in starts]):  # noqa: C419 - ask every one: any may have died
                task.pause(READY_POLL)
        yield tuple(start.engine for start in starts)
    finally:
        for start in starts:
            start.engine.release()
        for start in starts:
            start.engine.stop()


def _attached(backend: Backend, launch: Launch) -> AttachedEngine:
    try:
        endpoint = AttachedEngine(backend, launch)
    except ValueError as error:  # this node's variables may differ from the planning machine's
        reason = f"backend.proxy=environment: {error}"
        raise LaunchError(Outcome.LAUNCH_FAILED, reason, Exit(Cause.CONTRADICTION)) from None
    if problem := endpoint.outage():
        raise LaunchError(Outcome.LAUNCH_FAILED, f"backend.url={backend.url}: {problem}", endpoint.exit())
    return endpoint


class _Start:
    """Starts an engine; tries another port if another process takes its port first."""

    def __init__(self, backend: Backend, launch: Launch, marker: str, versions: Mapping[str, str]) -> None:
        self._fixed = backend.port or launch.port
        self._attempts = 1 if self._fixed else PORT_ATTEMPTS
        self._backend, self._launch, self._marker, self._versions = backend, launch, marker, versions
        self._begin_launch()

    def _begin_launch(self) -> None:
        self._attempts -= 1
        launch = replace(self._launch, port=self._fixed or free_port(self._launch.host))
        self.engine = Engine(self._backend, launch, self._marker, self._versions)
        self.begin, self.oom_kills = time.monotonic(), _oom_kills()
        self.is_ready = False

    def ready(self, client: httpx.Client) -> bool:
        """Return whether the engine answers. Raises LaunchError, also if a ready engine has died."""
        engine = self.engine
        if not engine.alive():
            if self._attempts and PORT_TAKEN.search(engine.log_tail(1000)):
                self._launch_again()
                return False
            raise self._failure()
        if not self.is_ready and _answers(engine, client) and engine.alive():
            if self._attempts and _port_is_foreign(engine):
                self._launch_again()
                return False
            if engine.launch.gpus and (unused := engine.backend.gpus_unused(engine.log_tail(LOG_LINES))):
                raise self._failure(unused)
            engine.startup_seconds = time.monotonic() - self.begin
            engine.served_from = engine.log_position()
            self.is_ready = True
        if not self.is_ready and time.monotonic() - self.begin >= engine.backend.launch_timeout:
            raise self._timeout()
        return self.is_ready

    def _launch_again(self) -> None:
        self.engine.stop()
        self._begin_launch()

    def _failure(self, unused: str | None = None) -> LaunchError:
        """Return the error of an engine that ended or, according to the log line `unused`, serves without its GPUs."""
        engine = self.engine
        if unused:
            reason = "; ".join(filter(None, [f"serves without its GPUs: {unused}", cause_table().find_remedy(unused)]))
            exit = engine.backend.log.exit_told_by(unused)
            return LaunchError(Outcome.LAUNCH_FAILED, engine.named(reason), exit, engine.log_tail())
        ended = engine.exit_status in KILLED_STATUSES or CHILD_DIED.search(engine.words())
        killed = bool(ended) and _oom_kills() > self.oom_kills
        memory = killed or engine.ran_out_of_memory()
        outcome = Outcome.OOM_LOAD if memory else Outcome.LAUNCH_FAILED
        reason = engine.exit_reason()
        if killed:
            reason += f"; {cause_table().find_remedy('killed by SIGKILL')}"
        taken = not memory and PORT_TAKEN.search(engine.log_tail(LOG_LINES))
        exit = replace(engine.exit(), cause=Cause.PORT) if taken else engine.exit()
        return LaunchError(outcome, reason, exit, engine.log_tail())

    def _timeout(self) -> LaunchError:
        engine = self.engine
        message = engine.words()
        reason = f"not ready after {engine.backend.launch_timeout:g} s; last log message: {message}"
        if cause := engine.backend.log.known_cause(message):
            reason += f"; {cause.remedy}"
        exit = replace(engine.backend.log.exit_told_by(message), cause=Cause.NOT_READY)
        return LaunchError(Outcome.LAUNCH_TIMEOUT, engine.named(reason), exit, engine.log_tail())


def _cut(line: str) -> str:
    """Return a line without the middle of a very long one: the time of some patterns grows with the square of it."""
    return line if len(line) <= 2 * LINE_PART else f"{line[:LINE_PART]} … {line[-LINE_PART:]}"


def _answers(engine: Engine, client: httpx.Client) -> bool:
    try:
        path = engine.backend.wire.ready_path.format(model=quote(engine.launch.served_name))
        return client.get(engine.url + path).status_code == 200
    except httpx.HTTPError:
        return False


def clear_leftovers(stale: Callable[[str], bool] = lambda marker: False) -> list[int]:
    """Kill engines whose owner is dead or whose marker is `stale`. Return their pids."""

    def orphaned(environ: dict[str, str]) -> bool:
        return supervisor.living_owner(environ) == 0 or stale(environ[supervisor.MARKER])

    pids = supervisor.marked(orphaned)
    supervisor.kill_all(lambda: supervisor.marked(orphaned))
    return pids


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port that is free now. If a process takes it before the engine listens, `running` tries another port."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def port_problem(port: int, host: str = "127.0.0.1") -> str | None:
    """Return one line about why an engine cannot use this port, or None if it can."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is considered free
        try:
            probe.bind((host, port))
        except OSError as error:
            return f"backend.port={port}: {os.strerror(error.errno or 0)}; expected a free port, or null for any"
    return None


def _port_is_foreign(engine: Engine) -> bool:
    """Return whether the engine's port belongs to another attempt's process, or to a process older than the engine."""
    for connection in psutil.net_connections("tcp"):
        listens = connection.pid and connection.status == psutil.CONN_LISTEN
        if listens and connection.laddr and connection.laddr.port == engine.launch.port:
            marker = supervisor.process_environment(connection.pid or 0).get(supervisor.MARKER)
            if marker == engine.marker:
                return False
            try:
                begin = psutil.Process(engine.pid).create_time()
                if marker or psutil.Process(connection.pid).create_time() < begin:
                    return True
            except psutil.NoSuchProcess:  # the engine has ended (as it does if it cannot bind), or the listener has
                return True
    return False


def _oom_kills() -> int:
    match = re.search(r"^oom_kill (\d+)$", Path("/proc/vmstat").read_text(), re.MULTILINE)
    return int(match[1]) if match else 0
