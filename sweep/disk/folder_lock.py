"""The lock of a results folder: one driver at a time, whatever its file system makes of locks.

The kernel's lock on `.lock` takes effect immediately and is released when its holder exits. But some file systems have
no locks, on others they hold on one node only, and the file may be deleted. So the driver also rewrites `.heartbeat`,
as it does a lock in an object store. A holder of the same boot and the same pid namespace is looked up by its process,
as only there a number means one process. Any other is dead after `heartbeat_lock.LOCK_TIMEOUT` s without a heartbeat.
"""

import errno
import fcntl
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from sweep.base.config import ConfigError
from sweep.disk.heartbeat_lock import Lock

NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
LOCAL = {"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "ramfs", "tmpfs", "xfs", "zfs"}


class _Folder:
    """A folder as a store of small files, each written whole; one that was deleted stays so.

    Not by write_whole: a lock need not outlive a power cut, and flushing one every few seconds would stall a disk.
    """

    def __init__(self, out: Path) -> None:
        self.out, self.url = out, str(out)

    def read(self, name: str) -> bytes | None:
        try:
            return (self.out / name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        staged = self.out / f"{name}.{uuid.uuid4().hex}"
        try:
            staged.write_bytes(content)
            staged.replace(self.out / name)
        finally:  # a full disk has room for an empty file, every few seconds
            staged.unlink(missing_ok=True)

    def delete(self, name: str) -> None:
        (self.out / name).unlink(missing_ok=True)


class Heartbeat(Lock):
    """The file that its driver rewrites as long as it lives."""

    NAME = ".heartbeat"

    def __init__(self, out: Path) -> None:
        super().__init__(_Folder(out))

    def describe_holder(self) -> dict[str, Any]:
        driver = psutil.Process()
        identity = {"pid": driver.pid, "began": driver.create_time()}
        return {**super().describe_holder(), "processes": process_space(), **identity}

    def expired(self, lock: dict[str, Any], notify: Callable[[str], None]) -> bool:
        """Return whether the holder is dead: a look is mostly enough where its processes are seen from here.

        Where a process of its number began at another time, it is another one, or the clock was set, by which that time
        is told: the heartbeat decides.
        """
        if lock.get("processes") == process_space():
            try:
                if psutil.Process(int(lock["pid"])).create_time() == lock["began"]:
                    return False
            except (psutil.NoSuchProcess, KeyError, TypeError, ValueError):
                return True
        return super().expired(lock, notify)


def process_space() -> str:
    """Return what makes a process id unique: the boot and the pid namespace; a name of its own where unknown."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return uuid.uuid4().hex


@contextmanager
def sole_driver(out: Path, notify: Callable[[str], None] = print) -> Iterator[Heartbeat]:
    """Hold the lock of a results folder, which is yielded. Raises ConfigError if another driver holds it."""
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
    """Lock a file; return the error number if that cannot be done."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno or errno.EWOULDBLOCK
    return None


def file_system(folder: Path) -> str:
    """Return the type of the file system that a folder is on, e.g. ext4 or nfs4; empty where it is unknown."""
    with suppress(OSError):
        real = folder.resolve()  # it, or a folder above it, may be a link to another disk
        parents = {str(path) for path in (real, *real.parents)}
        partitions = [each for each in psutil.disk_partitions(all=True) if each.mountpoint in parents]
        return max(partitions, key=lambda each: len(each.mountpoint)).fstype if partitions else ""
    return ""
