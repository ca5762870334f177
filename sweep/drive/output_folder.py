"""The results folder of a run: its path, a check that it can be written, and earlier results in it."""

import os
import shutil
import socket
import tempfile
import time
from pathlib import Path

from rich.console import Console

from sweep.base.config import ConfigError, Settings, cache_directory
from sweep.base.exits import Outage
from sweep.disk import object_store
from sweep.disk.folder_lock import sole_driver
from sweep.disk.ledger import Ledger
from sweep.disk.run_files import RunPaths

MIN_FREE_BYTES = 1 << 30
INSIDE_A_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray in the driver of a submitted job


def results_folder(settings: Settings) -> Path:
    """Return the local folder for results.

    Raises ConfigError if results cannot be stored there or would be lost; Outage if the object store does not answer.
    """
    if object_store.is_url(settings.out):
        object_store.ObjectStore(settings.out)
        if settings.fresh:
            raise ConfigError(f"fresh=true: not possible with an object store; choose an out other than {settings.out}")
        return object_store.staging_folder(settings.out, cache_directory(settings.cache_dir))
    if INSIDE_A_JOB in os.environ and not Path(settings.out).is_absolute():
        allowed = "an absolute path on a permanent disk, s3://bucket/path or gs://bucket/path"
        raise ConfigError(f"out={settings.out}: a Ray job's folder is deleted with the job; expected {allowed}")
    return Path(settings.out).absolute()


def check_out(out: Path) -> None:
    """Check that results can be written to `out`. Raises ConfigError if not; Outage if the disk is almost full."""
    free = shutil.disk_usage(check_writable("out", out)).free
    if free < MIN_FREE_BYTES:
        needed = f"at least {MIN_FREE_BYTES >> 20} MiB are needed"
        raise Outage(f"out={out}: {free >> 20} MiB free on its disk; {needed}")


def check_writable(key: str, folder: Path) -> Path:
    """Return the nearest existing parent of a folder. Raises ConfigError, naming the key, if it is not writable."""
    try:
        existing = next(path for path in [folder, *folder.parents] if path.exists())
        if str(existing) == os.devnull:  # HOME where a user has none
            raise ConfigError(f"{key}: no home directory is known; expected HOME, XDG_CACHE_HOME or {key}=FOLDER")
        if not existing.is_dir():
            raise ConfigError(f"{key}={folder}: {existing} is not a folder; expected a writable folder")
        probe = existing / f".sweep-probe-{socket.gethostname()}-{time.monotonic_ns()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        problem = f"cannot be written ({error.strerror}); expected a writable folder"
        raise ConfigError(f"{key}={folder}: {problem}") from None
    return existing


def ledger_to_read(settings: Settings, paths: RunPaths) -> Ledger:
    """Return the ledger of earlier runs, read-only; from an object store, only the ledger is copied.

    Raises ConfigError if the store cannot be read; Outage if it does not answer.
    """
    if not object_store.is_url(settings.out):
        return Ledger(paths.ledger, write=False)
    with tempfile.TemporaryDirectory() as folder:
        object_store.copy(settings.out, Path(folder), only=lambda name: False)
        return Ledger(Path(folder) / paths.ledger.name, write=False)


def move_aside(out: Path, console: Console) -> None:
    """Rename the folder of earlier results, for fresh=true."""
    if out.exists() and any(out.iterdir()):
        with sole_driver(out):
            aside = out.with_name(f"{out.name}.{time.strftime('%Y%m%d-%H%M%S')}")
            out.rename(aside)
        console.print(f"old results moved to {aside}", markup=False, soft_wrap=True)
