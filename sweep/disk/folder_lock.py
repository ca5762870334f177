"""The lock of a results folder: allows one driver at a time, even on file systems with poor support for locks.

The kernel's lock on `.lock` takes effect immediately and is released when its holder exits. But some file systems do
not support locks, some enforce them only within a node, and the file may be deleted. So the driver also rewrites
`.heartbeat`, like the lock in an object store. If the holder has the same boot and pid namespace, where its process id
is unique, its process is looked up. Any other holder is considered dead after `heartbeat_lock.LOCK_TIMEOUT` seconds
without a heartbeat.
"""

import errno
import fcntl
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from sweep.base.config import ConfigError
from sweep.base.whole_file import read_bounded
from sweep.disk.heartbeat_lock import Lock

LARGEST_HEARTBEAT = 1 << 16  # bytes
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
LOCAL = {"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "ramfs", "tmpfs", "xfs", "zfs"}


class _Folder:
    """A results folder as a LockStore of small files, each written atomically. A deleted folder is not recreated.

    `write_whole` is not used: a lock need not survive a power cut, and frequent flushes would slow down a disk.
    """

    def __init__(self, out: Path) -> None:
        self.out, self.url = out, str(out)

    def read(self, name: str) -> bytes | None:
        try:
            return read_bounded(self.out / name, LARGEST_HEARTBEAT)
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        staged = self.out / f"{name}.{uuid.uuid4().hex}"
        try:
            staged.write_bytes(content)
            staged.replace(self.out / name)
        finally:  # a full disk still has room for an empty file, which would otherwise pile up
            staged.unlink(missing_ok=True)

    def delete(self, name: str) -> None:
        (self.out / name).unlink(missing_ok=True)


class Heartbeat(Lock):
    """The heartbeat file, which a driver rewrites while it runs."""

    NAME = ".heartbeat"

    def __init__(self, out: Path) -> None:
        super().__init__(_Folder(out))

    def describe_holder(self) -> dict[str, Any]:
        return {**super().describe_holder(), **process_identity()}

    def expired(self, lock: dict[str, Any], notify: Callable[[str], None]) -> bool:
        """Return whether the holder is dead: its process is looked up, or else the heartbeat decides."""
        runs = identity_runs(lock)
        return super().expired(lock, notify) if runs is None else not runs


def process_identity() -> dict[str, Any]:
    """Return what identifies this process: its id, when it began, and within what both are unique."""
    process = psutil.Process()
    return {"processes": process_space(), "pid": process.pid, "began": process.create_time()}


def identity_runs(identity: Mapping[str, Any]) -> bool | None:
    """Return whether a process runs; None if that is unknown, since it belongs to another boot or pid namespace.

    If a process has the same id but a different start time, either it is a new process, or the clock was set, which
    shifts start times: that is unknown, too.
    """
    if identity.get("processes") != process_space():
        return None
    try:
        return True if psutil.Process(int(identity["pid"])).create_time() == identity["began"] else None
    except (psutil.NoSuchProcess, KeyError, TypeError, ValueError):
        return False


def process_space() -> str:
    """Return the boot and the pid namespace, within which a process id is unique; a unique name if they are unknown."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return uuid.uuid4().hex


@contextmanager
def sole_driver(out: Path, notify: Callable[[str], None] = print) -> Iterator[Heartbeat]:
    """Hold the lock of a results folder and yield its heartbeat. Raises ConfigError if another driver holds it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = (out / ".lock").open("a+")
    except OSError as error:
        raise ConfigError(f"out={out}: cannot be written ({error.strerror})") from None
    with file:
        heartbeat = Heartbeat(out)
        problem = _lock(file.fileno())
        if problem is not None:
            if problem not in NO_LOCKS:
                raise heartbeat.refusal()
            why = os.strerror(problem)
            notify(f"out={out}: file locks are not supported here ({why}); using the heartbeat file only")
        heartbeat.acquire(notify, contested=problem is not None or file_system(out) not in LOCAL)
        heartbeat.keep()
        try:
            yield heartbeat
        finally:
            with suppress(OSError):
                heartbeat.release()


def _lock(descriptor: int) -> int | None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno or errno.EWOULDBLOCK
    return None


def file_system(folder: Path) -> str:
    """Return the type of the file system that a folder is on, e.g. ext4 or nfs4; empty if it is unknown."""
    with suppress(OSError):
        real = folder.resolve()  # the folder, or a folder above it, may be a link to another disk
        parents = {str(path) for path in (real, *real.parents)}
        partitions = [each for each in psutil.disk_partitions(all=True) if each.mountpoint in parents]
        return max(partitions, key=lambda each: len(each.mountpoint)).fstype if partitions else ""
    return ""
