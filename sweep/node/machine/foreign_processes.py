"""Other processes during a measurement: their share of the engine's cores, and the GPUs that they use.

Not counted: the engine, its gateway, this process and its ancestors, Ray's processes on this node, and sweeps
that share the machine on purpose.
"""

import contextlib
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import psutil

from backends.launch import gpus
from sweep.node.machine.sharing import sharing_pids

NAMED_PROCESSES = 3
LEAST_NAMED = 0.02  # minimum cores that a process must use to be listed
RAY = "/ray/"  # in the command of each of Ray's processes


class ForeignCpu:
    """The share of these cores that other processes use, and the busiest of these processes.

    The share is the cores' busy time minus the time of this sweep's processes. So it includes work without a visible
    process (in another container, or already ended), but not interrupts.
    """

    def __init__(self, cores: Collection[int], sharing: str, engine: Callable[[], Iterable[psutil.Process]]) -> None:
        """`engine` returns the processes of the engine and its gateway. The client should be on other cores."""
        self.cores, self.sharing, self.engine = frozenset(cores), sharing, engine
        self.family = [process for process in _family() if _runs_on(process, self.cores)]
        self.before: tuple[float, float, dict[int, float]] | None = None  # time, busy time, our CPU time by pid
        self.began, self.at_begin = time.monotonic(), _cpu_times()

    def share(self) -> float | None:
        """Return the share since the last call; None at the first call."""
        processes = [*self.engine(), *self.family, *_processes(sharing_pids(self.sharing))]
        ours = {process.pid: _sum(times) for process in processes if (times := _known(process, "cpu_times", None))}
        now, busy = time.monotonic(), _busy(self.cores)
        before, self.before = self.before, (now, busy, ours)
        if before is None or now <= before[0]:
            return None
        used = sum(max(0.0, seconds - before[2].get(pid, 0.0)) for pid, seconds in ours.items())
        return min(1.0, max(0.0, (busy - before[1] - used) / ((now - before[0]) * len(self.cores))))

    def busiest(self) -> str:
        """Return the other processes with the most CPU time since this object was created, each with its cores used."""
        ours = {process.pid for process in [*self.engine(), *_family()]} | sharing_pids(self.sharing)
        elapsed = max(1e-3, time.monotonic() - self.began)
        took = [
            ((seconds - self.at_begin.get(process, 0.0)) / elapsed, process)
            for process, seconds in _cpu_times().items()
            if process[0] not in ours
        ]
        busiest = [each for each in sorted(took, reverse=True) if each[0] >= LEAST_NAMED]
        on_cores = [each for each in busiest if any(_runs_on(p, self.cores) for p in _processes([each[1][0]]))]
        return ", ".join(
            f"process {pid} ({name}) {cores:.2f} cores" for cores, (pid, name) in on_cores[:NAMED_PROCESSES]
        )


class ForeignGpu:
    """The other processes on these GPUs.

    A driver lists processes by their ids outside containers. If none of the engine's processes is listed, the owners of
    the listed processes are unknown.
    """

    def __init__(self, devices: Sequence[str], sharing: str, engine: Callable[[], Iterable[psutil.Process]]) -> None:
        self.handles, self.sharing, self.engine = gpus.handles(devices), sharing, engine
        self.ours: set[int] = set()
        self.most: dict[int, int] = {}  # bytes by pid

    def count(self, device: str) -> int | None:
        """Return the number of other processes on a GPU now, or None if it is unknown."""
        users = gpus.compute_processes(self.handles[device])
        if users.keys() - self.ours:
            self.ours = {process.pid for process in self.engine()} | sharing_pids(self.sharing)
        others = users.keys() - self.ours
        if others and not users.keys() & self.ours:
            return None
        self.most |= {pid: max(users[pid], self.most.get(pid, 0)) for pid in others}
        return len(others)

    def largest(self) -> str:
        """Return the other processes seen so far, each with its largest memory use."""
        ranked = sorted(self.most.items(), key=lambda each: -each[1])[:NAMED_PROCESSES]
        names = {process.pid: _known(process, "name", "?") for process in _processes([pid for pid, _ in ranked])}
        return ", ".join(f"process {pid} ({names.get(pid, '?')}) {size / 2**30:.2f} GiB" for pid, size in ranked)


class Foreign(NamedTuple):
    """The other processes that are watched during a measurement."""

    cpu: ForeignCpu | None
    gpu: ForeignGpu | None

    def describe(self) -> str:
        """Describe the other processes seen so far: the busiest on the cores, then the largest in GPU memory."""
        return "; ".join(filter(None, [self.cpu.busiest() if self.cpu else "", self.gpu.largest() if self.gpu else ""]))


def _family() -> list[psutil.Process]:
    """Return this process and its ancestors; in a worker of Ray, also Ray's other processes on this node."""
    here = psutil.Process()
    family = [here, *here.parents()]
    if len(family) > 2 and _known(family[1], "name", "?") == "raylet":
        beside = [process for process in family[2].children() if RAY in " ".join(_known(process, "cmdline", ()))]
        family += [*family[1].children(recursive=True), *beside]
    return family


def _processes(pids: Iterable[int]) -> Iterator[psutil.Process]:
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            yield psutil.Process(pid)


def _cpu_times() -> dict[tuple[int, str], float]:
    """Return the CPU seconds of every process on this machine, by pid and name."""
    each = psutil.process_iter(["name", "cpu_times"])
    return {(p.pid, p.info["name"] or "?"): _sum(p.info["cpu_times"]) for p in each if p.info["cpu_times"]}


def _sum(times: Any) -> float:
    return float(times.user + times.system)


def _known(process: psutil.Process, fact: str, unknown: Any) -> Any:
    """Return what a method of a process returns, or `unknown` if the process has ended or is hidden."""
    with contextlib.suppress(psutil.Error):
        return getattr(process, fact)()
    return unknown


def _runs_on(process: psutil.Process, cores: frozenset[int]) -> bool:
    return not cores.isdisjoint(_known(process, "cpu_affinity", ()))


def _busy(cores: frozenset[int]) -> float:
    """Return the CPU seconds that programs have used on these cores so far."""
    times = psutil.cpu_times(percpu=True)
    return sum(each.user + each.nice + each.system for core, each in enumerate(times) if core in cores)
