"""A GPU is used again only when its memory is back, by a fake NVML that says so."""

import sys
from types import SimpleNamespace

import pytest

from sweep import gpu_memory

GIB = 2**30


class FakeNvml:
    """Says of each GPU the used bytes of its list in turn, the last for ever."""

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
        return SimpleNamespace(used=values.pop(0) if len(values) > 1 else values[0], total=24 * GIB)

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        return [SimpleNamespace(pid=4711)]


@pytest.fixture
def nvml(monkeypatch):
    def install(**used):
        fake = FakeNvml(**used)
        monkeypatch.setitem(sys.modules, "pynvml", fake)
        return fake

    return install


def test_it_waits_until_the_memory_is_back(nvml):
    fake = nvml(_0=[20 * GIB, 9 * GIB, GIB // 2], _1=[0])
    gpu_memory.wait_until_free(["0", "1"], timeout=5, poll=0.01)
    assert fake.used["0"] == [GIB // 2], "every reading was looked at"


def test_memory_that_does_not_come_back_is_told_with_its_holder(nvml):
    nvml(_0=[0], _1=[20 * GIB])
    with pytest.raises(gpu_memory.Busy, match=r"GPU 1: 20.0 of 24.0 GiB are in use by processes 4711, after 0 s"):
        gpu_memory.wait_until_free(["0", "1"], timeout=0.05, poll=0.01)


def test_what_a_driver_holds_counts_as_free(nvml):
    nvml(_0=[GIB])
    gpu_memory.wait_until_free(["0"], timeout=0.05, poll=0.01)
