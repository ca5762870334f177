"""The lock of a run: a file or object that the driver rewrites every LOCK_HEARTBEAT seconds, even during uploads.

A lock that has not changed for LOCK_TIMEOUT seconds belongs to a dead driver. A driver whose lock was taken over stops.
A driver whose lock is missing writes it again: a store may lag behind, or a user may have deleted the file.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from sweep.base.config import ConfigError
from sweep.base.time_factor import scaled
from sweep.disk.ledger import Misplaced

LOCK_HEARTBEAT = scaled(5.0)  # s between heartbeats in the lock
LOCK_TIMEOUT = scaled(20.0)  # s without a heartbeat after which the holder of a lock is considered dead
LOCK_POLL = 1.0  # s between reads of a lock, and before a newly written lock is considered ours


class LockStore(Protocol):
    """The interface of a store of small files or objects, by name."""

    url: str

    def read(self, name: str) -> bytes | None: ...
    def write(self, name: str, content: bytes) -> None: ...
    def delete(self, name: str) -> None: ...


class Lock:
    """The file or object that reserves a run for one driver."""

    NAME = ".lock"

    def __init__(self, store: LockStore) -> None:
        self.store = store
        self.owner = uuid.uuid4().hex
        self.ended = threading.Event()
        self.taken = False  # whether a heartbeat found that another driver has taken the lock
        self.thread: threading.Thread | None = None
        self.last_beat = time.monotonic(), time.time()

    def acquire(self, notify: Callable[[str], None], contested: bool = True) -> None:
        """Take the lock; a dead driver's lock expires. Raises ConfigError if a living driver holds the lock.

        `contested`: two drivers may try to take the lock at the same time.
        """
        lock = self._read()
        if lock and not self.expired(lock, notify):
            raise self.refusal()
        self.beat()
        if contested:
            time.sleep(LOCK_POLL)  # if two drivers wrote at the same time, the last one holds it
            if not self.ours():
                raise ConfigError(f"out={self.store.url}: another sweep has just been started with this out")

    def expired(self, lock: dict[str, Any], notify: Callable[[str], None]) -> bool:
        """Return whether the holder is dead, i.e. its lock does not change for LOCK_TIMEOUT seconds."""
        notify(f"{self.store.url} is locked by {lock['who']}: waiting {LOCK_TIMEOUT:.0f} s for its heartbeat")
        until = time.monotonic() + LOCK_TIMEOUT
        while time.monotonic() < until:
            time.sleep(LOCK_POLL)
            now = self._read()
            if now and now != lock:
                return False
        return True

    def refusal(self) -> ConfigError:
        """Return the error for a second driver; it describes the driver that holds the lock."""
        holder = (self._read() or {}).get("who", "process unknown")
        return ConfigError(f"out={self.store.url}: another sweep is running with this out ({holder})")

    def keep(self) -> None:
        """Start a thread that sends heartbeats until another driver takes the lock, which `check` then reports."""
        self.thread = threading.Thread(target=self._keep, name="lock", daemon=True)
        self.thread.start()

    def _keep(self) -> None:
        while not self.taken and not self.ended.wait(LOCK_HEARTBEAT):
            with suppress(OSError):  # the mirror gets the same error and reports it
                self.taken = not self.ours()
                if not self.taken:
                    self.beat()

    def ours(self) -> bool:
        """Return whether no other driver holds the lock, checked twice. A missing lock is considered ours."""
        if not self._is_others():
            return True
        time.sleep(LOCK_POLL)
        return not self._is_others()

    def _is_others(self) -> bool:
        lock = self._read()
        if lock is None:  # during such a long silence another driver may have taken and released the lock
            return self._silence() > LOCK_TIMEOUT
        return bool(lock["owner"] != self.owner)

    def _silence(self) -> float:
        """Return the seconds since the last heartbeat. Either clock may stop while this process is suspended."""
        monotonic, wall = self.last_beat
        return max(time.monotonic() - monotonic, time.time() - wall)

    def check(self) -> None:
        """Raise Misplaced if another driver took over, perhaps while this process or its machine was suspended.

        The store is not read as long as heartbeats are being sent.
        """
        if self.taken or (self._silence() > 2 * LOCK_HEARTBEAT and not self.ours()):
            raise Misplaced(f"out={self.store.url}: another driver has taken over; this run stops writing")

    def beat(self) -> None:
        self.store.write(self.NAME, json.dumps(self.describe_holder()).encode())
        self.last_beat = time.monotonic(), time.time()

    def describe_holder(self) -> dict[str, Any]:
        """Return the content of the lock."""
        who = f"process {os.getpid()} on {socket.gethostname()}"
        return {"owner": self.owner, "who": who, "beat": time.time()}

    def end(self) -> None:
        """Stop the heartbeats."""
        self.ended.set()
        if self.thread is not None:
            self.thread.join()

    def release(self) -> None:
        self.end()
        if (self._read() or {}).get("owner") == self.owner:
            self.store.delete(self.NAME)

    def _read(self) -> dict[str, Any] | None:
        content = self.store.read(self.NAME)
        try:
            lock = json.loads(content or b"null")
        except ValueError:
            lock = None
        return lock if isinstance(lock, dict) and {"owner", "who"} <= lock.keys() else None  # damaged: like missing
