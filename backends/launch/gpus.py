"""The GPUs of this node through NVML, by index or UUID; a reading that a GPU or its driver lacks is left out."""

import functools
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import pynvml

from sweep.base.config import ConfigError
from sweep.base.exits import Blame, Exit

LEAST_CONTEXT = 64 * 2**20  # bytes; CUDA's context alone takes more
# Reasons for a lower clock, by NVML's bits.
THERMAL_REASONS = pynvml.nvmlClocksEventReasonSwThermalSlowdown | pynvml.nvmlClocksEventReasonHwThermalSlowdown
POWER_REASONS = pynvml.nvmlClocksEventReasonSwPowerCap | pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown


class BrokenDriver(ConfigError):
    """NVML's error about a driver that is there and does not work."""

    exit = Exit("broken driver", blames=Blame.NODE)


class Memory(NamedTuple):
    """The memory of one GPU, in bytes."""

    used: int  # by any process
    total: int


class Gpu(NamedTuple):
    """A GPU, or a part of one (MIG), as the driver describes it."""

    uuid: str  # "GPU-…" or "MIG-…": what it is handed out by, whoever counts
    number: int  # by PCI bus, as NVML counts; for a part of a GPU, the number of the whole
    name: str  # e.g. "NVIDIA L4"
    capability: str  # compute capability, e.g. "8.9"


@functools.cache
def present() -> tuple[Gpu, ...]:
    """The GPUs of this machine by PCI bus; empty without a driver. Raises BrokenDriver."""
    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded):
        return ()
    except pynvml.NVMLError as error:
        if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
            return ()
        remedy = "reboot, or reload NVIDIA's driver" if "ismatch" in str(error) else "see whether nvidia-smi works"
        raise BrokenDriver(f"NVML: {error}; {remedy}, or set CUDA_VISIBLE_DEVICES= to go on without GPUs") from None
    return tuple(_describe(pynvml.nvmlDeviceGetHandleByIndex(i)) for i in range(pynvml.nvmlDeviceGetCount()))


@functools.cache
def visible() -> tuple[Gpu, ...]:
    """The GPUs that $CUDA_VISIBLE_DEVICES leaves to this process, in its order, up to an entry that names no GPU."""
    setting = os.environ.get("CUDA_VISIBLE_DEVICES")
    if setting is None or not present():
        return present()
    chosen: list[Gpu] = []
    for entry in map(str.strip, setting.split(",")):
        gpu = find_gpu(entry)
        if gpu is None:
            break
        chosen.append(gpu)
    return tuple(chosen)


def driver() -> str | None:
    """The version of NVIDIA's driver; None without a GPU."""
    return str(pynvml.nvmlSystemGetDriverVersion()) if present() else None


def find_gpu(entry: str) -> Gpu | None:
    """Return the GPU of an index, a UUID or the beginning of exactly one UUID, or None."""
    if entry.isdecimal():
        return next((gpu for gpu in present() if gpu.number == int(entry)), None)
    if entry.startswith("MIG-"):
        try:
            return _describe(pynvml.nvmlDeviceGetHandleByUUID(entry))
        except pynvml.NVMLError:
            return None
    matches = [gpu for gpu in present() if entry and gpu.uuid.startswith(entry)]
    return matches[0] if len(matches) == 1 else None


def _describe(handle: Any) -> Gpu:
    physical = handle
    if _supported(lambda: pynvml.nvmlDeviceIsMigDeviceHandle(handle)):
        physical = pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(physical)
    uuid, name = pynvml.nvmlDeviceGetUUID(handle), pynvml.nvmlDeviceGetName(handle)
    return Gpu(str(uuid), int(pynvml.nvmlDeviceGetIndex(physical)), str(name), f"{major}.{minor}")


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


def gpus_show(gpus: Sequence[str], pids: Collection[int], before: int) -> bool:
    """Return whether GPUs show one of these processes, or more memory in use; True where that cannot be read."""
    try:
        devices = list(handles(gpus).values())
    except pynvml.NVMLError_LibraryNotFound:
        return True
    if any(memory(device) is None for device in devices) or used_memory(gpus) >= before + LEAST_CONTEXT:
        return True
    return any(not compute_processes(device).keys().isdisjoint(pids) for device in devices)


def readings(handle: Any) -> Iterator[tuple[str, float]]:
    """Current readings as (telemetry series, value): bytes, share of time busy (0..1), watts, Hz, 1 where limited."""
    if (usage := memory(handle)) is not None:
        yield "gpu_memory_bytes", float(usage.used)
    if (busy := _supported(lambda: pynvml.nvmlDeviceGetUtilizationRates(handle))) is not None:
        yield "gpu_utilization", busy.gpu / 100
    if (milliwatts := _supported(lambda: pynvml.nvmlDeviceGetPowerUsage(handle))) is not None:
        yield "gpu_power_watts", milliwatts / 1000
    if (megahertz := _supported(lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM))) is not None:
        yield "gpu_clock_hz", megahertz * 1e6
    reasons = _supported(lambda: pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle))
    if reasons is None:  # drivers before 535 have them under an older name
        reasons = _supported(lambda: pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))
    if reasons is not None:
        yield "gpu_thermal_limit", float(bool(reasons & THERMAL_REASONS))
        yield "gpu_power_limit", float(bool(reasons & POWER_REASONS))


def compute_processes(handle: Any) -> dict[int, int]:
    """The processes that compute on a GPU, each with the bytes that it uses, 0 where that is unknown."""
    processes = _supported(lambda: pynvml.nvmlDeviceGetComputeRunningProcesses(handle)) or []
    return {int(process.pid): int(process.usedGpuMemory or 0) for process in processes}


def _supported(query: Callable[[], Any]) -> Any:
    try:
        return query()
    except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound):
        return None
