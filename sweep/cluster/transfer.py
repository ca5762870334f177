"""Transfers files from nodes that do not share the results folder, as part of the stream of events.

Whether a node shares the folder is detected, not configured: before an attempt starts, the driver leaves a mark in its
folder. A node that does not find the mark writes to a local folder and sends the files.
"""

import shutil
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from sweep.disk import run_files
from sweep.disk.run_files import RunPaths
from sweep.node.events import Files, Finished
from sweep.node.work import Work

MARK = ".attempt"


def mark(work: Work) -> None:
    """Leave the mark; the driver calls this before the attempt starts."""
    work.folder.mkdir(parents=True, exist_ok=True)
    (work.folder / MARK).write_text(work.run)


def shared(work: Work) -> bool:
    """Return whether this node sees the driver's results folder."""
    try:
        return (work.folder / MARK).read_text() == work.run
    except OSError:
        return False


def carried(work: Work, stream: Callable[[Work], Generator[Any, None, None]]) -> Generator[Any, None, None]:
    """Yield the events of `stream(work)`, plus the files it writes if the driver does not share the folder.

    A trial's files are sent before its Finished event, and all remaining files at the end.
    """
    if shared(work):
        yield from stream(work)
        return
    with _local_folder(work.cache / "outbox") as out:
        local = replace(work, out=str(out))
        events = stream(local)
        try:
            for event in events:
                if isinstance(event, Finished):
                    yield _take_files(out, local.folder / event.trial.trial_id)
                yield event
        finally:
            events.close()
        yield _take_files(out, local.folder)


@contextmanager
def _local_folder(outbox: Path) -> Iterator[Path]:
    """Create a temporary folder for this attempt, removed afterwards; also remove folders of killed processes."""
    outbox.mkdir(parents=True, exist_ok=True)
    paths = RunPaths(outbox)
    paths.clear_staging()
    folder = paths.staging()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _take_files(out: Path, folder: Path) -> Files:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    files = Files({path.relative_to(out).as_posix(): path.read_bytes() for path in paths})
    for path in paths:
        path.unlink()
    return files


def receive(paths: RunPaths, work: Work, event: Files) -> None:
    """Write a node's files, each atomically. Raises ValueError if a name points outside the attempt's folder."""
    attempt = paths.attempt(work.deployment.deployment_id, work.attempt).resolve()
    for name, content in event.files.items():
        target = (paths.out / name).resolve()
        if not target.is_relative_to(attempt):
            raise ValueError(f"{name}: not in the folder of attempt {work.attempt} of {work.deployment.deployment_id}")
        run_files.write_whole(paths, target, content)
