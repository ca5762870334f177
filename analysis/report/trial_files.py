"""Finds the files of a trial to link from the report: only existing files, at their current path."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from sweep.disk.run_files import DamagedFile, RunPaths
from sweep.disk.tables import compact_place


class FileLink(NamedTuple):
    title: str
    path: str  # relative to the report's folder
    compact: bool = False  # whether the file also holds rows of other trials


def file_links(paths: RunPaths, deployment_id: str, attempt: str, trial_id: str) -> Iterator[FileLink]:
    """Return a trial's existing files: the engine's log, the requests and the telemetry."""
    log, trial = paths.engine_log(deployment_id, attempt), paths.trial(deployment_id, attempt, trial_id)
    if log.is_file():  # an endpoint has no log on this machine
        yield FileLink("engine log", log.relative_to(paths.out).as_posix())
    for title, file in (("requests", trial.requests), ("telemetry", trial.telemetry)):
        if file.is_file():
            yield FileLink(title, file.relative_to(paths.out).as_posix())
        elif name := _compact_name(paths, file):
            yield FileLink(name, (paths.compact / name).relative_to(paths.out).as_posix(), compact=True)


def relative_path(target: Path, folder: Path) -> str:
    """Return the path from a folder, with links resolved, since a browser resolves `..` by name, even after a link."""
    return Path(os.path.relpath(target.resolve(), folder.resolve())).as_posix()


def _compact_name(paths: RunPaths, file: Path) -> str:
    """Return the name of the compact file with a trial's table; empty if no such file can be read."""
    with suppress(DamagedFile):
        place = compact_place(file) if paths.compact.is_dir() else None
        return place.path.name if place else ""
    return ""
