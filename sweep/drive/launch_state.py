"""The state of one launch of a deployment in a run: its stage, its pending trials, and the transitions between stages.

TRANSITIONS is complete: it maps each stage and trigger to the next stage and the action that the driver carries out.
This module uses no executors, clocks or files: the driver passes in the time and the limits.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto

from sweep.base.records import Outcome
from sweep.drive.policy import FAILED
from sweep.node.events import Placed, Unprepared
from sweep.plan.plan import Deployment, Trial


class Stage(Enum):
    """The stage of a launch."""

    PENDING = auto()  # waits for a free slot
    SUBMITTED = auto()  # assigned to a node that has not started it yet
    RUNNING = auto()
    DONE = auto()  # its last attempt ended normally
    POSTPONED = auto()  # left for the next run
    GIVEN_UP = auto()  # lost too many times
    UNAVAILABLE = auto()  # no node can run it

    @property
    def active(self) -> bool:
        """Return whether an attempt is in flight."""
        return self in (Stage.SUBMITTED, Stage.RUNNING)


class Trigger(Enum):
    """An event that causes a transition."""

    SUBMIT = auto()
    START = auto()
    COMPLETE = auto()
    RETRY = auto()  # the attempt was lost or not started
    GIVE_UP = auto()  # the attempt was lost, and the limit is reached
    UNPREPARED = auto()  # the node could not be prepared because of an outage that lasts
    UNSCHEDULABLE = auto()  # no node could run the launch within the waiting time
    POSTPONE = auto()  # the deadline is too near, or the user stops the run
    REOPEN = auto()  # failed trials are retried: elsewhere once their node is quarantined, else at the end of the run


class Action(Enum):
    """The driver's action for a transition."""

    NOTHING = auto()
    REQUEUE = auto()  # put the launch before all other launches
    RECORD_INVALID = auto()  # commit a row for each pending trial
    RECORD_UNAVAILABLE = auto()
    RECORD_LAUNCH_FAILED = auto()


ENDED = (Stage.DONE, Stage.POSTPONED, Stage.GIVEN_UP, Stage.UNAVAILABLE)
TRANSITIONS: Mapping[tuple[Stage, Trigger], tuple[Stage, Action]] = {
    (Stage.PENDING, Trigger.SUBMIT): (Stage.SUBMITTED, Action.NOTHING),
    (Stage.PENDING, Trigger.COMPLETE): (Stage.DONE, Action.NOTHING),  # other launches settled its outcomes
    (Stage.PENDING, Trigger.POSTPONE): (Stage.POSTPONED, Action.NOTHING),
    (Stage.PENDING, Trigger.UNSCHEDULABLE): (Stage.UNAVAILABLE, Action.RECORD_UNAVAILABLE),
    (Stage.PENDING, Trigger.REOPEN): (Stage.PENDING, Action.NOTHING),
    (Stage.SUBMITTED, Trigger.START): (Stage.RUNNING, Action.NOTHING),
    (Stage.SUBMITTED, Trigger.UNSCHEDULABLE): (Stage.UNAVAILABLE, Action.RECORD_UNAVAILABLE),
    **{
        (stage, trigger): after
        for stage in (Stage.SUBMITTED, Stage.RUNNING)
        for trigger, after in {
            Trigger.COMPLETE: (Stage.DONE, Action.NOTHING),
            Trigger.RETRY: (Stage.PENDING, Action.REQUEUE),
            Trigger.GIVE_UP: (Stage.GIVEN_UP, Action.RECORD_INVALID),
            Trigger.UNPREPARED: (Stage.DONE, Action.RECORD_LAUNCH_FAILED),
            Trigger.POSTPONE: (Stage.POSTPONED, Action.NOTHING),
        }.items()
    },
    **{(stage, Trigger.REOPEN): (Stage.PENDING, Action.REQUEUE) for stage in ENDED},
}


