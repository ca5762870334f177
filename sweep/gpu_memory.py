"""Whether a GPU's memory is free: an engine launched beside what another has left would be measured with less of it."""

import time
from collections.abc import Sequence
from typing import Any

FREE_SHARE, FREE_BYTES = 0.05, 1 << 30  # a driver and a display hold some: up to the larger of the two counts as free


class Busy(Exception):
    """A GPU whose memory does not come back; says whose it is."""


def wait_until_free(gpus: Sequence[str], timeout: float = 120.0, poll: float = 1.0) -> None:
    """Wait until the memory of these GPUs (indices or UUIDs) is free.

    Raises:
        Busy: if it is not after `timeout` s.
    """
    import pynvml

    pynvml.nvmlInit()
    handles = {
        gpu: pynvml.nvmlDeviceGetHandleByIndex(int(gpu)) if gpu.isdigit() else pynvml.nvmlDeviceGetHandleByUUID(gpu)
        for gpu in gpus
    }
    deadline = time.monotonic() + timeout
    while busy := [gpu for gpu, handle in handles.items() if not _is_free(pynvml.nvmlDeviceGetMemoryInfo(handle))]:
        if time.monotonic() >= deadline:
            raise Busy("; ".join(_held(pynvml, gpu, handles[gpu]) for gpu in busy) + f", after {timeout:.0f} s")
        time.sleep(poll)


def _is_free(memory: Any) -> bool:
    return bool(memory.used <= max(FREE_SHARE * memory.total, FREE_BYTES))


def _held(nvml: Any, gpu: str, handle: Any) -> str:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    pids = [str(process.pid) for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle)]
    by = f"processes {', '.join(pids)}" if pids else "a process that NVML does not show"
    return f"GPU {gpu}: {memory.used / 2**30:.1f} of {memory.total / 2**30:.1f} GiB are in use by {by}"
