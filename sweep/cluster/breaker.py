"""The circuit breaker: while preparation fails for several deployments, launches start one at a time, as probes."""

import time

from sweep.base.config import Halted
from sweep.base.wording import count, duration_text
from sweep.drive import policy


class Breaker:
    """Tracks failing preparations. The breaker is open while an outage affects more than one deployment."""

    def __init__(self) -> None:
        self.worked = False  # whether any preparation in this run has worked
        self.preparing: set[str] = set()  # keys of launches whose node is not prepared yet; each launch is a probe
        self.failing: dict[str, str] = {}  # deployment -> its last failure, since the last preparation that worked
        self.opened: float | None = None  # monotonic

    def begin(self, launch: str) -> None:
        self.preparing.add(launch)

    def stall(self, launch: str, deployment_id: str, reason: str) -> bool:
        """Record a failure of a launch that will retry; return whether the failure opens the breaker."""
        self.preparing.add(launch)
        self.failing[deployment_id] = reason
        if self.opened is not None or len(self.failing) < policy.DEPLOYMENTS:
            return False
        self.opened = time.monotonic()
        return True

    def prepared(self, launch: str) -> float | None:
        """Record a successful preparation; return how long the breaker was open, in seconds, or None."""
        self.preparing.discard(launch)
        opened, self.opened, self.worked = self.opened, None, True
        self.failing.clear()
        return None if opened is None else time.monotonic() - opened

    def end(self, launch: str) -> None:
        """Record that a launch's attempt has ended."""
        self.preparing.discard(launch)

    @property
    def most_starts(self) -> int | None:
        """The number of launches that may start now; None if it is unlimited."""
        if self.opened is None:
            return None
        return 0 if self.preparing else 1

    @property
    def pause(self) -> str | None:
        """A one-line message about an open breaker; None while it is closed."""
        if self.opened is None:
            return None
        last = list(self.failing.values())[-1]
        duration = duration_text(time.monotonic() - self.opened)
        return f"paused for {duration}, probing: preparation fails for {count(len(self.failing), 'deployment')}: {last}"

    def check(self, patience: float) -> None:
        """Raise Halted if the breaker has been open for over `patience` s, or at once if no preparation ever worked."""
        limit = policy.longest_pause(patience, self.worked)
        if self.opened is not None and time.monotonic() - self.opened >= limit:
            raise Halted(f"{self.pause}; run the same command again to continue")
