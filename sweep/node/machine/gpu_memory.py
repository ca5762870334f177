"""Waits for free GPU memory: an engine launched before the previous one has freed its memory would get less."""

import time
from collections.abc import Sequence
from typing import Any

import pynvml

from backends.launch import gpus, task
from backends.launch.server import LaunchError
from sweep.base.exits import Cause, Exit
from sweep.base.records import Outcome

FREE_SHARE, FREE_BYTES = 0.05, 1 << 30  # use up to the larger of these is ignored: a driver and a display use some


def wait_until_free(devices: Sequence[str], timeout: float = 120.0, poll: float = 1.0) -> None:
    """Wait until the memory of these GPUs (indices or UUIDs) is free.

    Raises LaunchError, naming the processes that use it, after `timeout` seconds; Stopped if the task is cancelled.
    """
    handles = gpus.handles(devices)
    deadline = time.monotonic() + timeout
    while busy := [
        device
        for device, handle in handles.items()
        if (memory := gpus.memory(handle)) and memory.used > max(FREE_SHARE * memory.total, FREE_BYTES)
    ]:
        if time.monotonic() >= deadline:
            users = "; ".join(_users(device, handles[device]) for device in busy)
            problem = f"{users}, after {timeout:.0f} s"
            raise LaunchError(Outcome.LAUNCH_FAILED, problem, Exit(Cause.GPU_MEMORY))
        task.pause(poll)


def _users(device: str, handle: Any) -> str:
    memory = gpus.memory(handle)
    assert memory is not None  # a GPU that does not report its memory is considered free
    pids = [str(process.pid) for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)]
    by = f"processes {', '.join(pids)}" if pids else "a process that NVML does not show"
    return f"GPU {device}: {memory.used / 2**30:.1f} of {memory.total / 2**30:.1f} GiB are in use by {by}"
