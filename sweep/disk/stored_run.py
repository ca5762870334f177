"""Finds the run that a user specifies; files in an object store are copied for reading."""

import re
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from sweep.base.config import run_folder
from sweep.disk import object_store

RUN_TABLES = ("trials.parquet", "plan.jsonl")


class LocalCopy:
    """Files of a run in an object store, copied to a temporary folder that is removed with this object."""

    def __init__(self, url: str, kinds: Sequence[str] = ()) -> None:
        """Copy the tables of all trials, and the files of these kinds: `requests`, `telemetry`, `locks`.

        Raises ConfigError if the store cannot be read; Outage if it does not answer.
        """
        self.url = url
        parent = tempfile.mkdtemp(prefix="sweep-run-")
        self.folder = Path(parent) / object_store.url_name(url)
        weakref.finalize(self, shutil.rmtree, parent, ignore_errors=True)
        object_store.copy(url, self.folder, lambda name: _is_needed(PurePosixPath(name), kinds))


def _is_needed(name: PurePosixPath, kinds: Sequence[str]) -> bool:
    of_trials = name.suffix == ".parquet" and re.fullmatch(r"(\w+?)(-\w+)?", name.stem)  # compact: NAME-DIGEST
    return name.name in RUN_TABLES or name.parts[0] in kinds or bool(of_trials and of_trials[1] in kinds)


def run_place(run: str) -> str | Path:
    """Return the run's folder, or its URL. Raises ConfigError like `run_folder`."""
    run = run.partition("#")[0].removeprefix("file://") if run.startswith("file://") else run  # copied from a browser
    return run if object_store.is_url(run) else run_folder(run)
