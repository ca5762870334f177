"""Timed samples alongside the Records: the engine's gauges, and its GPUs through NVML or its processes.

One thread, off the measured path, reads every source once per interval, and more often at first. A source that cannot
be read is skipped and reported by `described`; it never fails a trial.
"""

import statistics
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, Self

import httpx
import psutil
import pynvml
from prometheus_client.parser import text_string_to_metric_families

from backends.launch import gpus
from backends.launch.control_client import ControlClient
from sweep.base.records import Sample, tls_context
from sweep.node.machine.foreign_processes import ForeignCpu, ForeignGpu

Reading = tuple[str, str, float]  # series, device, value
FINEST = 0.25  # s between readings in a trial's first 5 s; a page takes vLLM 4 ms of a core, i.e. 1.6%
GROWTH = 0.05  # later intervals as a share of the elapsed time: 0.5 s after 10 s
EARLY = (0.05, 0.2, 0.5)  # s after the measured part began, with a reading each, or short trials would be missed
START_POLL = 0.02  # s between two checks whether the measured part has begun
AVERAGED = ("kv_cache_usage", "spec_decode_accept_length", "spec_decode_accept_rate")  # over engines; others are summed
SPARING = 50  # shortest interval in durations of a reading: readings take at most 2% of a core


class Readable(Protocol):
    """The interface of something with readings."""

    def read(self) -> Iterable[Reading]: ...


class Source(Readable, Protocol):
    """The interface of a source of readings."""

    name: str


