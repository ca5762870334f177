"""The limits that a machine puts on its CPU: a container's quota, and thermal throttling."""

import contextlib
from collections.abc import Collection, Iterator
from pathlib import Path

CGROUPS, CORES = Path("/sys/fs/cgroup"), Path("/sys/devices/system/cpu")


class CpuLimits:
    """A telemetry source that counts periods throttled by the CPU quota, and thermal throttling events."""

    def __init__(self, cores: Collection[int]) -> None:
        self.name = "cpu limits"
        self.cores = cores
        self.quota = _own_cgroup() / "cpu.stat"

    def read(self) -> Iterator[tuple[str, str, float]]:
        with contextlib.suppress(OSError):
            counters = dict(line.split() for line in self.quota.read_text().splitlines())
            for series, name in (("cpu_quota_periods", "nr_periods"), ("cpu_throttled_periods", "nr_throttled")):
                if name in counters:
                    yield series, "", float(counters[name])
        for core in self.cores:
            with contextlib.suppress(OSError):
                count = (CORES / f"cpu{core}" / "thermal_throttle" / "core_throttle_count").read_text()
                yield "cpu_thermal_limits", str(core), float(count)


def _own_cgroup() -> Path:
    """Return the folder of this process's control group (version 2)."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::"):
                return CGROUPS / line[3:].strip("/")
    return CGROUPS