@dataclass
class LaunchState:
    """A launch with its trials in this run, its attempts so far and their rows."""

    launch: Deployment  # a deployment with only this launch's trials
    stage: Stage = Stage.PENDING
    attempt: str = "0"  # number of the last attempt
    node: Placed | None = None  # where the last attempt started
    not_started_since: float | None = None  # monotonic
    losses: int = 0  # losses of nodes and workers
    errors: int = 0  # errors in sweep's own code
    retried: set[str] = field(default_factory=set)  # failed trials that have had their one retry
    failed_on: set[str] = field(default_factory=set)  # ids of the nodes on which trials failed
    outcomes: dict[str, Outcome] = field(default_factory=dict)  # outcomes of trials that have a row in this run, by id
    unprepared: Unprepared | None = None  # the end of the last attempt, if its outage outlasted the patience
    reopened: set[str] = field(default_factory=set)  # trials to retry although they have a row
    order: list[Trial] = field(default_factory=list)  # order of the trials in the next attempt

    def __post_init__(self) -> None:
        self.order = list(self.launch.trials)

    def advance(self, trigger: Trigger) -> Action:
        """Enter the next stage and return the action, which the caller carries out.

        Raises ValueError if the trigger cannot occur in this stage.
        """
        if (self.stage, trigger) not in TRANSITIONS:
            raise ValueError(f"{self.launch.launch_key}: {trigger.name} in stage {self.stage.name}")
        self.stage, action = TRANSITIONS[self.stage, trigger]
        return action

    @property
    def pending_trials(self) -> list[Trial]:
        """The trials without a final row, in the order in which they will run."""
        return [t for t in self.order if t.trial_id not in self.outcomes or t.trial_id in self.reopened]

    @property
    def trials_without_row(self) -> int:
        """The number of trials that got no row in this run."""
        return len(self.launch.trials) - len(self.outcomes)

    def ran_out_of_memory(self, trial: Trial) -> bool:
        """Return whether a trial of this launch ran out of memory under load."""
        return self.outcomes.get(trial.trial_id) is Outcome.OOM_RUN

    def finish(self, trial_id: str, outcome: Outcome) -> None:
        """Record that a trial has a row with this outcome."""
        self.outcomes[trial_id] = outcome
        if outcome in FAILED and self.node is not None:
            self.failed_on.add(self.node.node_id)
        self.reopened.discard(trial_id)

    def submitted(self, attempt: str) -> None:
        """Begin an attempt."""
        self.advance(Trigger.SUBMIT)
        self.attempt, self.node, self.unprepared = attempt, None, None

    def started(self, node: Placed) -> None:
        """Record the node on which the attempt started."""
        self.advance(Trigger.START)
        self.node, self.not_started_since = node, None

    def lost(self, in_our_code: bool, limit: int) -> Action:
        """Handle a lost attempt: retry it, unless this is the `limit`-th loss of its kind or every trial has a row."""
        self.errors += in_our_code
        self.losses += not in_our_code
        self.order = self.pending_trials
        if self.node is not None:  # the trial that was running may kill the worker each time, so it is retried last
            self.order = self.order[1:] + self.order[:1]
        if not self.order:
            return self.advance(Trigger.COMPLETE)
        return self.advance(Trigger.RETRY if (self.errors if in_our_code else self.losses) < limit else Trigger.GIVE_UP)

    def ended(self, breaker_open: bool) -> Action:
        """Handle an attempt that ended by itself. If its preparation failed, retry as long as the breaker is open."""
        if self.unprepared is None or not self.pending_trials:
            return self.advance(Trigger.COMPLETE)
        if breaker_open:
            return self.advance(Trigger.RETRY)
        return self.advance(Trigger.POSTPONE if self.unprepared.postponed else Trigger.UNPREPARED)

    def not_started(self, now: float, patience: float) -> Action:
        """Handle an attempt that its node did not start: retry for `patience` s since the first such attempt."""
        if self.not_started_since is None:
            self.not_started_since = now
        return self.advance(Trigger.RETRY if now - self.not_started_since <= patience else Trigger.UNSCHEDULABLE)

    def reopen(self, retried: Callable[[str, Outcome], bool]) -> tuple[set[str], Action]:
        """Retry the trials for which `retried(id, outcome)` is true, each once; return them and the action.

        Of a search only its first probe is retried, with which it begins again.
        """
        if self.stage.active:
            return set(), Action.NOTHING
        planned = self.launch.searched or {trial.trial_id for trial in self.launch.trials}
        ended = [(trial_id, outcome) for trial_id, outcome in self.outcomes.items() if trial_id in planned]
        failed = {
            trial_id for trial_id, outcome in ended if trial_id not in self.retried and retried(trial_id, outcome)
        }
        if not failed:
            return failed, Action.NOTHING
        self.reopened |= failed
        self.retried |= failed
        self.order = [trial for trial in self.launch.trials if trial.trial_id in planned]
        return failed, self.advance(Trigger.REOPEN)
