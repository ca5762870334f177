"""Facts about this machine: they determine which engine builds can run, and are recorded with every result."""

import functools
import os
import platform
import shutil
import sysconfig
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from backends.base import Host
from backends.launch import gpus, task
from backends.prepare.fit import oldest
from backends.prepare.sources import cpu_features
from sweep.base.config import cache_directory

ENGINES = ("ollama", "text-generation-launcher")  # EXECUTABLES that are programs, not headers
EXECUTABLES = ("docker", "podman", "apptainer", "nvcc", "cc", "Python.h", "mpirun", *ENGINES)
COMPILERS = ("cc", "gcc", "clang")  # any of these, or $CC, is accepted as cc


def gpu_names() -> tuple[str, ...]:
    """Return the names, from NVML, of the GPUs that this process may use; empty if there is no driver."""
    return tuple(gpu.name for gpu in gpus.visible())


def hardware() -> dict[str, Any]:
    """Return this node's hardware: processor, cores, memory, GPUs, and its current load."""
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


def _is_here(name: str) -> bool:
    """Return whether a program is on PATH or, for Python.h, whether this Python has its headers."""
    if name == "Python.h":
        return Path(sysconfig.get_path("include"), name).is_file()
    names = (os.environ.get("CC"), *COMPILERS) if name == "cc" else (name,)
    return any(shutil.which(each) for each in names if each)


def free_disk(folder: Path) -> int:
    """Return the free bytes on a folder's disk. The folder need not exist."""
    return shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free


@functools.cache
def _cpu_name() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return names[0] if names else platform.processor()


def host() -> Host:
    """Return the facts of this machine that determine whether a backend can run here."""
    return Host(
        platform=platform.system().lower(),
        gpus=gpu_names(),
        executables=frozenset(filter(_is_here, EXECUTABLES)),
        driver=gpus.driver(),
        capability=oldest(gpu.capability for gpu in gpus.visible()),
        nvcc=task.cuda_release("nvcc") if gpu_names() else None,
        glibc=platform.libc_ver()[1] or None,
        python=".".join(platform.python_version_tuple()[:2]),
        machine=platform.machine(),
        cpu_features=cpu_features(),
    )


def stated(cache_dir: str | None) -> Host:
    """Return this machine's facts as a cluster node reports them, with its free disk or a broken driver's error."""
    try:
        return replace(host(), free_disk=free_disk(cache_directory(cache_dir)))
    except gpus.BrokenDriver as error:
        return Host(broken_driver=str(error))
