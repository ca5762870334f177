"""The events of a deployment on a node, as its task reports them, and the ways in which the task ends."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from sweep.base.records import TrialProgress
from sweep.plan.plan import Trial


class Placed(NamedTuple):
    """The deployment has begun on a node."""

    node_id: str
    address: str


class State(NamedTuple):
    """The deployment's present activity, in a few words."""

    text: str


class Measuring(NamedTuple):
    """The requests of the trial that runs, so far."""

    progress: TrialProgress


class Note(NamedTuple):
    """A message about the trial that runs, to be known before it is over."""

    text: str


class Stalled(NamedTuple):
    """The node cannot be prepared for an outage; it is retried."""

    reason: str


class Prepared(NamedTuple):
    """The node has all that the engine needs."""


class Unprepared(NamedTuple):
    """The outage has outlasted the patience: the trials have no row."""

    reason: str
    postponed: bool = False  # they get none in this run: the node is prepared, but what the launch needs is not there


class Finished(NamedTuple):
    """A trial has its row."""

    trial: Trial
    row: dict[str, Any]


class Files(NamedTuple):
    """Files of this attempt that the driver cannot see, by their path under `out`."""

    files: Mapping[str, bytes]


class Beat(NamedTuple):
    """A heartbeat: nothing new, but alive."""


class Completed(NamedTuple):
    """The deployment's task ended by itself."""


class Lost(NamedTuple):
    """The deployment's task did not complete: its node or worker was lost, or our own code failed."""

    reason: str  # one line
    error: str | None = None  # the traceback, where our own code failed


class NotStarted(NamedTuple):
    """A living node did not start the deployment: other jobs of the same cluster keep it busy."""

    reason: str  # one line


Event = Placed | State | Measuring | Note | Stalled | Prepared | Unprepared | Finished | Files | Beat
End = Completed | Lost | NotStarted
Emit = Callable[[Event], None]
