"""The provenance recorded with every result: the commit, library versions and time."""

import contextlib
import functools
import importlib.metadata
import os
import subprocess
from datetime import UTC, datetime

from sweep.base.config import ROOT

CITED = ("ray", "hydra-core", "httptools", "uvloop", "numpy", "pyarrow")  # libraries that could distort a measurement


def now() -> str:
    """Return the current time as ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@functools.cache
def commit() -> str | None:
    """Return the commit of this code, with `+` for uncommitted changes. Without git, return $SWEEP_COMMIT or None."""
    if not (ROOT / ".git").exists():
        return os.environ.get("SWEEP_COMMIT") or None  # set in a container image
    command = ["git", "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty=+"]
    try:
        return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=30).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None  # git is not installed, or there is no commit yet


def program_version() -> str | None:
    """Return the commit and the version of this code. Return None if they do not identify the code: the checkout has
    uncommitted changes, or no commit is known.
    """
    sources = (ROOT / "pyproject.toml").exists()
    changed = changed_files() if (ROOT / ".git").exists() else ""
    if changed != "" or (commit() or "").endswith("+") or (sources and commit() is None):
        return None
    return f"{commit()} {own_versions()['sweep']}"


@functools.cache
def changed_files() -> str | None:
    """Return the changed and untracked files, as `git status` lists them; None if git fails."""
    try:
        answer = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, timeout=30)
    except OSError:
        return None
    return answer.stdout if answer.returncode == 0 else None


@functools.cache
def own_versions() -> dict[str, str]:
    """Return the versions of this tool and of the libraries that take part in measuring."""
    versions = {"sweep": "source"}
    for name in ("sweep", *CITED):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version("llm-sweep" if name == "sweep" else name)
    return versions
