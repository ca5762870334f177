"""The circuit breaker: when preparation fails across deployments, nothing is started but a probe."""

import time

from sweep.base.config import Halted
from sweep.base.wording import count, duration_text
from sweep.drive import policy


class Breaker:
    """Notes which preparations fail; open while an outage affects more than one deployment."""

    def __init__(self) -> None:
        self.worked = False  # some preparation in this run has
        self.preparing: set[str] = set()  # keys of launches whose node is not prepared yet; each of them is a probe
        self.failing: dict[str, str] = {}  # deployment -> its last failure, since the last preparation that worked
        self.opened: float | None = None  # monotonic

    def begin(self, launch: str) -> None:
        """Note that a launch was submitted."""
        self.preparing.add(launch)

    def stall(self, launch: str, deployment_id: str, reason: str) -> bool:
        """Note a failure of a launch that tries again; return whether it opens the breaker."""
        self.preparing.add(launch)
        self.failing[deployment_id] = reason
        if self.opened is not None or len(self.failing) < policy.DEPLOYMENTS:
            return False
        self.opened = time.monotonic()
        return True

    def prepared(self, launch: str) -> float | None:
        """Note that a preparation worked; return the seconds for which the breaker was open, if it was."""
        self.preparing.discard(launch)
        opened, self.opened, self.worked = self.opened, None, True
        self.failing.clear()
        return None if opened is None else time.monotonic() - opened

    def end(self, launch: str) -> None:
        """Note the end of a launch's attempt."""
        self.preparing.discard(launch)

    @property
    def most_starts(self) -> int | None:
        """The number of launches that may start now; None for any."""
        if self.opened is None:
            return None
        return 0 if self.preparing else 1

    @property
    def pause(self) -> str | None:
        """The state of an open breaker, in a line; None while it is closed."""
        if self.opened is None:
            return None
        last = list(self.failing.values())[-1]
        duration = duration_text(time.monotonic() - self.opened)
        return f"paused for {duration}, probing: preparation fails for {count(len(self.failing), 'deployment')}: {last}"

    def check(self, patience: float) -> None:
        """Raise Halted if it has been open for too long, and at once if nothing has worked in this run yet."""
        limit = policy.longest_pause(patience, self.worked)
        if self.opened is not None and time.monotonic() - self.opened >= limit:
            raise Halted(f"{self.pause}; run the same command again to continue")
