"""The faults of the soak, as a list: each is struck by a function that says what it hit and how that ends."""

import random
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from sweep.base.config import ROOT
from tests.cluster.harness import kill
from tests.cluster.surroundings import FACTOR, Surroundings

PATIENCE = 40 * FACTOR  # s for which driver and nodes wait for each other's heartbeats
CLOCK_JUMPS = (-86400, -3600, -60, -2, 2, 60, 3600, 86400)  # s


class Strike(NamedTuple):
    """A fault that was struck, and what ends it."""

    target: str
    end: Callable[[], None] | None = None  # None: it ends by itself, or what runs the nodes mends it
    seconds: float = 0.0  # until then


class Fault(NamedTuple):
    """A kind of fault; `strike` returns None where there is nothing to hit now."""

    name: str
    weight: int
    strike: Callable[[Surroundings, random.Random], Strike | None]


Processes = Callable[[Surroundings], Sequence[int]]


def _killed(processes: Processes, *numbers: signal.Signals) -> Callable[[Surroundings, random.Random], Strike | None]:
    def strike(on: Surroundings, chance: random.Random) -> Strike | None:
        pids = sorted(processes(on))
        if not pids:
            return None
        pid, number = chance.choice(pids), chance.choice(numbers or (signal.SIGKILL,))
        kill(pid, number)
        return Strike(f"process {pid} with {number.name}")

    return strike


def _frozen(processes: Processes) -> Callable[[Surroundings, random.Random], Strike | None]:
    """A process that stops for a while, about as long as it is waited for, and goes on."""

    def strike(on: Surroundings, chance: random.Random) -> Strike | None:
        pids = sorted(processes(on))
        if not pids:
            return None
        pid, seconds = chance.choice(pids), chance.uniform(0.2, 2) * PATIENCE
        kill(pid, signal.SIGSTOP)
        return Strike(f"process {pid} for {seconds:.0f} s", lambda: kill(pid, signal.SIGCONT), seconds)

    return strike


def _driver(on: Surroundings) -> list[int]:
    return [on.sweep.process.pid] if on.sweep.process is not None and on.sweep.running() else []


def _raylets(on: Surroundings) -> list[int]:
    return [raylet.pid for node in on.cluster.nodes if (raylet := node.raylet())]


def _partition(on: Surroundings, chance: random.Random) -> Strike:
    index, seconds = chance.randrange(on.size), chance.uniform(0.2, 3) * PATIENCE
    on.network.cut(index)
    return Strike(f"node {index} for {seconds:.0f} s", lambda: on.network.mend(index), seconds)


def _flapping_link(on: Surroundings, chance: random.Random) -> Strike:
    index = chance.randrange(on.size)
    on.network.cut(index)
    return Strike(f"node {index} for 1 s", lambda: on.network.mend(index), 1.0)


def _full_disk(on: Surroundings, chance: random.Random) -> Strike | None:
    index, seconds = chance.randrange(on.size), chance.uniform(0.5, 3) * PATIENCE
    if on.cluster.nodes[index].raylet() is None:
        return None
    return Strike(f"node {index} for {seconds:.0f} s", on.disks[index].fill(), seconds)


def _slow_disk(on: Surroundings, chance: random.Random) -> Strike | None:
    index, seconds = chance.randrange(on.size), chance.uniform(0.5, 2) * PATIENCE
    if on.cluster.nodes[index].raylet() is None:
        return None
    share = chance.uniform(0.3, 0.9)
    return Strike(f"node {index}: {share:.0%}, for {seconds:.0f} s", on.disks[index].stall(share), seconds)


def _full_results(on: Surroundings, chance: random.Random) -> Strike:
    seconds = chance.uniform(0.3, 1) * PATIENCE
    return Strike(f"for {seconds:.0f} s", on.results_disk.fill(), seconds)


def _slow_results(on: Surroundings, chance: random.Random) -> Strike:
    share, seconds = chance.uniform(0.3, 0.9), chance.uniform(0.5, 2) * PATIENCE
    return Strike(f"{share:.0%}, for {seconds:.0f} s", on.results_disk.stall(share), seconds)


def _clock_jump(on: Surroundings, chance: random.Random) -> Strike:
    index, shift = chance.randrange(on.size + 1), chance.choice(CLOCK_JUMPS)
    clock = on.clocks[index] if index < on.size else on.driver_clock
    clock.jump(shift)
    return Strike(f"{'the driver' if index == on.size else f'node {index}'}: {shift:+d} s from the machine's")


def _hub_down(on: Surroundings, chance: random.Random) -> Strike:
    listens, seconds = chance.random() < 0.5, chance.uniform(0.2, 1) * on.longest_outage
    return Strike(f"{'503' if listens else 'refused'} for {seconds:.0f} s", on.hub.fail(listens), seconds)


def _head(on: Surroundings, chance: random.Random) -> Strike | None:
    """Ray's head dies, with all that it knew; it and all nodes come back."""
    pids = [process.pid for process in on.cluster.head.below() if process.name() == "gcs_server"]
    if not pids:
        return None
    kill(pids[0])
    return Strike(f"process {pids[0]}", on.cluster.restart, 2.0)


def _second_driver(on: Surroundings, chance: random.Random) -> Strike | None:
    if not _driver(on):
        return None
    command = [sys.executable, *on.sweep.program, *on.sweep.arguments]
    second = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT, env=on.sweep.environment, text=True
    )

    def end() -> None:
        second.kill()
        second.communicate()

    return Strike(f"process {second.pid}", end, 30.0)


FAULTS = (
    Fault("engine killed", 3, _killed(lambda on: on.sweep.engines())),
    Fault("engine's child killed", 1, _killed(lambda on: on.sweep.children())),
    Fault("engine frozen", 2, _frozen(lambda on: on.sweep.engines())),
    Fault("client killed", 2, _killed(lambda on: on.sweep.clients())),
    Fault("worker killed", 2, _killed(lambda on: on.sweep.workers())),
    Fault("worker frozen", 2, _frozen(lambda on: on.sweep.workers())),
    Fault("supervisor killed", 2, _killed(lambda on: on.sweep.supervisors())),
    Fault("raylet killed", 2, _killed(_raylets)),
    Fault("raylet frozen", 1, _frozen(_raylets)),
    Fault("Ray's head killed", 1, _head),
    Fault("driver killed", 1, _killed(_driver)),
    Fault("driver interrupted", 1, _killed(_driver, signal.SIGINT, signal.SIGTERM, signal.SIGHUP)),
    Fault("driver frozen", 1, _frozen(_driver)),
    Fault("second driver", 1, _second_driver),
    Fault("partition", 3, _partition),
    Fault("flapping link", 2, _flapping_link),
    Fault("node's disk full", 2, _full_disk),
    Fault("node's disk slow", 2, _slow_disk),
    Fault("results' disk full", 1, _full_results),
    Fault("results' disk slow", 1, _slow_results),
    Fault("clock jump", 3, _clock_jump),
    Fault("hub down", 2, _hub_down),
)
