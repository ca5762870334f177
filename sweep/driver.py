"""The driver: keep every place busy with deployments, and make each trial's row durable when it comes.

The story of a run is `run_plan`. Executors (Ray or inline) only run Work and report; which attempt counts, what is
tried again and when to stop is decided here, from the ledger.
"""

import signal
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType, TracebackType
from typing import Protocol, Self

from sweep import store
from sweep.deployment import Event, Finished, Lost, State, Work, stop_file
from sweep.ledger import Ledger, Row
from sweep.plan import Deployment, Plan
from sweep.progress import Display
from sweep.records import Outcome, Sample
from sweep.store import RunPaths
from sweep.trial import TrialRun, base_row

MAX_LOSSES = 20  # of infrastructure (node, worker), per deployment
WRITE_INTERVAL = 10.0  # s between rewrites of trials.parquet while trials come in


class Executor(Protocol):
    """What runs Work: Ray's cluster, or this process."""

    @property
    def capacity(self) -> int: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def submit(self, work: Work) -> None: ...
    def events(self) -> Iterator[tuple[Work, Event | Lost | None]]: ...
    def stop_now(self) -> None: ...


class Tracker(Protocol):
    """Where trials are tracked besides the files; a fault of it never fails a sweep."""

    def log_trial(self, row: Row, telemetry: Sequence[Sample]) -> None: ...


def todo(plan: Plan, ledger: Ledger) -> list[Deployment]:
    """The deployments with the trials that this run of the command has to do."""
    retry = plan.settings.retry == "once"
    left = [
        replace(deployment, trials=[trial for trial in deployment.trials if not ledger.done(trial.trial_id, retry)])
        for deployment in plan.deployments
    ]
    return [deployment for deployment in left if deployment.trials]


