"""The facts of this machine: an engine is chosen by them, and a result must cite them."""

import functools
import os
import platform
import shutil
from typing import Any

import psutil

from backends.base import Host
from backends.launch import gpus, task
from backends.prepare.fit import oldest
from backends.prepare.sources import cpu_features

EXECUTABLES = ("docker", "podman", "apptainer", "nvcc", "cc", "mpirun", "text-generation-launcher")


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
    """Return the facts of this machine by which a backend decides whether it can run here."""
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