class EngineMetrics:
    """Gauges and counters from the engines' Prometheus pages; `names` maps series names to the engines' metrics.

    Over several engines or workers, shares are averaged and all other series are summed. Counters per draft position
    use the position as the device. `a / b` is the quotient of two metrics, omitted if `b` is 0.
    """

    def __init__(
        self,
        urls: Sequence[str],
        names: dict[str, str],
        verify_tls: bool = True,
        proxy: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.name = "engine"
        self.parts = {ours: tuple(theirs.split(" / ")) for ours, theirs in names.items()}
        self.names = tuple({part for parts in self.parts.values() for part in parts})
        self.urls = tuple(urls)
        self.client = ControlClient(timeout=2.0, verify=tls_context(verify_tls), proxy=proxy, headers=headers)

    def read(self) -> Iterable[Reading]:
        values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for url in self.urls:
            page = self.client.get(url).raise_for_status().text
            # Parsing vLLM's 48 kB page takes 10 ms of a core that may be the client's; only these lines take 1.5 ms.
            lines = [line for line in page.splitlines() if line.startswith(self.names)]
            for family in text_string_to_metric_families("\n".join(lines) + "\n"):
                for sample in family.samples:
                    if sample.name in self.names:
                        values[sample.name][sample.labels.get("position", "")].append(sample.value)
        readings: list[Reading] = []
        for series, (name, *divisor) in self.parts.items():
            for position, parts in values[name].items():
                number = len(parts) if series in AVERAGED else 1
                below = sum(values[divisor[0]].get(position, [])) if divisor else number
                readings += [(series, position, sum(parts) / below)] if below else []
        return readings


class Processes:
    """Memory and CPU of the engine's process tree, and the CPU time of other processes on its cores.

    Memory is the private part of each process plus the largest shared part once: adding up resident sizes would count
    pages that the processes share several times.
    """

    def __init__(self, processes: Callable[[], Sequence[psutil.Process]], foreign: ForeignCpu | None = None) -> None:
        self.name = "processes"
        self.processes, self.foreign = processes, foreign
        self.before: tuple[float, float] | None = None

    def read(self) -> Iterable[Reading]:
        private = shared = cpu = 0.0
        for process in self.processes():
            try:
                memory, times = process.memory_info(), process.cpu_times()
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue  # the process ended between listing and reading
            private += memory.rss - memory.shared
            shared = max(shared, memory.shared)
            cpu += times.user + times.system
        now = time.monotonic()
        yield "process_memory_bytes", "", private + shared
        if self.before is not None and now > self.before[0]:
            yield "process_cpu", "", max(0.0, cpu - self.before[1]) / (now - self.before[0])
        self.before = (now, cpu)
        if self.foreign is not None and (share := self.foreign.share()) is not None:
            yield "foreign_cpu_share", "", share


class Gpus:
    """Memory, utilisation, power, clock and limits of the deployment's GPUs, and other processes on them.

    `elsewhere` reads the GPUs of other nodes. All readings get the same time, so that the GPUs' values can be summed.
    """

    def __init__(
        self, devices: Sequence[str], foreign: ForeignGpu | None = None, elsewhere: Iterable[Readable] = ()
    ) -> None:
        self.name = "nvml"
        self.handles, self.foreign, self.elsewhere = gpus.handles(devices), foreign, tuple(elsewhere)

    def read(self) -> Iterable[Reading]:
        for device, handle in self.handles.items():
            for series, value in gpus.readings(handle):
                yield series, device, value
            if self.foreign is not None and (others := self.foreign.count(device)) is not None:
                yield "foreign_gpu_processes", device, float(others)
        for other in self.elsewhere:
            yield from other.read()


class Sampler:
    """Reads every source while its `with` block lasts. Times are CLOCK_MONOTONIC until `samples`.

    Readings are FINEST apart at first, then further and further apart up to `interval`, so that even a one-second trial
    is sampled. However short `interval` is, the pause after a reading is at least SPARING times the duration of a
    reading. This is the median of the last three, since a delayed reading does not need more work. The readings EARLY
    after `begin` are exempt.
    """

    def __init__(self, sources: Sequence[Source], interval: float) -> None:
        self.sources = list(sources)
        self.interval = interval
        self.problems: dict[str, str] = {}
        self._raw: list[Sample] = []
        self._took: deque[float] = deque(maxlen=3)  # s
        self._early: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join(timeout=10)

    def read_once(self) -> list[Sample]:
        """Read every source once; sample times are CLOCK_MONOTONIC."""
        samples: list[Sample] = []
        for source in self.sources:
            now = time.monotonic()
            try:
                for series, device, value in source.read():  # readings before an error are kept
                    samples.append(Sample(now, series, value, device))
            except (httpx.HTTPError, psutil.Error, pynvml.NVMLError, ValueError, OSError) as error:
                self.problems[source.name] = f"{type(error).__name__}: {error}"
        return samples

    def begin(self, start: float) -> None:
        """Schedule the EARLY readings after the measured part begins at `start` (CLOCK_MONOTONIC), and a reading now,
        so that counters leave out the warm-up.
        """
        self._early = [0.0, *(start + later for later in EARLY)]

    def _run(self) -> None:
        began = due = time.monotonic()
        while not self._stop.is_set():
            started = time.monotonic()
            self._raw += self.read_once()
            now = time.monotonic()
            self._took.append(now - started)
            if started >= due:
                due += min(self.interval, max(FINEST, GROWTH * (due - began)))
            due = max(due, now + SPARING * statistics.median(self._took))
            self._wait_until(due)
        self._raw += self.read_once()

    def _wait_until(self, due: float) -> None:
        """Wait until `due`, an early reading or the end."""
        while not self._stop.is_set() and (now := time.monotonic()) < due:
            passed = [early for early in self._early if early <= now]
            if passed:
                del self._early[: len(passed)]
                return
            self._stop.wait(min(due - now, START_POLL))

    def samples(self, start: float) -> list[Sample]:
        """Return all samples, with times in s from `start` (CLOCK_MONOTONIC), negative before it."""
        return [sample._replace(time=sample.time - start) for sample in self._raw]

    @property
    def described(self) -> str:
        """Return the sources that were read, each with its last problem, if any."""
        problems = {name: f" ({problem})" for name, problem in self.problems.items()}
        return "; ".join(source.name + problems.get(source.name, "") for source in self.sources)
