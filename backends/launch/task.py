"""Ties programs to the task that starts them: they end with the task. Like engines, they have a supervisor."""

import functools
import os
import re
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backends.launch import supervisor

EXTENSIONS = "torch_extensions"  # folder in an environment for the modules that torch compiles
STOP_POLL = 0.2  # seconds between two checks for cancellation
NOT_INHERITED = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONDONTWRITEBYTECODE", "PYTHONSTARTUP")


class Stopped(Exception):
    """The task was cancelled."""


@dataclass(frozen=True)
class Task:
    """The task that programs belong to, with its stop request."""

    marker: str = "preparation"
    stop: threading.Event = field(default_factory=threading.Event)


_task: ContextVar[Task] = ContextVar("task", default=Task())  # noqa: B039 - shared outside any task


def clean_environment(**settings: str) -> dict[str, str]:
    """Return this process's environment plus `settings`, without variables that would affect another interpreter."""
    return {name: value for name, value in os.environ.items() if name not in NOT_INHERITED} | settings


@functools.cache
def cuda_release(compiler: str) -> str | None:
    """Return an nvcc's CUDA release, e.g. "13.0"; None if the compiler does not run."""
    try:
        report = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=30).stdout
    except OSError:
        return None
    match = re.search(r"release (\d+\.\d+)", report)
    return match[1] if match else None


def _toolkit(compiler: Path) -> Path:
    """Return the user's CUDA toolkit if its release is the environment compiler's, else the environment's toolkit."""
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if home := os.environ.get(variable):
            release = cuda_release(str(Path(home) / "bin" / "nvcc"))
            return Path(home) if release and release == cuda_release(str(compiler)) else compiler.parents[1]
    return compiler.parents[1]


def activated(python: str) -> dict[str, str]:
    """Return the variables of an activated environment, with a CUDA toolkit if the environment has a compiler."""
    if not os.path.isabs(python):
        return {}
    folder = Path(python).parent
    paths, environ = [str(folder)], {}
    if (folder.parent / "pyvenv.cfg").exists():
        environ["VIRTUAL_ENV"] = str(folder.parent)
        if compiler := next(folder.parent.glob("lib/python*/site-packages/nvidia/*/bin/nvcc"), None):
            toolkit = _toolkit(compiler)
            environ["CUDA_HOME"] = str(toolkit)
            paths.append(str(toolkit / "bin"))
    if (extensions := folder.parent / EXTENSIONS).exists():  # modules compiled against this environment's torch
        environ["TORCH_EXTENSIONS_DIR"] = str(extensions)
    return {**environ, "PATH": os.pathsep.join([*paths, os.environ.get("PATH", os.defpath)])}


@contextmanager
def cancel_scope(marker: str, stop: threading.Event) -> Iterator[None]:
    """Within the block, this thread's programs belong to the task with this marker; setting `stop` cancels them."""
    token = _task.set(Task(marker, stop))
    try:
        yield
    finally:
        _task.reset(token)


def pause(seconds: float) -> None:
    """Sleep. Raises Stopped as soon as the task is cancelled."""
    if _task.get().stop.wait(seconds):
        raise Stopped


@contextmanager
def program(command: list[str], environ: Mapping[str, str], **streams: Any) -> Iterator["subprocess.Popen[str]"]:
    """Run a program until the block ends. Its status is 127 if it cannot start. Raises Stopped if cancelled."""
    task = _task.get()
    lease_read, lease = os.pipe()
    marks = {supervisor.MARKER: f"{task.marker}/{uuid.uuid4().hex[:8]}", **supervisor.owner_marks()}
    over = threading.Event()

    def hold() -> None:
        while not task.stop.is_set() and not over.wait(STOP_POLL):
            pass
        os.close(lease)

    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", supervisor.__file__, "hold", str(lease_read), *command],
            env={**environ, **marks},
            pass_fds=(lease_read,),
            start_new_session=True,
            text=True,
            **streams,
        )
    except BaseException:
        os.close(lease)
        raise
    finally:
        os.close(lease_read)
    holder = threading.Thread(target=hold, name="lease", daemon=True)
    holder.start()
    try:
        yield process
        process.wait()
    finally:
        over.set()
        holder.join()
        with process:  # closes its pipes and waits
            pass
    if task.stop.is_set():
        raise Stopped
