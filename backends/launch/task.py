"""What runs here on behalf of one task, and ends with it.

A task names what it starts by its marker and may be told to stop. Programs that make something for it (environments,
conversions, a reference) hang on a supervisor, as engines do: nothing of them is left when they end, when the task is
told to stop, or when its process dies, however that dies.
"""

import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from backends.launch import supervisor

POLL = 0.2  # s between two looks at whether the task is to stop


class Stopped(Exception):
    """Nobody wants any more what the task is doing."""


@dataclass(frozen=True)
class Task:
    """Whose programs these are."""

    marker: str = "preparation"
    stop: threading.Event = field(default_factory=threading.Event)


_task: ContextVar[Task] = ContextVar("task", default=Task())  # noqa: B039 - shared by all that belongs to no task


@contextmanager
def doing(marker: str, stop: threading.Event) -> Iterator[None]:
    """What this thread does in the block belongs to the task of this name, and is given up when `stop` is set."""
    token = _task.set(Task(marker, stop))
    try:
        yield
    finally:
        _task.reset(token)


def pause(seconds: float) -> None:
    """Sleep; raises Stopped as soon as the task is to stop."""
    if _task.get().stop.wait(seconds):
        raise Stopped


@contextmanager
def program(command: list[str], environ: Mapping[str, str], **streams: Any) -> Iterator["subprocess.Popen[str]"]:
    """A program for as long as the block takes, with text `streams` as for Popen; it has ended when the block has.

    A command that cannot be started says so on its stderr and ends with status 127. Raises Stopped if the task is.
    """
    task = _task.get()
    lease_read, lease = os.pipe()
    marks = {
        supervisor.MARKER: f"{task.marker}/{uuid.uuid4().hex[:8]}",
        supervisor.OWNER: supervisor.this_process(),
    }
    over = threading.Event()

    def hold() -> None:
        while not task.stop.is_set() and not over.wait(POLL):
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
