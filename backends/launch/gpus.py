"""The GPUs of this node through NVML, named as CUDA_VISIBLE_DEVICES names them: by index or by UUID.

Readings that a GPU does not support are left out (a virtual one may hide power); every other NVML error is raised.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import pynvml


class Memory(NamedTuple):
    """The memory of one GPU, in bytes."""

    used: int  # by any process
    total: int


def handles(gpus: Sequence[str]) -> dict[str, Any]:
    """NVML's handle of each GPU; initialises NVML."""
    pynvml.nvmlInit()
    by_index, by_uuid = pynvml.nvmlDeviceGetHandleByIndex, pynvml.nvmlDeviceGetHandleByUUID
    return {gpu: by_index(int(gpu)) if gpu.isdecimal() else by_uuid(gpu) for gpu in gpus}


def memory(handle: Any) -> Memory | None:
    """The GPU's memory; None if it shares the CPU's."""
    info = _supported(lambda: pynvml.nvmlDeviceGetMemoryInfo(handle))
    return None if info is None else Memory(int(info.used), int(info.total))


def used_memory(gpus: Sequence[str]) -> int:
    """Total bytes in use on these GPUs; 0 if the list is empty or NVML is not installed (not NVIDIA's)."""
    if not gpus:
        return 0
    try:
        devices = handles(gpus)
    except pynvml.NVMLError_LibraryNotFound:
        return 0
    return sum(reading.used for reading in map(memory, devices.values()) if reading is not None)


def readings(handle: Any) -> Iterator[tuple[str, float]]:
    """Current readings as (telemetry series, value): bytes, share of time busy (0..1), watts, Hz."""
    if (usage := memory(handle)) is not None:
        yield "gpu_memory_bytes", float(usage.used)
    if (busy := _supported(lambda: pynvml.nvmlDeviceGetUtilizationRates(handle))) is not None:
        yield "gpu_utilization", busy.gpu / 100
    if (milliwatts := _supported(lambda: pynvml.nvmlDeviceGetPowerUsage(handle))) is not None:
        yield "gpu_power_watts", milliwatts / 1000
    if (megahertz := _supported(lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM))) is not None:
        yield "gpu_clock_hz", megahertz * 1e6


def _supported(query: Callable[[], Any]) -> Any:
    try:
        return query()
    except pynvml.NVMLError_NotSupported:
        return None
