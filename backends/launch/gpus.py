"""Reads this node's GPUs through NVML, by index or UUID. A reading that a GPU or its driver lacks is omitted."""

import functools
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import pynvml

from sweep.base.config import ConfigError
from sweep.base.exits import Blame, Exit

LEAST_CONTEXT = 64 * 2**20  # bytes; CUDA's context alone uses more
# NVML's bits for the reasons why a clock is lowered.
THERMAL_REASONS = pynvml.nvmlClocksEventReasonSwThermalSlowdown | pynvml.nvmlClocksEventReasonHwThermalSlowdown
POWER_REASONS = pynvml.nvmlClocksEventReasonSwPowerCap | pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown


class BrokenDriver(ConfigError):
    """NVML reports that a driver is installed but does not work."""

    exit = Exit("broken driver", blames=Blame.NODE)


class Memory(NamedTuple):
    """The memory of one GPU, in bytes."""

    used: int  # used by any process
    total: int


class Gpu(NamedTuple):
    """A GPU or a MIG part of a GPU, as the driver describes it."""

    uuid: str  # "GPU-…" or "MIG-…": identifies it in any numbering
    number: int  # NVML's number, in PCI bus order; a MIG part has its GPU's number
    name: str  # e.g. "NVIDIA L4"
    capability: str  # compute capability, e.g. "8.9"


@functools.cache
def present() -> tuple[Gpu, ...]:
    """Return this machine's GPUs in PCI bus order; empty if there is no driver. Raises BrokenDriver."""
    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded):
        return ()
    except pynvml.NVMLError as error:
        if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
            return ()
        remedy = "reboot, or reload NVIDIA's driver" if "ismatch" in str(error) else "check whether nvidia-smi works"
        raise BrokenDriver(f"NVML: {error}; {remedy}, or set CUDA_VISIBLE_DEVICES= to continue without GPUs") from None
    return tuple(_describe(pynvml.nvmlDeviceGetHandleByIndex(i)) for i in range(pynvml.nvmlDeviceGetCount()))


@functools.cache
def visible() -> tuple[Gpu, ...]:
    """Return the GPUs that CUDA would see by $CUDA_VISIBLE_DEVICES, in its order.

    As in CUDA, an entry that matches no GPU hides all that follow, as does an entry of another form than the first
    (index, GPU or MIG). A GPU that is listed twice hides all.
    """
    setting = os.environ.get("CUDA_VISIBLE_DEVICES")
    if setting is None or not present():
        return present()
    chosen: list[Gpu] = []
    entries = [entry.strip() for entry in setting.split(",")]
    forms = ["index" if entry.isdecimal() else entry[:4] for entry in entries]
    for entry, form in zip(entries, forms, strict=True):
        gpu = find_gpu(entry)
        if gpu is None or form != forms[0]:
            break
        if gpu in chosen:
            return ()
        chosen.append(gpu)
    return tuple(chosen)


def driver() -> str | None:
    """Return the version of NVIDIA's driver; None if there is no GPU."""
    return str(pynvml.nvmlSystemGetDriverVersion()) if present() else None


def find_gpu(entry: str) -> Gpu | None:
    """Return the GPU with this index, UUID or unique beginning of a UUID, or None."""
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
    """Initialise NVML and return its handle for each GPU; an empty dict without NVML (the GPUs are not NVIDIA's)."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError_LibraryNotFound:
        return {}
    by_index, by_uuid = pynvml.nvmlDeviceGetHandleByIndex, pynvml.nvmlDeviceGetHandleByUUID
    return {gpu: by_index(int(gpu)) if gpu.isdecimal() else by_uuid(gpu) for gpu in gpus}


def memory(handle: Any) -> Memory | None:
    """Return the GPU's memory; None if the GPU shares the CPU's memory."""
    info = _supported(lambda: pynvml.nvmlDeviceGetMemoryInfo(handle))
    return None if info is None else Memory(int(info.used), int(info.total))


def used_memory(gpus: Sequence[str]) -> int:
    """Return the total bytes in use on these GPUs; 0 for an empty list, or without NVML (the GPUs are not NVIDIA's)."""
    devices = handles(gpus).values() if gpus else ()
    return sum(reading.used for reading in map(memory, devices) if reading is not None)


def gpus_show(gpus: Sequence[str], pids: Collection[int], before: int) -> bool:
    """Return whether GPUs show one of these processes, or more memory in use than before; True if unknown."""
    devices = list(handles(gpus).values())
    if not devices or any(memory(device) is None for device in devices) or used_memory(gpus) >= before + LEAST_CONTEXT:
        return True
    return any(not compute_processes(device).keys().isdisjoint(pids) for device in devices)


def readings(handle: Any) -> Iterator[tuple[str, float]]:
    """Yield current readings as (telemetry series, value): bytes, busy share (0 to 1), watts, Hz, 1 if limited."""
    if (usage := memory(handle)) is not None:
        yield "gpu_memory_bytes", float(usage.used)
    if (busy := _supported(lambda: pynvml.nvmlDeviceGetUtilizationRates(handle))) is not None:
        yield "gpu_utilization", busy.gpu / 100
    if (milliwatts := _supported(lambda: pynvml.nvmlDeviceGetPowerUsage(handle))) is not None:
        yield "gpu_power_watts", milliwatts / 1000
    if (megahertz := _supported(lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM))) is not None:
        yield "gpu_clock_hz", megahertz * 1e6
    reasons = _supported(lambda: pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle))
    if reasons is None:  # drivers before 535 use an older name
        reasons = _supported(lambda: pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))
    if reasons is not None:
        yield "gpu_thermal_limit", float(bool(reasons & THERMAL_REASONS))
        yield "gpu_power_limit", float(bool(reasons & POWER_REASONS))


def compute_processes(handle: Any) -> dict[int, int]:
    """Return the bytes that each process computing on a GPU uses; 0 if unknown."""
    processes = _supported(lambda: pynvml.nvmlDeviceGetComputeRunningProcesses(handle)) or []
    return {int(process.pid): int(process.usedGpuMemory or 0) for process in processes}


def _supported(query: Callable[[], Any]) -> Any:
    try:
        return query()
    except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound):
        return None
