"""What GPUs say, and that one is used again only when its memory is back, by a fake NVML."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import psutil
import pynvml
import pytest
import yaml

from backends.launch import gpus, host_facts
from backends.launch.server import LaunchError
from sweep.__main__ import main
from sweep.base.config import CONF
from sweep.base.exits import exit_of
from sweep.base.records import Outcome
from sweep.disk.run_files import RunPaths, read_trials
from sweep.drive.policy import fault_of
from sweep.node.machine import cores, gpu_memory
from sweep.node.machine.foreign_processes import ForeignGpu
from sweep.node.telemetry import Gpus, Sampler

GIB = 2**30


class FakeNvml:
    """Says of each GPU the used bytes of its list in turn, the last forever; an exception is raised."""

    NVML_CLOCK_SM = 1
    NVMLError_NotSupported = pynvml.NVMLError_NotSupported
    NVMLError_LibraryNotFound = pynvml.NVMLError_LibraryNotFound
    NVMLError_FunctionNotFound = pynvml.NVMLError_FunctionNotFound
    NVMLError_DriverNotLoaded = pynvml.NVMLError_DriverNotLoaded
    power = 72_500  # mW
    broken = None

    def __init__(self, **used):
        self.used = {name.strip("_"): list(values) for name, values in used.items()}

    NVMLError = pynvml.NVMLError
    names = ("NVIDIA L4", "NVIDIA A100", "NVIDIA A100 MIG 1g.5gb")
    uuids = ("GPU-aa", "GPU-bb", "MIG-cc")
    capabilities = ((8, 9), (8, 0), (8, 0))

    def nvmlInit(self):
        if self.broken:
            raise self.broken

    def nvmlDeviceGetCount(self):
        return 2

    def nvmlDeviceGetName(self, handle):
        return self.names[self.number(handle)]

    def nvmlDeviceGetUUID(self, handle):
        return self.uuids[self.number(handle)]

    def nvmlDeviceGetIndex(self, handle):
        return self.number(handle)

    def nvmlDeviceGetCudaComputeCapability(self, handle):
        return self.capabilities[self.number(handle)]

    def nvmlDeviceIsMigDeviceHandle(self, handle):
        return handle.startswith("MIG")

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, handle):
        return "1"

    def nvmlSystemGetDriverVersion(self):
        return "580.65.06"

    def number(self, handle):
        return int(handle) if handle.isdecimal() else self.uuids.index(handle)

    def nvmlDeviceGetHandleByIndex(self, index):
        return str(index)

    def nvmlDeviceGetHandleByUUID(self, uuid):
        return uuid

    def nvmlDeviceGetMemoryInfo(self, handle):
        values = self.used.get(handle, [0])
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
        return [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in self.computing.items()]

    computing = {4711: GIB}  # noqa: RUF012

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle):
        if self.before_535:
            raise pynvml.NVMLError_FunctionNotFound
        return self.reasons

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle):
        return self.reasons

    before_535 = False
    reasons = pynvml.nvmlClocksEventReasonHwThermalSlowdown


@pytest.fixture
def nvml(monkeypatch):
    def install(**used):
        fake = FakeNvml(**used)
        monkeypatch.setattr(gpus, "pynvml", fake)
        monkeypatch.setattr(gpu_memory, "pynvml", fake)
        return fake

    cached = (gpus.present, gpus.visible)
    for function in cached:
        function.cache_clear()
    yield install
    for function in cached:
        function.cache_clear()


def test_a_driver_that_is_broken_is_not_taken_for_none(nvml, capsys, monkeypatch):
    """Ubuntu's unattended upgrade leaves libraries of another version than the loaded driver's."""
    fake = nvml()
    fake.broken = pynvml.NVMLError(pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)
    with pytest.raises(gpus.BrokenDriver) as broken:
        gpus.find_gpu("0")
    assert fault_of(Outcome.LAUNCH_FAILED, exit_of(broken.value)) == "surroundings"  # of a node: another is tried
    assert main(["backends"]) == 2
    error = capsys.readouterr().err
    assert "NVML: RM has detected an NVML/RM version mismatch" in error
    assert "reboot, or reload NVIDIA's driver, or set CUDA_VISIBLE_DEVICES= to continue" in error
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpus.present() == ()
    gpus.present.cache_clear()
    fake.broken = pynvml.NVMLError_DriverNotLoaded()
    assert gpus.present() == ()


@pytest.mark.parametrize(
    ("before", "used", "pids", "shown"),
    [
        (GIB, 2 * GIB, (), True),
        (GIB, GIB, (1, 4711), True),  # one of its processes computes there
        (GIB, GIB, (1,), False),
        (GIB, GIB // 2, (), False),
        (GIB, pynvml.NVMLError_NotSupported(), (), True),  # it cannot be said
    ],
)
def test_a_gpu_shows_an_engine_by_its_process_or_by_memory(nvml, before, used, pids, shown):
    nvml(_0=[used])
    assert gpus.gpus_show(["0"], pids, before) is shown


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
REST |= {"gpu_thermal_limit": 1.0, "gpu_power_limit": 0.0}


@pytest.mark.parametrize("error", [pynvml.NVMLError_NotSupported(), pynvml.NVMLError_GpuIsLost()])
def test_a_gpu_that_hides_its_power_still_tells_its_memory(nvml, error):
    nvml(_0=[9 * GIB]).power = error
    sampler = Sampler([Gpus(["0"])], 1.0)
    series = {sample.series for sample in sampler.read_once()}
    hidden = isinstance(error, pynvml.NVMLError_NotSupported)
    later = {"gpu_clock_hz", "gpu_thermal_limit", "gpu_power_limit"}
    assert series == {"gpu_memory_bytes", *REST} - {"gpu_power_watts"} - (set() if hidden else later)
    assert ("nvml" in sampler.problems) is not hidden, "an error is told, what a GPU never tells is not"


def test_a_driver_before_535_tells_everything_too(nvml):
    """It lacks the newer name of one query: without the older one all readings after it were lost."""
    nvml(_0=[9 * GIB]).before_535 = True
    sampler = Sampler([Gpus(["0"])], 1.0)
    assert {sample.series: sample.value for sample in sampler.read_once()} == {"gpu_memory_bytes": 9.0 * GIB, **REST}
    assert not sampler.problems


@pytest.mark.parametrize(
    ("setting", "uuids"),
    [
        (None, ["GPU-aa", "GPU-bb"]),
        ("1", ["GPU-bb"]),
        ("1,0", ["GPU-bb", "GPU-aa"]),
        ("GPU-b", ["GPU-bb"]),
        ("MIG-cc", ["MIG-cc"]),
        ("0,7,1", ["GPU-aa"]),  # as in CUDA, nothing counts after one that does not exist
        ("", []),
        ("-1", []),
        ("0,-1,1", ["GPU-aa"]),
        ("GPU-bb,GPU-aa", ["GPU-bb", "GPU-aa"]),
        ("GPU-", []),  # the beginning of both
        (" 1 , 0 ", ["GPU-bb", "GPU-aa"]),
        ("1,1", []),  # as in CUDA, a GPU that is listed twice hides all
        ("GPU-bb,GPU-b", []),
        ("0,GPU-bb", ["GPU-aa"]),  # another form than the first entry's
        ("GPU-aa,MIG-cc", ["GPU-aa"]),
    ],
)
def test_the_users_choice_of_gpus_is_respected(setting, uuids, nvml, monkeypatch):
    nvml()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("NVIDIA_VISIBLE_DEVICES", "1")  # for the runtime of containers, whose GPUs count from 0 again
    if setting is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", setting)
    assert [gpu.uuid for gpu in gpus.visible()] == uuids
    assert len(host_facts.host().gpus) == len(uuids)


def test_a_node_states_its_driver_gpus_and_system(nvml, monkeypatch):
    nvml()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    host = host_facts.host()
    assert (host.driver, host.capability) == ("580.65.06", "8.0"), "the least of its GPUs"
    assert host.glibc.startswith("2.")
    assert host.python.startswith("3.")


def test_cores_are_dealt_out_by_gpu(nvml, monkeypatch):
    nvml()
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda pid: set(range(16)))
    assert cores.split_cores(("GPU-bb",), 1) == ([8, 9, 10, 11, 12, 13, 14], {15})
    assert len(cores.split_cores(("MIG-cc",), 1)[0]) == 7
    assert len(cores.split_cores(("GPU-of-another",), 1)[0]) == 15


@pytest.mark.slow
def test_a_trial_runs_on_the_gpu_that_the_user_chose(nvml, monkeypatch, tmp_path):
    """Through the whole command: the second of two GPUs, by its UUID, whoever counts."""
    nvml()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    words = "backend=simulated model=tiny-llama workload=qa workload.num_requests=2 workload.output_tokens=4"
    common = "cluster=inline tracking=none backend.ttft.mean=0.5 hardware=gpu load.batch_size=2"
    main([*words.split(), *common.split(), f"out={tmp_path / 'out'}", f"cache_dir={tmp_path / 'cache'}"])
    (row,) = read_trials(RunPaths(tmp_path / "out").trials)
    assert (row["accelerator"], row["gpu_count"], row["driver"]) == ("NVIDIA A100", 1, "580.65.06")
    assert json.loads(row["hardware"])["capability"] == "8.0"
    (environment,) = (tmp_path / "out").glob("deployments/*/*/engine.log")
    assert environment.exists()


def test_the_processes_of_others_on_a_gpu_are_counted_and_named(nvml):
    fake = nvml(_0=[9 * GIB])
    engine = psutil.Process()
    fake.computing = {engine.pid: 8 * GIB, 4711: GIB // 2}
    foreign = ForeignGpu(["0"], "", lambda: [engine])
    samples = Sampler([Gpus(["0"], foreign)], 1.0).read_once()
    assert [sample.value for sample in samples if sample.series == "foreign_gpu_processes"] == [1.0]
    assert re.fullmatch(r"process 4711 \(.+\) 0.50 GiB", foreign.largest())
    fake.computing = {engine.pid: 8 * GIB}
    assert foreign.count("0") == 0
    fake.computing = {1: 8 * GIB, 2: GIB}  # another namespace's numbers
    assert foreign.count("0") is None


@pytest.mark.parametrize("file", sorted(CONF.glob("hardware/*.yaml")), ids=lambda file: file.stem)
def test_a_plan_counts_the_memory_that_an_engine_finds_and_not_all_that_nvml_counts(file: Path) -> None:
    """torch has 22.05 of an L4's 22.49 GiB: with the larger figure a plan's batches would not fit."""
    text = file.read_text()
    usable, counted = yaml.safe_load(text).get("gpu_memory"), re.search(r"NVML counts ([\d,]+) MiB", text)
    assert (usable is None) == (counted is None), "a figure without its source"
    if usable and counted:
        assert 0.97 < usable * 1024 / int(counted[1].replace(",", "")) < 0.997
    if file.stem == "l4":
        assert usable <= 22.05