class Driver:
    """One run of one plan in one results folder."""

    def __init__(
        self, plan: Plan, paths: RunPaths, ledger: Ledger, executor: Executor, display: Display, tracker: Tracker | None
    ) -> None:
        self.plan, self.paths, self.ledger = plan, paths, ledger
        self.executor, self.display, self.tracker = executor, display, tracker
        self.waiting = deque(todo(plan, ledger))
        self.running: dict[str, Work] = {}
        self.losses: dict[str, int] = {}  # of infrastructure, by deployment
        self.errors: dict[str, int] = {}  # of our own code
        self.finished: set[str] = set()  # trials that got their row in this run
        self.interrupts = 0
        self.written = time.monotonic()

    def run(self) -> None:
        """Submit what fits, take what comes, until nothing is left or the user wants it to stop."""
        self._leave_out_unavailable()
        with self._signals():
            while self.running or (self.waiting and not self.interrupts):
                while self.waiting and len(self.running) < self.executor.capacity and not self.interrupts:
                    self._submit(self.waiting.popleft())
                for work, event in self.executor.events():
                    self._take(work, event)
                if self.interrupts > 1:
                    self.executor.stop_now()
                    break
        self.write_trials()

    def _leave_out_unavailable(self) -> None:
        """What cannot run here has its rows, with the remedy, before anything starts."""
        for deployment in [deployment for deployment in self.waiting if deployment.unavailable]:
            self.waiting.remove(deployment)
            run = TrialRun(deployment, self.plan.settings, self.paths, "0", tuple(self.plan.axes))
            for trial in deployment.trials:
                row = base_row(run, trial) | {"outcome": Outcome.UNAVAILABLE.value, "reason": deployment.unavailable}
                self.ledger.commit(row)
                self.display.finished(row, f"{deployment.describe()} {trial.describe()}")

    def _submit(self, deployment: Deployment) -> None:
        attempt = self.ledger.begin_attempt(deployment.deployment_id)
        work = Work(deployment, self.plan.settings, str(self.paths.out), attempt, tuple(self.plan.axes))
        self.running[deployment.deployment_id] = work
        self.display.state(deployment.deployment_id, deployment.describe(), "waiting for a place")
        self.executor.submit(work)

    def _take(self, work: Work, event: Event | Lost | None) -> None:
        deployment = work.deployment
        if isinstance(event, State):
            self.display.state(deployment.deployment_id, deployment.describe(), event.text)
        elif isinstance(event, Finished):
            self._commit(work, event)
        else:
            del self.running[deployment.deployment_id]
            self.display.ended(deployment.deployment_id)
            end = "done" if event is None else event.reason
            self.ledger.end_attempt(deployment.deployment_id, work.attempt, end)
            if event is not None and not self.interrupts:
                self._lost(work, event)

    def _commit(self, work: Work, event: Finished) -> None:
        row = event.row
        self.ledger.commit(row)
        self.finished.add(row["trial_id"])
        self.display.finished(row, f"{work.deployment.describe()} {event.trial.describe()}")
        if self.tracker is not None:
            telemetry = self.paths.trial(row["deployment_id"], row["attempt"], row["trial_id"]).telemetry
            self.tracker.log_trial(row, store.read_telemetry(telemetry) if telemetry.exists() else [])
        if time.monotonic() - self.written > WRITE_INTERVAL:
            self.write_trials()

    def _lost(self, work: Work, loss: Lost) -> None:
        """The task is gone: its trials without a row of this run go back in front, within the limits."""
        deployment = work.deployment
        ours = loss.error is not None
        if loss.error is not None:
            traceback = self.paths.attempt(deployment.deployment_id, work.attempt) / "task-error.txt"
            store.write_text(self.paths, traceback, loss.error)
            self.display.say(f"{deployment.describe()}: {loss.reason}; traceback: {traceback}")
        else:
            self.display.say(f"lost {deployment.describe()}: {loss.reason}")
        tally = self.errors if ours else self.losses
        tally[deployment.deployment_id] = tally.get(deployment.deployment_id, 0) + 1
        left = [trial for trial in deployment.trials if trial.trial_id not in self.finished]
        if left and tally[deployment.deployment_id] < (self.plan.settings.attempts if ours else MAX_LOSSES):
            self.waiting.appendleft(replace(deployment, trials=left))
        elif left:
            self._give_up(replace(deployment, trials=left), work.attempt, loss.reason)

    def _give_up(self, deployment: Deployment, attempt: str, reason: str) -> None:
        """No more tries: what is left is invalid, and why is in the row."""
        run = TrialRun(deployment, self.plan.settings, self.paths, attempt, tuple(self.plan.axes))
        for trial in deployment.trials:
            row = base_row(run, trial) | {"outcome": Outcome.INVALID.value, "reason": f"given up after: {reason}"}
            self.ledger.commit(row)
            self.display.finished(row, f"{deployment.describe()} {trial.describe()}")

    def write_trials(self) -> None:
        """trials.parquet: exactly the rows of the present plan, in its order."""
        rows = self.ledger.rows
        present = [rows[trial.trial_id] for trial in self.plan.trials if trial.trial_id in rows]
        store.write_trials(self.paths, present)
        self.written = time.monotonic()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """First SIGINT or SIGTERM: finish the trials that run and stop. Second: stop now."""

        def interrupt(number: int, frame: FrameType | None) -> None:
            self.interrupts += 1
            if self.interrupts == 1:
                self.display.say("stopping after the trials that are running; once more to stop now")
                for work in self.running.values():
                    stop = stop_file(self.paths, work.deployment.deployment_id, work.attempt)
                    stop.parent.mkdir(parents=True, exist_ok=True)
                    stop.touch()

        before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def exit_status(plan: Plan, ledger: Ledger, interrupted: bool) -> int:
    """0; 1 when a trial of the plan failed; 130 when interrupted."""
    if interrupted:
        return 130
    outcomes = [ledger.rows[trial.trial_id]["outcome"] for trial in plan.trials if trial.trial_id in ledger.rows]
    return 1 if any(Outcome(outcome).failed for outcome in outcomes) else 0
