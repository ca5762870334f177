"""The files of a trial that the report links to: only existing ones, at their present place."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from sweep.disk.run_files import DamagedFile, RunPaths
from sweep.disk.tables import compact_place


class FileLink(NamedTuple):
    """A file beside the report."""

    title: str
    path: str  # from the folder in which the report lies
    compact: bool = False  # it has the rows of other trials too


def file_links(paths: RunPaths, deployment_id: str, attempt: str, trial_id: str) -> Iterator[FileLink]:
    """The existing files of a trial: the engine's log, the requests and the telemetry."""
    log, trial = paths.engine_log(deployment_id, attempt), paths.trial(deployment_id, attempt, trial_id)
    if log.is_file():  # an engine that others launched has none here
        yield FileLink("engine log", log.relative_to(paths.out).as_posix())
    for title, file in (("requests", trial.requests), ("telemetry", trial.telemetry)):
        if file.is_file():
            yield FileLink(title, file.relative_to(paths.out).as_posix())
        elif name := _compact_name(paths, file):
            yield FileLink(name, (paths.compact / name).relative_to(paths.out).as_posix(), compact=True)


def relative_path(target: Path, folder: Path) -> str:
    """The path from a folder, by real locations: a browser resolves `..` by name, even for a symbolic link."""
    return Path(os.path.relpath(target.resolve(), folder.resolve())).as_posix()


def _compact_name(paths: RunPaths, file: Path) -> str:
    """The name of the compact file with a trial's table; empty without a readable one."""
    with suppress(DamagedFile):
        place = compact_place(file) if paths.compact.is_dir() else None
        return place.path.name if place else ""
    return ""
