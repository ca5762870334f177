"""The files of a node that has no part in the results folder: they go to the driver, inside the stream of events.

Whether a node sees the folder is found out, not configured: the driver leaves a mark in the attempt's folder before it
starts the attempt, and a node that does not find it there writes to a folder of its own and sends what it wrote.
"""

import fcntl
import shutil
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from sweep.config import cache_directory
from sweep.disk import run_files
from sweep.disk.run_files import RunPaths
from sweep.node.deployment import Event, Files, Finished, Work

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
    with _own_folder(cache_directory(work.settings.cache_dir) / "outbox") as out:
        attempt = RunPaths(out).attempt(work.deployment.deployment_id, work.attempt)
        events = stream(replace(work, out=str(out)))
        try:
            for event in events:
                if isinstance(event, Finished):
                    yield _taken(out, attempt / event.trial.trial_id)
                yield event
        finally:
            events.close()
        yield _taken(out, attempt)


@contextmanager
def _own_folder(outbox: Path) -> Iterator[Path]:
    """A folder in which nobody else writes, gone afterwards; one whose owner was killed goes with the next.

    Each has a lock beside it, which the kernel takes back from a process that is killed.
    """
    outbox.mkdir(parents=True, exist_ok=True)
    for left in outbox.glob("*.lock"):
        with suppress(FileNotFoundError, PermissionError), left.open("r+") as lock:  # another may be clearing up too
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # its owner lives
            shutil.rmtree(left.with_suffix(""), ignore_errors=True)
            left.unlink(missing_ok=True)
    folder = outbox / uuid.uuid4().hex
    own = folder.with_suffix(".lock")
    with own.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            own.unlink(missing_ok=True)


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
        run_files.write_whole(paths, target, content)
