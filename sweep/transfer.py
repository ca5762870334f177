"""The files of a node that has no part in the results folder: they go to the driver, inside the stream of events.

Whether a node sees the folder is found out, not configured: the driver leaves a mark in the attempt's folder before it
starts the attempt, and a node that does not find it there writes to a folder of its own and sends what it wrote.
"""

import os
import shutil
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path

from sweep import store
from sweep.config import cache_directory
from sweep.deployment import Event, Files, Finished, Work
from sweep.store import RunPaths

MARK = ".attempt"


def mark(work: Work) -> None:
    """The driver's part, before the attempt starts."""
    folder = RunPaths(Path(work.out)).attempt(work.deployment.deployment_id, work.attempt)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).write_text(work.run)


def shared(work: Work) -> bool:
    """Whether this node sees the driver's results folder."""
    folder = RunPaths(Path(work.out)).attempt(work.deployment.deployment_id, work.attempt)
    try:
        return (folder / MARK).read_text() == work.run
    except OSError:
        return False


def carried(work: Work, stream: Callable[[Work], Generator[Event, None, None]]) -> Generator[Event, None, None]:
    """`stream(work)`, with the files that it writes sent along where the driver would not see them.

    A trial's files come before the Finished that speaks of them, all others at the end.
    """
    if shared(work):
        yield from stream(work)
        return
    out = cache_directory(work.settings.cache_dir) / "outbox" / work.marker / str(os.getpid())
    attempt = RunPaths(out).attempt(work.deployment.deployment_id, work.attempt)
    try:
        events = stream(replace(work, out=str(out)))
        try:
            for event in events:
                if isinstance(event, Finished):
                    yield _taken(out, attempt / event.trial.trial_id)
                yield event
        finally:
            events.close()
        yield _taken(out, attempt)
    finally:
        shutil.rmtree(out, ignore_errors=True)


def _taken(out: Path, folder: Path) -> Files:
    """Everything in a folder, which is empty afterwards."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    files = Files({path.relative_to(out).as_posix(): path.read_bytes() for path in paths})
    for path in paths:
        path.unlink()
    return files


def receive(paths: RunPaths, work: Work, event: Files) -> None:
    """Write what a node has sent, each file whole, and nowhere but in its attempt's folder.

    Raises:
        ValueError: if a name leads out of it.
    """
    attempt = paths.attempt(work.deployment.deployment_id, work.attempt).resolve()
    for name, content in event.files.items():
        target = (paths.out / name).resolve()
        if not target.is_relative_to(attempt):
            raise ValueError(f"{name}: not a file of attempt {work.attempt} at {work.deployment.deployment_id}")
        store.write_bytes(paths, target, content)
