"""The lease on GPUs, or on the CPU of a machine: whoever's sweep it is, one launch at a time measures on each.

A lease is a socket bound to an abstract name. So there is one per host and network namespace, every user sees it, and
it ends with its process, however that ends. Who looks and takes does so under another such name.
"""

import contextlib
import errno
import hashlib
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from backends.launch import task
from backends.launch.gpus import find_gpu

PREFIX, TAKING = "sweep-lease", b"sweep-lease-taking"
SOCKETS = Path("/proc/net/unix")
CPU = "CPU"
TAKING_POLL = 0.02  # s
POLL = 0.5  # s between two looks at a lease that another process has
REPORT_AGAIN = 60.0  # s between two reports of the wait
SOCKET_NAME_BYTES = 100  # bytes of an abstract name


class Holder(NamedTuple):
    """A process that measures on a device, as the name of its socket says."""

    device: str
    sharing: str  # a digest of the name under which it shares the machine; that of its pid if it does not
    pid: int
    sweep: str

    def describe(self) -> str:
        where = "on this machine's CPU" if self.device == CPU else f"on {self.device}"
        return f"process {self.pid} (sweep {self.sweep}), which measures {where}"

    @property
    def name(self) -> bytes:
        return "/".join([PREFIX, *map(str, self)]).encode()[:SOCKET_NAME_BYTES]


@contextlib.contextmanager
def leased(
    gpus: Sequence[str], sweep: str, sharing: str, report: Callable[[str], None], give_up: Callable[[], bool]
) -> Iterator[bool]:
    """Hold the lease on these GPUs, without any on the CPU, for the block; False if it was not to be had.

    `report` is called with who has it, as long as others do; `give_up` ends the wait. Raises Stopped if the task is
    cancelled.
    """
    devices = [gpu.uuid if (gpu := find_gpu(entry)) else entry for entry in gpus] or [CPU]
    digest = hashlib.sha256((sharing or f"process {os.getpid()}").encode()).hexdigest()[:8]
    own = [Holder(device, digest, os.getpid(), sweep) for device in devices]
    with contextlib.ExitStack() as sockets:
        reported = -REPORT_AGAIN
        while others := _take(own, sockets):
            if time.monotonic() - reported >= REPORT_AGAIN:
                report(f"waiting for {others[0].describe()}")
                reported = time.monotonic()
            if give_up():
                yield False
                return
            task.pause(POLL)
        yield True


def _take(own: Sequence[Holder], sockets: contextlib.ExitStack) -> list[Holder]:
    """Take the lease on all of these devices, in `sockets`, and return none; or return who has one of them."""
    with contextlib.ExitStack() as looking:
        while not looking.enter_context(_bound(TAKING)):
            task.pause(TAKING_POLL)
        others = [
            holder
            for holder in holders()
            if any(holder.device == mine.device and holder.sharing != mine.sharing for mine in own)
        ]
        if not others:
            for mine in own:
                sockets.enter_context(_bound(mine.name))
        return others


def holders() -> list[Holder]:
    """Return who measures on which device of this machine now; none where the system does not say."""
    try:
        lines = SOCKETS.read_text(errors="replace").splitlines()
    except OSError:
        return []
    names = {line.partition(f"@{PREFIX}/")[2] for line in lines}
    parts = [name.split("/", 3) for name in names if name.count("/") >= 3]
    return sorted(Holder(device, sharing, int(pid), sweep) for device, sharing, pid, sweep in parts if pid.isdecimal())


@contextlib.contextmanager
def _bound(name: bytes) -> Iterator[bool]:
    """A socket of this abstract name for the block; False if another process has it."""
    with socket.socket(socket.AF_UNIX) as lease:
        try:
            lease.bind(b"\0" + name)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            yield False
            return
        yield True
