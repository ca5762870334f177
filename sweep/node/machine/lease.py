"""The lease on GPUs, or on a machine's CPU: only one launch at a time measures on each device, across all sweeps.

A lease is a listening socket with an abstract name. The name is unique per host and network namespace, visible to every
user, and disappears with its process. After taking a lease a process checks again: if two took it at once, both release
it. A waiting process holds such a name too, and later processes give way to it, so that a sweep with many launches does
not starve other sweeps. A name alone proves nothing: the kernel reports which process listens, and it must be the
process that the name gives.
"""

import contextlib
import errno
import functools
import hashlib
import os
import random
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from backends.launch import task
from backends.launch.gpus import find_gpu

HOLDS, WAITS = "sweep-lease", "sweep-lease-waits"
SOCKETS, LISTENS = Path("/proc/net/unix"), "00010000"  # and the flags of a socket that listens
CPU = "CPU"
POLL = 0.5  # s between two checks of a lease that another process holds
GIVE_WAY = 4 * POLL  # s for which a free device is reserved for a waiting process, which may be suspended
REPORT_AGAIN = 60.0  # s between two reports of the wait
SOCKET_NAME_BYTES = 100  # maximum bytes of an abstract name
CREDENTIALS = struct.Struct("3i")  # pid, uid, gid
NAMESPACE_IDS = re.compile(r"^NSpid:(.*)$", re.MULTILINE)  # a process's pids, in this pid namespace and those within


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
    """Listen under the leases' names until `sockets` is closed. A name that this process has already says the same."""
    for mine in leases:
        lease = sockets.enter_context(socket.socket(socket.AF_UNIX))
        try:
            lease.bind(b"\0" + mine.name(prefix))
            lease.listen(4096)  # connections from other processes wait here and are never accepted
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise


def _others(leases: Sequence[Holder], prefix: str) -> list[Holder]:
    """Return other processes that measure on, or wait for, one of these devices; empty if the system hides them."""
    lines, found = list[str](), set()
    with contextlib.suppress(OSError):
        lines = SOCKETS.read_text(errors="surrogateescape").splitlines()
    for line in lines:
        if f" {LISTENS} " in line and (name := line.partition(f" @{prefix}/")[2]).count("/") >= 3:
            device, sharing, pid, sweep = name.split("/", 3)
            if pid.isdecimal() and any(device == mine.device and sharing != mine.sharing for mine in leases):
                holder = Holder(device, sharing, int(pid), sweep)
                if (listener := _listener(holder, prefix, line.split(maxsplit=7)[6])) is not None:
                    found.add(holder._replace(pid=listener))
    return sorted(found)


@functools.lru_cache(1024)  # by the socket's inode, since each probe stays in the listener's backlog
def _listener(holder: Holder, prefix: str, inode: str) -> int | None:
    """Return the pid of the process that listens under a holder's name, according to the kernel.

    Return None if that is not the process which the name gives: any process may bind any name.
    """
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(b"\0" + holder.name(prefix))
        except OSError:  # it has ended, or its backlog is full
            return None
        pid, _, _ = CREDENTIALS.unpack(probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size))
    try:
        ids = NAMESPACE_IDS.search(Path(f"/proc/{pid}/status").read_text(errors="replace"))
    except OSError:  # it is in another pid namespace (pid 0), or hidden
        return pid or holder.pid
    return pid if ids is None or str(holder.pid) in ids[1].split() else None
