"""Builds a file or folder once per node, on first use, in one process at a time: an environment, a model and so on."""

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
    """Return `target`, complete or not at all; `build` makes it under another path, once. Raises task.Stopped."""
    if target.exists():  # for those that come after the builder, without a lock
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
    """Hold a lock between processes, which a killed holder loses. Raises task.Stopped if that comes before it."""
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
