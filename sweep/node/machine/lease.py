"""The lease on GPUs, or on a machine's CPU: only one launch at a time measures on each device, across all sweeps.

A lease is a listening socket with an abstract name. The name is unique per host and network namespace, visible to every
user, and disappears with its process. After taking a lease a process checks again: if two took it at once, both release
it. A waiting process holds such a name too, and later processes give way to it, so that a sweep with many launches does
not starve other sweeps. A name alone proves nothing: the kernel reports which process listens.
"""

import contextlib
import errno
import hashlib
import os
import random
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from backends.launch import task
from backends.launch.gpus import find_gpu

HOLDS, WAITS = "sweep-lease", "sweep-lease-waits"
SOCKETS = Path("/proc/net/unix")
CPU = "CPU"
POLL = 0.5  # s between two checks of a lease that another process holds
GIVE_WAY = 4 * POLL  # s for which a free device is reserved for a waiting process, which may be suspended
REPORT_AGAIN = 60.0  # s between two reports of the wait
SOCKET_NAME_BYTES = 100  # maximum bytes of an abstract name
CREDENTIALS = struct.Struct("3i")  # pid, uid, gid


class Holder(NamedTuple):
    """A process that measures on a device, or waits for it, as described by its socket's name."""

    device: str
    sharing: str  # digest of the name under which it shares the machine, or of its pid
    pid: int
    sweep: str

    def describe(self) -> str:
        where = "on this machine's CPU" if self.device == CPU else f"on {self.device}"
        return f"process {self.pid} (sweep {self.sweep}), which measures {where}; to continue now, stop that process"

    def name(self, prefix: str) -> bytes:
        return os.fsencode("/".join([prefix, *map(str, self)]))[:SOCKET_NAME_BYTES]


@contextlib.contextmanager
def leased(
    gpus: Sequence[str], sweep: str, sharing: str, report: Callable[[str], None], give_up: Callable[[], bool]
) -> Iterator[bool]:
    """Hold the lease on these GPUs, or else on the CPU, for the block; yield False if it is not available.

    `report` is called with the holder while another process holds the lease; `give_up` ends the wait. Raises Stopped if
    the task is cancelled.
    """
    devices = [gpu.uuid if (gpu := find_gpu(entry)) else entry for entry in gpus] or [CPU]
    digest = hashlib.sha256((sharing or f"process {os.getpid()}").encode()).hexdigest()[:8]
    leases = [Holder(device, digest, os.getpid(), sweep) for device in devices]
    with contextlib.ExitStack() as sockets, contextlib.ExitStack() as queue:
        begin, reported, waits = time.monotonic(), -REPORT_AGAIN, False
        while (holders := _take(leases, sockets, not waits and time.monotonic() - begin < GIVE_WAY)) is not None:
            if holders and not waits:
                _bind(leases, WAITS, queue)
                waits = True
            if holders and time.monotonic() - reported >= REPORT_AGAIN:
                report(f"waiting for {holders[0].describe()}")
                reported = time.monotonic()
            if give_up():
                yield False
                return
            task.pause(POLL * random.uniform(0.8, 1.2))
        queue.close()
        yield True


def _take(leases: Sequence[Holder], sockets: contextlib.ExitStack, gives_way: bool) -> list[Holder] | None:
    """Take the lease on all these devices (its sockets go to `sockets`) and return None, or return the holders.

    With `gives_way`, also return (an empty list) if another process waits for the lease.
    """
    holders = _others(leases, HOLDS)
    if holders or (gives_way and _others(leases, WAITS)):
        return holders
    with contextlib.ExitStack() as taken:
        _bind(leases, HOLDS, taken)
        if holders := _others(leases, HOLDS):
            return holders
        sockets.enter_context(taken.pop_all())
        return None


def _bind(leases: Sequence[Holder], prefix: str, sockets: contextlib.ExitStack) -> None:
    for mine in leases:
        sockets.enter_context(_bound(mine.name(prefix)))


def _others(leases: Sequence[Holder], prefix: str) -> list[Holder]:
    """Return other processes that measure on, or wait for, one of these devices; empty if the system hides them."""
    try:
        lines = SOCKETS.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return []
    names = {line.partition(f"@{prefix}/")[2] for line in lines}
    parts = [name.split("/", 3) for name in names if name.count("/") >= 3]
    every = sorted(Holder(device, sharing, int(pid), sweep) for device, sharing, pid, sweep in parts if pid.isdecimal())
    others = (
        each for each in every if any(each.device == mine.device and each.sharing != mine.sharing for mine in leases)
    )
    return [each._replace(pid=pid) for each in others if (pid := _listener(each, prefix)) is not None]


def _listener(holder: Holder, prefix: str) -> int | None:
    """Return the pid of the process that listens under a holder's name, according to the kernel; None if none does."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(b"\0" + holder.name(prefix))
            pid, _, _ = CREDENTIALS.unpack(probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size))
        except ConnectionRefusedError:
            return None
        except OSError:  # such connections have filled its backlog
            return holder.pid
    return pid or holder.pid  # 0: a process in another pid namespace


@contextlib.contextmanager
def _bound(name: bytes) -> Iterator[bool]:
    """Bind a socket to this abstract name for the block; yield False if the name is taken."""
    with socket.socket(socket.AF_UNIX) as lease:
        try:
            lease.bind(b"\0" + name)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            yield False
            return
        lease.listen(16)  # connections from other processes wait here and are never accepted
        yield True
