"""The provenance of a number: the code, versions, hardware and time that a result must cite."""

import contextlib
import functools
import importlib.metadata
import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from typing import Any

import psutil

from backends.base import Host
from backends.launch import gpus, task
from backends.prepare.fit import oldest
from backends.prepare.sources import cpu_features
from sweep.base.config import ROOT

CITED = ("ray", "hydra-core", "httptools", "uvloop", "numpy", "pyarrow")  # libraries that could distort a measurement
EXECUTABLES = ("docker", "podman", "apptainer", "nvcc", "cc", "mpirun", "text-generation-launcher")


def now() -> str:
    """The present as ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@functools.cache
def commit() -> str | None:
    """The commit of this code, with `+` when files differ from it; outside a git checkout SWEEP_COMMIT, or None."""
    if not (ROOT / ".git").exists():
        return os.environ.get("SWEEP_COMMIT") or None  # of an image
    command = ["git", "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty=+"]
    try:
        return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=30).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None  # no git here, or no commit yet


def program_version() -> str | None:
    """The commit and the version of this code; None if they do not tell what it does: in a checkout with a file that
    was changed or added, or among sources without one.
    """
    sources = (ROOT / "pyproject.toml").exists()
    changed = changed_files() if (ROOT / ".git").exists() else ""
    if changed != "" or (commit() or "").endswith("+") or (sources and commit() is None):
        return None
    return f"{commit()} {own_versions()['sweep']}"


@functools.cache
def changed_files() -> str | None:
    """The files that differ from the commit or are not in it, as git lists them; None if it cannot."""
    try:
        answer = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, timeout=30)
    except OSError:
        return None
    return answer.stdout if answer.returncode == 0 else None


@functools.cache
def own_versions() -> dict[str, str]:
    """Versions of this tool and of the libraries that take part in measuring."""
    versions = {"sweep": "source"}
    for name in ("sweep", *CITED):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version("llm-sweep" if name == "sweep" else name)
    return versions


def gpu_names() -> tuple[str, ...]:
    """The GPUs that this process may use, as NVML names them; empty without a driver."""
    return tuple(gpu.name for gpu in gpus.visible())


def hardware() -> dict[str, Any]:
    """This node: processor, cores, memory, GPUs, and how busy it was just now."""
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": list(gpu_names()),
        "capability": oldest(gpu.capability for gpu in gpus.visible()),
        "glibc": platform.libc_ver()[1] or None,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "kernel": platform.release(),
        "load_average": round(os.getloadavg()[0], 2),
    }


@functools.cache
def _cpu_name() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return names[0] if names else platform.processor()


def host() -> Host:
    """Return what a backend needs to know of this machine to decide whether it can run here."""
    return Host(
        platform=platform.system().lower(),
        gpus=gpu_names(),
        executables=frozenset(name for name in EXECUTABLES if shutil.which(name)),
        driver=gpus.driver(),
        capability=oldest(gpu.capability for gpu in gpus.visible()),
        nvcc=task.cuda_release("nvcc") if gpu_names() else None,
        glibc=platform.libc_ver()[1] or None,
        python=".".join(platform.python_version_tuple()[:2]),
        machine=platform.machine(),
        cpu_features=cpu_features(),
    )
