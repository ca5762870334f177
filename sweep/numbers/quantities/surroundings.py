"""Disturbances of the engine by other processes, throttling and heat, from the telemetry (`samples`)."""

import math
from collections.abc import Sequence

from sweep.base.records import Sample
from sweep.numbers.quantities.memory import time_mean
from sweep.numbers.quantities.prompt_cache import increase
from sweep.numbers.quantity import quantity


@quantity(unit="share", kind="validity", better="lower", label="Foreign CPU")
def foreign_cpu_share(samples: Sequence[Sample], begin: float, duration: float | None) -> float | None:
    """mean share of the engine's cores that other processes used; null if the client runs on these cores too, or the
    engine's container runs as another user, whose processes cannot be recognised.
    """
    return _mean(samples, "foreign_cpu_share", begin, duration)


@quantity(unit="processes", kind="validity", type=int, better="lower", label="Foreign GPU processes")
def foreign_gpu_processes(samples: Sequence[Sample], begin: float, duration: float | None) -> int | None:
    """most other processes seen on one of the engine's GPUs in a reading; null if the driver does not show them."""
    readings = _during(samples, "foreign_gpu_processes", begin, duration)
    return max((int(sample.value) for sample in readings), default=None)


@quantity(unit="share", kind="validity", better="lower", label="GPU thermal limit")
def gpu_thermal_share(samples: Sequence[Sample], begin: float, duration: float | None) -> float | None:
    """share of the time in which a GPU's clock was lowered because of its temperature; the maximum of several GPUs."""
    return _mean(samples, "gpu_thermal_limit", begin, duration)


@quantity(unit="share", kind="validity", better="lower", label="GPU power limit")
def gpu_power_share(samples: Sequence[Sample], begin: float, duration: float | None) -> float | None:
    """share of the time in which a GPU's clock was lowered because of its power limit; the maximum of several GPUs."""
    return _mean(samples, "gpu_power_limit", begin, duration)


@quantity(unit="share", kind="validity", better="lower", label="CPU throttled")
def cpu_throttled_share(samples: Sequence[Sample], begin: float) -> float | None:
    """share of the periods in which the container's CPU quota was used up; null if there is no quota."""
    throttled, periods = (increase(samples, begin, f"cpu_{name}_periods") for name in ("throttled", "quota"))
    return throttled / periods if throttled is not None and periods else None


@quantity(unit="", kind="validity", type=int, better="lower", label="CPU thermal limits")
def cpu_thermal_limits(samples: Sequence[Sample], begin: float) -> int | None:
    """number of times that a core of the engine was slowed down because of its temperature; null if not counted."""
    cores = {sample.device for sample in samples if sample.series == "cpu_thermal_limits"}
    counts = [increase(samples, begin, "cpu_thermal_limits", core) for core in cores]
    return int(sum(count for count in counts if count is not None)) if cores else None


def _mean(samples: Sequence[Sample], series: str, begin: float, duration: float | None) -> float | None:
    """Return the mean over time of a series; the largest mean for several devices."""
    readings = _during(samples, series, begin, duration)
    devices = {sample.device for sample in readings}
    means = [time_mean([(each.time, each.value) for each in readings if each.device == device]) for device in devices]
    return max((mean for mean in means if mean is not None), default=None)


def _during(samples: Sequence[Sample], series: str, begin: float, duration: float | None) -> list[Sample]:
    """Return the readings in the measured time and the next one, which covers the time before it; if there are none,
    all readings.
    """
    end = math.inf if duration is None else begin + duration
    readings = [sample for sample in samples if sample.series == series]
    after = min((sample.time for sample in readings if sample.time > end), default=end)
    return [sample for sample in readings if begin < sample.time <= after] or readings
