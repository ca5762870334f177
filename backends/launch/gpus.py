"""The GPUs of this node through NVML, named as CUDA_VISIBLE_DEVICES names them: by index or by UUID.

Not every GPU tells everything: one that shares its memory with the CPU has none of its own to tell of, and a virtual
one may hide power and clocks. What it does not tell is left out; every other error of NVML's is raised.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import pynvml


class Memory(NamedTuple):
    """Of one GPU, in bytes."""

    used: int  # by whomever
    total: int


def handles(gpus: Sequence[str]) -> dict[str, Any]:
    """NVML's handle of each; NVML is ready afterwards."""
    pynvml.nvmlInit()
    by_index, by_uuid = pynvml.nvmlDeviceGetHandleByIndex, pynvml.nvmlDeviceGetHandleByUUID
    return {gpu: by_index(int(gpu)) if gpu.isdecimal() else by_uuid(gpu) for gpu in gpus}


def memory(handle: Any) -> Memory | None:
    """None where the GPU shares the CPU's."""
    found = _told(lambda: pynvml.nvmlDeviceGetMemoryInfo(handle))
    return None if found is None else Memory(int(found.used), int(found.total))


def used_memory(gpus: Sequence[str]) -> int:
    """Bytes in use on these GPUs together; 0 without any, or where they are not NVIDIA's."""
    if not gpus:
        return 0
    try:
        found = handles(gpus)
    except pynvml.NVMLError_LibraryNotFound:
        return 0
    return sum(one.used for one in map(memory, found.values()) if one is not None)


def readings(handle: Any) -> Iterator[tuple[str, float]]:
    """Telemetry series and value now: bytes, share of time busy (0..1), watts, Hz."""
    if (held := memory(handle)) is not None:
        yield "gpu_memory_bytes", float(held.used)
    if (busy := _told(lambda: pynvml.nvmlDeviceGetUtilizationRates(handle))) is not None:
        yield "gpu_utilization", busy.gpu / 100
    if (milliwatts := _told(lambda: pynvml.nvmlDeviceGetPowerUsage(handle))) is not None:
        yield "gpu_power_watts", milliwatts / 1000
    if (megahertz := _told(lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM))) is not None:
        yield "gpu_clock_hz", megahertz * 1e6


def _told(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except pynvml.NVMLError_NotSupported:
        return None
