"""The events that a deployment's task reports from its node, and the ways in which the task can end."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from sweep.base.exits import Exit
from sweep.base.records import TrialProgress
from sweep.drive.policy import Failure
from sweep.plan.plan import Trial


class Placed(NamedTuple):
    """The deployment has started on a node."""

    node_id: str
    address: str


class State(NamedTuple):
    """The deployment's current activity, in a few words."""

    text: str


class Measuring(NamedTuple):
    """The progress of the running trial's requests."""

    progress: TrialProgress


class Note(NamedTuple):
    """A message about the running trial, shown while it runs."""

    text: str


class Stalled(NamedTuple):
    """The node cannot be prepared because of an outage; preparation is retried."""

    reason: str


class Prepared(NamedTuple):
    """The node has everything that the engine needs."""


class Unprepared(NamedTuple):
    """The outage has outlasted the patience: the trials get no row."""

    reason: str
    postponed: bool = False  # whether the node is prepared, but a port, memory or the endpoint is unavailable


class Finished(NamedTuple):
    """A trial has ended; its row is attached."""

    trial: Trial
    row: dict[str, Any]


class Proposed(NamedTuple):
    """A search on this launch begins a trial that was not planned."""

    trial: Trial
    seconds: float = 0.0  # that the launch's searches still take


class Claimed(NamedTuple):
    """A search on this launch has ended."""

    name: str  # of its point
    record: dict[str, Any]  # as in capacity.json


class Files(NamedTuple):
    """Files of this attempt that the driver cannot see, by their path under `out`."""

    files: Mapping[str, bytes]


class EngineEnd(NamedTuple):
    """How an engine on a partner ended."""

    reason: str
    exit: Exit
    log_tail: str


class HeldEngine(NamedTuple):
    """A partner's engine: its URL for the leader, and its state."""

    url: str
    command: list[str]
    startup_seconds: float
    cold_ttft: float | None
    on_gpus: bool  # whether it appears on its GPUs
    log_position: int = 0
    log_left_out: int = 0
    out_of_memory_at: int = 0  # log position of the report that found the last message about memory
    ended: EngineEnd | None = None


class Leased(NamedTuple):
    """A partner holds the lease on its GPUs."""


class Held(NamedTuple):
    """A partner's report to its leader: its engines, and its GPUs' telemetry as (series, device, value)."""

    engines: tuple[HeldEngine, ...]
    readings: tuple[tuple[str, str, float], ...]


class Beat(NamedTuple):
    """A heartbeat: nothing has changed, but the task is alive."""


class Completed(NamedTuple):
    """The deployment's task ended normally."""


class Lost(NamedTuple):
    """The deployment's task did not complete: its node or worker was lost, or this project's code failed."""

    reason: str  # one line
    error: str | None = None  # the traceback, if this project's code failed


class NotStarted(NamedTuple):
    """A living node did not start the deployment because it is busy with other jobs of the same cluster."""

    reason: str  # one line


Event = (
    Placed | State | Measuring | Note | Stalled | Prepared | Unprepared | Finished | Files | Beat | Proposed | Claimed
)
End = Completed | Lost | NotStarted
PartnerEvent = Event | Leased | Held | Failure  # of a partner: a Failure is its last
Emit = Callable[[Event], None]
