"""The lock of a run: a file or object that its driver rewrites every LOCK_HEARTBEAT seconds, also during uploads.

A lock that has not changed for LOCK_TIMEOUT seconds belongs to a dead driver. A driver whose lock was taken stops; one
whose lock is missing writes it again: a store may be behind for a moment, and somebody may tidy up.
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
LOCK_POLL = 1.0  # s between reads of a lock, and before a lock that was just written counts as ours


class LockStore(Protocol):
    """A place for small named contents."""

    url: str

    def read(self, name: str) -> bytes | None: ...
    def write(self, name: str, content: bytes) -> None: ...
    def delete(self, name: str) -> None: ...


class Lock:
    """The file or object that marks a run as one driver's."""

    NAME = ".lock"

    def __init__(self, store: LockStore) -> None:
        self.store = store
        self.owner = uuid.uuid4().hex
        self.ended = threading.Event()
        self.taken = False  # by another driver, as a heartbeat found
        self.thread: threading.Thread | None = None
        self.last_beat = time.monotonic(), time.time()

    def acquire(self, notify: Callable[[str], None], contested: bool = True) -> None:
        """Take the lock; a dead driver's expires. Raises ConfigError if a driver that is alive holds it.

        `contested`: two drivers may do so at the same time.
        """
        lock = self._read()
        if lock and not self.expired(lock, notify):
            raise self.refusal()
        self.beat()
        if contested:
            time.sleep(LOCK_POLL)  # if two drivers wrote at the same time, the last one holds it
            if not self.ours():
                raise ConfigError(f"out={self.store.url}: a sweep has just been started there")

    def expired(self, lock: dict[str, Any], notify: Callable[[str], None]) -> bool:
        """Return whether the holder is dead: its lock does not change for LOCK_TIMEOUT s."""
        notify(f"{self.store.url} is locked by {lock['who']}: waiting {LOCK_TIMEOUT:.0f} s for its heartbeat")
        until = time.monotonic() + LOCK_TIMEOUT
        while time.monotonic() < until:
            time.sleep(LOCK_POLL)
            now = self._read()
            if now and now != lock:
                return False
        return True

    def refusal(self) -> ConfigError:
        """Return the error of a second driver, which names the first."""
        holder = (self._read() or {}).get("who", "process unknown")
        return ConfigError(f"out={self.store.url}: a sweep is running there ({holder})")

    def keep(self) -> None:
        """Start a thread that sends heartbeats until another driver takes the lock, which `check` then reports."""
        self.thread = threading.Thread(target=self._keep, name="lock", daemon=True)
        self.thread.start()

    def _keep(self) -> None:
        while not self.taken and not self.ended.wait(LOCK_HEARTBEAT):
            with suppress(OSError):  # the mirror meets the same error and reports it
                self.taken = not self.ours()
                if not self.taken:
                    self.beat()

    def ours(self) -> bool:
        """Return whether no other driver holds the lock, which is asked twice. A lock that goes missing stays ours."""
        if not self._is_others():
            return True
        time.sleep(LOCK_POLL)
        return not self._is_others()

    def _is_others(self) -> bool:
        lock = self._read()
        if lock is None:  # after so long a silence another driver may have taken it, finished, and released it
            return self._silence() > LOCK_TIMEOUT
        return bool(lock["owner"] != self.owner)

    def _silence(self) -> float:
        """Return the time since the last heartbeat, s. Either clock may have stood still with the process."""
        monotonic, wall = self.last_beat
        return max(time.monotonic() - monotonic, time.time() - wall)

    def check(self) -> None:
        """Raise Misplaced if another driver took over, also while this process stood still, as with a frozen machine.

        Nothing is asked while heartbeats are sent.
        """
        if self.taken or (self._silence() > 2 * LOCK_HEARTBEAT and not self.ours()):
            raise Misplaced(f"out={self.store.url}: another driver has taken over: nothing more is written here")

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
        return lock if isinstance(lock, dict) and {"owner", "who"} <= lock.keys() else None  # a damaged one is missing
