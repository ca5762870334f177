"""The engine's memory in the telemetry (`samples`) over the measured time: `duration` s from `begin`.

Memory quantities include readings shortly after that time or, if there are none within or after it, earlier readings,
since an engine keeps its memory. KV-cache use drops when the last request ends, so only readings within the measured
time are used.
"""

import itertools
import math
from collections.abc import Iterable, Sequence

from sweep.base.records import Sample
from sweep.numbers.quantity import quantity

NEARLY_FULL = 0.95  # share of the KV cache
AFTER = 1.0  # s after the last token during which memory has not changed yet
Series = list[tuple[float, float]]  # time (s) and value, in order
KV_CACHE = {"unit": "share", "kind": "memory"}
MEMORY = {"unit": "bytes", "kind": "memory", "better": "lower"}


@quantity(**KV_CACHE, label="KV-cache use mean", short="KV use mean")
def kv_cache_usage_mean(samples: Sequence[Sample], begin: float, duration: float | None) -> float | None:
    """mean over time of the readings during the trial; null if no request was running at any reading."""
    return time_mean(_kv_cache_usage(samples, begin, duration))


@quantity(**KV_CACHE, label="KV-cache use max", short="KV use max")
def kv_cache_usage_max(samples: Sequence[Sample], begin: float, duration: float | None) -> float | None:
    """largest reading during the trial; peaks between readings are missed."""
    return max((value for _, value in _kv_cache_usage(samples, begin, duration)), default=None)


@quantity(**KV_CACHE, label="KV cache nearly full", short="KV > 95%")
def kv_cache_full_share(samples: Sequence[Sample], begin: float, duration: float | None) -> float | None:
    """share of the trial's time with over 95% of the KV cache in use; null if no request ran at any reading."""
    usage = _kv_cache_usage(samples, begin, duration)
    return time_mean([(time, float(value > NEARLY_FULL)) for time, value in usage])


@quantity(**MEMORY, label="Memory idle")
def memory_idle_bytes(idle_memory: float | None) -> float | None:
    """memory before the trial's first request."""
    return idle_memory


@quantity(**MEMORY, label="Memory mean")
def memory_mean_bytes(samples: Sequence[Sample], begin: float, duration: float | None) -> float | None:
    """mean over time of the readings during the trial: of the GPUs or, on a CPU, of the engine's processes."""
    return time_mean(memory_of(_around(samples, begin, duration))[1])


@quantity(**MEMORY, label="Memory peak")
def memory_peak_bytes(samples: Sequence[Sample], begin: float, duration: float | None) -> float | None:
    """largest reading during the trial; peaks between readings are missed."""
    return max((value for _, value in memory_of(_around(samples, begin, duration))[1]), default=None)


@quantity(unit="", kind="memory", type=str)
def memory_label(samples: Sequence[Sample], begin: float, duration: float | None, reserves_memory: bool) -> str:
    """gpu, process (memory of the engine's processes), or reserved (a pool that the engine allocates at launch)."""
    return "reserved" if reserves_memory else memory_of(_around(samples, begin, duration))[0]


def memory_of(samples: Iterable[Sample]) -> tuple[str, Series]:
    """Return the kind of memory reported ("gpu" if a GPU was read, else "process") and its readings, in bytes.

    Readings of several devices with the same timestamp are added up.
    """
    readings: dict[str, dict[float, float]] = {"gpu_memory_bytes": {}, "process_memory_bytes": {}}
    for sample in samples:
        if sample.series in readings:
            by_time = readings[sample.series]
            by_time[sample.time] = by_time.get(sample.time, 0.0) + sample.value
    gpus, processes = (sorted(by_time.items()) for by_time in readings.values())
    return ("gpu", gpus) if gpus else ("process", processes)


def time_mean(readings: Series) -> float | None:
    """Return the mean over time by the trapezoidal rule, since early readings are closer together."""
    if len(readings) < 2:
        return readings[0][1] if readings else None
    steps = itertools.pairwise(readings)
    area = sum((time - before) * (value + earlier) / 2 for (before, earlier), (time, value) in steps)
    return area / (readings[-1][0] - readings[0][0])


def _around(samples: Sequence[Sample], begin: float, duration: float | None) -> list[Sample]:
    end = _end(begin, duration)
    return [sample for sample in samples if begin <= sample.time <= end + AFTER] or list(samples)


def _kv_cache_usage(samples: Sequence[Sample], begin: float, duration: float | None) -> Series:
    """Return the use (0..1) during the trial; empty if no request was running at any reading."""
    during = [sample for sample in samples if begin <= sample.time <= _end(begin, duration)]
    usage = [(sample.time, sample.value) for sample in during if sample.series == "kv_cache_usage"]
    running = any(sample.series == "requests_running" and sample.value > 0 for sample in during)
    return usage if running or any(value for _, value in usage) else []


def _end(begin: float, duration: float | None) -> float:
    return math.inf if duration is None else begin + duration
