"""Builds a file or folder (an environment, a model etc.) once per node, on first use, in one process at a time."""

import fcntl
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from backends.base import Progress
from backends.launch import task
from sweep.base.whole_file import rename_whole


def build_once(
    target: Path, build: Callable[[Path], None], name: str, progress: Progress, lock: Path | None = None
) -> Path:
    """Return `target`, which `build` makes once under another path, so it is never incomplete. Raises task.Stopped."""
    if target.exists():  # later callers need no lock
        return target
    lock = lock or target.with_name(f".{target.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(lock, lambda: progress(f"{name}: waiting for the process that builds it")):
        if not target.exists():
            partial = target.with_name(f".{target.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            build(partial)
            rename_whole(partial, target)
    return target


@contextmanager
def exclusive(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold a lock between processes; a holder that is killed loses it. Raises task.Stopped if stopped while waiting."""
    with path.open("w") as file:
        if not _locked(file):
            on_wait()
            while not _locked(file):
                task.pause(task.STOP_POLL)
        yield


def _locked(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
