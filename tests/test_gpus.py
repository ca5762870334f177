"""What GPUs say, and that one is used again only when its memory is back, by a fake NVML."""

from types import SimpleNamespace

import pynvml
import pytest

from backends.launch import gpus
from backends.launch.server import LaunchError
from sweep.node import gpu_memory
from sweep.node.telemetry import Gpus, Sampler

GIB = 2**30


class FakeNvml:
    """Says of each GPU the used bytes of its list in turn, the last for ever; an exception is raised."""

    NVML_CLOCK_SM = 1
    NVMLError_NotSupported = pynvml.NVMLError_NotSupported
    NVMLError_LibraryNotFound = pynvml.NVMLError_LibraryNotFound
    power = 72_500  # mW

    def __init__(self, **used):
        self.used = {name.strip("_"): list(values) for name, values in used.items()}

    def nvmlInit(self):
        pass

    def nvmlDeviceGetHandleByIndex(self, index):
        return str(index)

    def nvmlDeviceGetHandleByUUID(self, uuid):
        return uuid

    def nvmlDeviceGetMemoryInfo(self, handle):
        values = self.used[handle]
        used = values.pop(0) if len(values) > 1 else values[0]
        if isinstance(used, Exception):
            raise used
        return SimpleNamespace(used=used, total=24 * GIB)

    def nvmlDeviceGetUtilizationRates(self, handle):
        return SimpleNamespace(gpu=85)

    def nvmlDeviceGetPowerUsage(self, handle):
        if isinstance(self.power, Exception):
            raise self.power
        return self.power

    def nvmlDeviceGetClockInfo(self, handle, kind):
        return 1530

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        return [SimpleNamespace(pid=4711)]


@pytest.fixture
def nvml(monkeypatch):
    def install(**used):
        fake = FakeNvml(**used)
        monkeypatch.setattr(gpus, "pynvml", fake)
        monkeypatch.setattr(gpu_memory, "pynvml", fake)
        return fake

    return install


def test_it_waits_until_the_memory_is_back(nvml):
    fake = nvml(_0=[20 * GIB, 9 * GIB, GIB // 2], _1=[0])
    gpu_memory.wait_until_free(["0", "1"], timeout=5, poll=0.01)
    assert fake.used["0"] == [GIB // 2], "every reading was looked at"


def test_memory_that_does_not_come_back_is_told_with_its_holder(nvml):
    nvml(_0=[0], _1=[20 * GIB])
    with pytest.raises(LaunchError, match=r"GPU 1: 20.0 of 24.0 GiB are in use by processes 4711, after 0 s"):
        gpu_memory.wait_until_free(["0", "1"], timeout=0.05, poll=0.01)


def test_what_a_driver_holds_counts_as_free(nvml):
    nvml(_0=[GIB])
    gpu_memory.wait_until_free(["0"], timeout=0.05, poll=0.01)


def test_a_gpu_that_shares_the_cpus_memory_is_not_waited_for(nvml):
    nvml(_0=[pynvml.NVMLError_NotSupported()])
    gpu_memory.wait_until_free(["0"], timeout=0.05, poll=0.01)
    assert gpus.used_memory(["0"]) == 0


def test_memory_is_summed_over_indices_and_uuids(nvml):
    fake = nvml(_0=[1], _3=[2])
    fake.used["GPU-aa"] = [4]
    assert gpus.used_memory(("0", "GPU-aa")) == 5
    assert gpus.used_memory(("3",)) == 2
    assert gpus.used_memory(()) == 0


def test_telemetry_has_what_each_gpu_tells(nvml):
    nvml(_0=[9 * GIB], _1=[3 * GIB])
    samples = Sampler([Gpus(["0", "1"])], 1.0).read_once()
    assert {(s.series, s.device): s.value for s in samples} == {
        ("gpu_memory_bytes", "0"): 9.0 * GIB,
        ("gpu_memory_bytes", "1"): 3.0 * GIB,
        **{(series, device): value for device in "01" for series, value in REST.items()},
    }


REST = {"gpu_utilization": 0.85, "gpu_power_watts": 72.5, "gpu_clock_hz": 1.53e9}


@pytest.mark.parametrize("error", [pynvml.NVMLError_NotSupported(), pynvml.NVMLError_GpuIsLost()])
def test_a_gpu_that_hides_its_power_still_tells_its_memory(nvml, error):
    nvml(_0=[9 * GIB]).power = error
    sampler = Sampler([Gpus(["0"])], 1.0)
    series = {sample.series for sample in sampler.read_once()}
    hidden = isinstance(error, pynvml.NVMLError_NotSupported)
    assert series == {"gpu_memory_bytes", *REST} - (
        {"gpu_power_watts"} if hidden else {"gpu_power_watts", "gpu_clock_hz"}
    )
    assert ("nvml" in sampler.problems) is not hidden, "an error is told, what a GPU never tells is not"
