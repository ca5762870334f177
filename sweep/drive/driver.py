"""The driver: keep every place busy with deployments, and make each trial's row durable when it comes.

The story of a run is `Driver.run`. Executors (Ray or inline) only run Work and report; which attempt counts, what is
tried again and when to stop is decided here, from the ledger.
"""

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from types import FrameType, TracebackType
from typing import Protocol, Self

from sweep.config import Halted, next_time
from sweep.disk import run_files
from sweep.disk.ledger import Ledger, Row
from sweep.disk.run_files import RunPaths
from sweep.drive import transfer
from sweep.drive.node_health import NodeRecord
from sweep.drive.progress import Display
from sweep.drive.status import Teller, last_words
from sweep.node.deployment import Event, Files, Finished, Lost, Placed, State, Work
from sweep.node.trial import TrialRun, present_row, unmeasured_row
from sweep.plan.estimate import History, kind_of, times
from sweep.plan.packing import Kind, Need, Node, Packer, Unbegun, infeasible
from sweep.plan.pending import todo
from sweep.plan.plan import Deployment, Plan, Trial
from sweep.records import Outcome, Sample
from sweep.wording import count

MAX_LOSSES = 20  # of infrastructure (node, worker), per deployment
LAST_RESORT = 240.0  # s until a node set aside gets what no other can hold; longer than any back-off
SAME_DEADLINE = 12 * 3600.0  # s for which a time of day that has come is not the next day's
WRITE_INTERVAL = 10.0  # s between rewrites of trials.parquet while trials come in
WRITE_SHARE = 0.02  # of the driver's time, at most, for those
NODE_FAULTS = (Outcome.LAUNCH_FAILED, Outcome.LAUNCH_TIMEOUT, Outcome.ENGINE_CRASHED, Outcome.HUNG)  # may be a node's


class Executor(Protocol):
    """What runs Work: Ray's cluster, or this process."""

    @property
    def usable(self) -> Sequence[Node]: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def clear(self, marker: str) -> None: ...
    def spare(self, node_ids: set[str]) -> bool: ...
    def want(self, needs: Sequence[Need]) -> None: ...
    def submit(self, work: Work, node_id: str) -> None: ...
    def events(self) -> Iterator[tuple[Work, Event | Lost | Unbegun | None]]: ...
    def observe(self, row: Row) -> None: ...
    def stop_soon(self) -> None: ...
    def stop_now(self) -> None: ...


class Tracker(Protocol):
    """Where trials are tracked besides the files; a fault of it never fails a sweep."""

    def log_trial(self, row: Row, telemetry: Sequence[Sample]) -> None: ...


class Driver:
    """One run of one plan in one results folder."""

    def __init__(
        self,
        plan: Plan,
        paths: RunPaths,
        ledger: Ledger,
        executor: Executor,
        display: Display,
        tracker: Tracker | None,
        history: History | None = None,
    ) -> None:
        self.plan, self.paths, self.ledger = plan, paths, ledger
        self.executor, self.display, self.tracker = executor, display, tracker
        self.history = history or History([])
        self.waiting = {deployment.deployment_id: deployment for deployment in todo(plan, ledger)}
        self.wanted = {trial.trial_id for deployment in self.waiting.values() for trial in deployment.trials}
        expected = times(self.waiting.values(), self.history, plan.settings.hardware)
        self.needs = {need.key: need for need in expected.needs}
        self.packer = Packer(need for need in expected.needs if not self.waiting[need.key].unavailable)
        self.stranded: dict[Kind, float] = {}  # since when no node, but for those set aside, could hold it, monotonic
        self.running: dict[str, Work] = {}
        self.places: dict[str, Placed] = {}  # deployment -> where its present attempt is, or the last one was
        self.known: dict[str, Node] = {}  # every node that was ever usable, by id
        self.unbegun: dict[str, float] = {}  # deployment -> since when nodes have not begun it, monotonic
        self.losses: dict[str, int] = {}  # of infrastructure, by deployment
        self.errors: dict[str, int] = {}  # of our own code
        self.rewritten = False  # trials.parquet, in this run
        self.finished: set[str] = set()  # trials that got their row in this run and are not to be tried again
        self.with_row: set[str] = set()  # trials that got one in this run, if only of a try that failed
        self.teller = Teller(paths, display)
        self.nodes = NodeRecord()
        self.moved: set[str] = set()  # deployments that were given another try for their node's sake
        self.set_aside: set[str] = set()  # node ids
        self.interrupts = 0  # by the user
        self.write_after = time.monotonic() + WRITE_INTERVAL
        self.deadline = self._deadline(plan.settings.deadline)
        self.overdue = self.deadline is not None and time.time() > self.deadline  # the deadline has come

    def _deadline(self, text: str | None) -> float | None:
        """The instant that `deadline` means, s since the epoch.

        A time of day that came in the run before this one is over for some hours: a loop that issues the command until
        it ends well is not to go on for a day.
        """
        if text is None:
            return None
        before = (last_words(self.paths) or {}).get("deadline") or {}
        if before.get("text") == text and 0 <= time.time() - before["at"] < SAME_DEADLINE:
            return float(before["at"])
        return next_time(text, datetime.now()).timestamp()

    @property
    def left(self) -> int:
        """Trials of this run that got no row, for want of time or because the user stopped it."""
        return len(self.wanted - self.with_row)

    @property
    def _haste(self) -> int:
        """0: go on. 1: let the trials that run end and start no other. 2: stop now."""
        return 2 if self.overdue else min(self.interrupts, 2)

    def run(self) -> None:
        """Submit what fits, take what comes, until nothing is left or the user wants it to stop.

        Raises:
            Halted: if the sweep cannot go on; every row that came is safe.
        """
        try:
            self._leave_out_unavailable()
            self.executor.clear(self.ledger.run)
            with self._signals():
                self._loop()
            self.write_trials()
            self._tell(ended=True)
        except Halted:
            with suppress(OSError):  # what is raised below says what is wrong; the rows are in the ledger
                self.write_trials()
            raise
        except OSError as error:  # the results folder cannot be written any more: the disk is full, or gone
            words = os.strerror(error.errno) if error.errno else str(error)
            raise Halted(f"{words}: {error.filename or self.paths.out}") from error

    def _loop(self) -> None:
        stopping = False
        if self.deadline and self.overdue and self.waiting:
            text = f"deadline={self.plan.settings.deadline}: that was {datetime.fromtimestamp(self.deadline):%F %R}"
            self.display.say(f"{text}, and nothing is started: give another time, or a date with it")
        while self.running or (self.waiting and not self._haste):
            if not self._haste:
                self._start_what_fits()
            for work, event in self.executor.events():
                self._take(work, event)
            self._tell()
            if self.deadline and not self.overdue and time.time() > self.deadline:
                self.overdue = True
                if self.running:
                    self.display.say("the deadline has come: what still runs is stopped and left for the next run")
            if self._haste and not stopping:
                stopping = True
                self.executor.stop_soon()
                if self._haste == 1:
                    self.display.say("stopping after the trials that are running; once more to stop now")
            if self._haste == 2:
                self._stop_now()

    def _tell(self, ended: bool = False) -> None:
        deadline = {"text": self.plan.settings.deadline, "at": self.deadline} if self.deadline else None
        places = {key: self.places[key].address for key in self.running if key in self.places}
        self.teller.tell(places, self._haste > 0, ended, deadline)

    def _start_what_fits(self) -> None:
        usable = self.executor.usable
        self.known |= {node.node_id: node for node in usable}
        nodes = [node for node in usable if node.node_id not in self.set_aside]
        for deployment_id, node_id in self.packer.start(nodes):
            self._submit(self.waiting.pop(deployment_id), node_id)
        self.executor.want(self.packer.ahead(nodes))
        self._see_to_stranded(nodes, [node for node in usable if node.node_id in self.set_aside])

    def _see_to_stranded(self, nodes: Sequence[Node], aside: Sequence[Node]) -> None:
        """What none of the nodes can hold waits for one that can, then for one set aside, and is given up at last."""
        if not nodes and not aside:
            self.stranded.clear()
            return  # for now; the executor halts the sweep when there is none for long
        now = time.monotonic()
        kinds = {need.kind for need in self.packer.heads() if infeasible(need, nodes)}
        self.stranded = {kind: self.stranded.get(kind, now) for kind in kinds}
        limit = self.plan.settings.cluster.wait_for_nodes
        patience = min(limit, LAST_RESORT) if self.executor.spare(self.set_aside) else 0.0
        waited = {kind for kind, since in self.stranded.items() if now - since >= patience}
        for key, node_id in self.packer.start(aside, waited):
            address = self.known[node_id].address
            self.display.say(f"{self.waiting[key].describe()}: for want of others on {address}, which is set aside")
            self._submit(self.waiting.pop(key), node_id)
        usable = [*nodes, *aside]
        given_up = [need for need in self.packer.stranded(usable) if now - self.stranded[need.kind] > limit]
        self.packer.drop(given_up)
        for need in given_up:
            reason = f"waited {limit / 60:.0f} min: {infeasible(need, usable)}"
            self._end_unavailable(replace(self.waiting.pop(need.key), unavailable=reason))

    def _again(self, deployment: Deployment) -> None:
        """Before all others."""
        if deployment.deployment_id not in self.waiting:
            self.packer.put_back(self.needs[deployment.deployment_id])
        self.waiting[deployment.deployment_id] = deployment

    def _stop_now(self) -> None:
        self.executor.stop_now()
        for deployment_id, work in self.running.items():
            self.ledger.end_attempt(deployment_id, work.attempt, "stopped")
        self.running.clear()

    def _leave_out_unavailable(self) -> None:
        """What cannot run here has its rows, with the remedy, before anything starts."""
        for deployment in [deployment for deployment in self.waiting.values() if deployment.unavailable]:
            self._end_unavailable(self.waiting.pop(deployment.deployment_id))

    def _end_unavailable(self, deployment: Deployment) -> None:
        """A trial that was tried before and failed keeps that row: it says more, and has a log."""
        failed = {t.trial_id for t in deployment.trials if (outcome := self._outcome(t)) and outcome.failed}
        self.finished |= failed
        self.with_row |= failed
        self.display.done += len(failed)
        others = [trial for trial in deployment.trials if trial.trial_id not in failed]
        self._end(replace(deployment, trials=others), "0", Outcome.UNAVAILABLE, deployment.unavailable)

    def _end(self, deployment: Deployment, attempt: str, outcome: Outcome, reason: str | None) -> None:
        """Give the trials of a deployment that will not run their rows, with the reason."""
        run = TrialRun(deployment, self.plan.settings, self.paths, attempt, tuple(self.plan.axes))
        for trial in deployment.trials:
            row = unmeasured_row(run, trial, outcome, reason)
            self._keep(row)
            self.display.finished(row, f"{deployment.describe()} {trial.describe()}")

    def _keep(self, row: Row) -> None:
        self.ledger.commit(row)
        self.finished.add(row["trial_id"])
        self.with_row.add(row["trial_id"])
        if self.tracker is not None and row["outcome"] != Outcome.UNAVAILABLE:  # thousands, of which nothing is known
            self.tracker.log_trial(row, self._telemetry(row))

    def _submit(self, deployment: Deployment, node_id: str) -> None:
        expected = self._expected(deployment)
        launch = self.history.launch(deployment) or 0.0
        if self.deadline and time.time() + launch + min(expected.values(), default=0.0) > self.deadline:
            self.display.say(
                f"not before the deadline: {deployment.describe()}, {count(len(deployment.trials), 'trial')}"
            )
            self.packer.ended(deployment.deployment_id)
            return
        self.places.pop(deployment.deployment_id, None)
        attempt = self.ledger.begin_attempt(deployment.deployment_id)
        work = Work(
            deployment,
            self.plan.settings,
            str(self.paths.out),
            attempt,
            tuple(self.plan.axes),
            self.ledger.run,
            self.deadline,
            expected,
        )
        self.running[deployment.deployment_id] = work
        self.display.state(deployment.deployment_id, deployment.describe(), "waiting for a place")
        transfer.mark(work)
        self.executor.submit(work, node_id)

    def _expected(self, deployment: Deployment) -> dict[str, float]:
        """What each trial took in earlier runs, s, by id; only where there is a deadline to keep."""
        if self.deadline is None:
            return {}
        hardware = self.plan.settings.hardware
        return {
            trial.trial_id: self.history.trial(kind_of(deployment, trial, hardware)) or 0.0
            for trial in deployment.trials
        }

    def _take(self, work: Work, event: Event | Lost | Unbegun | None) -> None:
        deployment = work.deployment
        if isinstance(event, Placed):
            self.places[deployment.deployment_id] = event
            self.unbegun.pop(deployment.deployment_id, None)
            self.ledger.place_attempt(deployment.deployment_id, work.attempt, event.address)
        elif isinstance(event, State):
            self.display.state(deployment.deployment_id, deployment.describe(), event.text)
        elif isinstance(event, Files):
            transfer.receive(self.paths, work, event)
        elif isinstance(event, Finished):
            self._commit(work, event)
        elif event is None or isinstance(event, Lost | Unbegun):
            del self.running[deployment.deployment_id]
            self.packer.ended(deployment.deployment_id)
            self.display.ended(deployment.deployment_id)
            end = "done" if event is None else event.reason
            self.ledger.end_attempt(deployment.deployment_id, work.attempt, end)
            if isinstance(event, Lost) and not self._haste:
                self._lost(work, event)
            elif isinstance(event, Unbegun) and not self._haste:
                self._not_begun(work, event)
            self._judge_nodes()

    def _commit(self, work: Work, event: Finished) -> None:
        row = event.row
        self._keep(row)
        self.executor.observe(row)
        self.display.finished(row, f"{work.deployment.describe()} {event.trial.describe()}")
        place = self.places.get(work.deployment.deployment_id)
        if place and row["outcome"] in NODE_FAULTS:
            self.nodes.failure(work.deployment.deployment_id, place.node_id)
        elif place and row["outcome"] == Outcome.OK:
            self.nodes.success(place.node_id)
        if time.monotonic() > self.write_after:
            self.write_trials()

    def _telemetry(self, row: Row) -> list[Sample]:
        path = self.paths.trial(row["deployment_id"], row["attempt"], row["trial_id"]).telemetry
        try:
            return run_files.read_telemetry(path)
        except (FileNotFoundError, run_files.DamagedFile):
            return []  # a trial that was not measured has none; a damaged one is told by whoever analyses it

    def _judge_nodes(self) -> None:
        """Set bad nodes aside, and take those back that turn out not to be; what failed there is tried elsewhere."""
        bad = self.nodes.bad()
        for node_id in self.set_aside - bad:
            self.display.say(f"node {self.known[node_id].address} is used again: it is no worse than others")
        self.set_aside &= bad
        for node_id in bad - self.set_aside:
            if self.executor.spare(self.set_aside | {node_id}):
                words = f"{len(self.nodes.blamed(node_id))} different deployments failed there"
                self.display.say(f"node {self.known[node_id].address} is set aside: {words}")
                self.set_aside.add(node_id)
        for node_id in self.set_aside:
            self._move_away(node_id)

    def _move_away(self, node_id: str) -> None:
        """What failed on a node that is set aside has another try, once, as soon as it does not run there any more."""
        due = set(self.nodes.blamed(node_id)) - self.moved - self.running.keys()
        self.moved |= due
        for deployment in [one for one in self.plan.deployments if one.deployment_id in due] if due else []:
            ours = [trial for trial in deployment.trials if trial.trial_id in self.wanted]
            failed = {t.trial_id for t in ours if t.trial_id in self.finished and self._outcome(t) in NODE_FAULTS}
            self.finished -= failed
            self.display.done -= len(failed)
            if left := [trial for trial in ours if trial.trial_id not in self.finished]:
                self._again(replace(deployment, trials=left))

    def _outcome(self, trial: Trial) -> Outcome | None:
        """Of its latest try."""
        row = self.ledger.rows.get(trial.trial_id)
        return Outcome(row["outcome"]) if row else None

    def _not_begun(self, work: Work, event: Unbegun) -> None:
        """Other jobs keep a node busy: no loss. It is tried elsewhere, for as long as one waits for nodes."""
        deployment, limit = work.deployment, self.plan.settings.cluster.wait_for_nodes
        self.display.say(f"{deployment.describe()}: {event.reason}")
        now = time.monotonic()
        if now - self.unbegun.setdefault(deployment.deployment_id, now) <= limit:
            self._again(deployment)
        else:
            self._end_unavailable(replace(deployment, unavailable=f"waited {limit / 60:.0f} min: {event.reason}"))

    def _lost(self, work: Work, loss: Lost) -> None:
        """The task is gone: its trials without a row of this run go back in front, within the limits."""
        deployment = work.deployment
        ours = loss.error is not None
        if loss.error is not None:
            traceback = self.paths.attempt(deployment.deployment_id, work.attempt) / "task-error.txt"
            run_files.write_text(self.paths, traceback, loss.error)
            self.display.say(f"{deployment.describe()}: {loss.reason}; traceback: {traceback}")
        else:
            self.display.say(f"lost {deployment.describe()}: {loss.reason}")
        tally = self.errors if ours else self.losses
        tally[deployment.deployment_id] = tally.get(deployment.deployment_id, 0) + 1
        left = [trial for trial in deployment.trials if trial.trial_id not in self.finished]
        if deployment.deployment_id in self.places:
            left = left[1:] + left[:1]  # the trial that ran may be what ends the worker each time: others come first
        if left and tally[deployment.deployment_id] < (self.plan.settings.attempts if ours else MAX_LOSSES):
            self._again(replace(deployment, trials=left))
        elif left:
            given_up = replace(deployment, trials=left)
            self._end(given_up, work.attempt, Outcome.INVALID, f"given up after: {loss.reason}")

    def write_trials(self) -> None:
        """trials.parquet: exactly the rows of the present plan, in its order."""
        begin = time.monotonic()
        settings, axes, schema = self.plan.settings, self.plan.axes, run_files.trial_schema()
        rows = [
            present_row(row, deployment.backend, trial, settings, axes)
            for deployment in self.plan.deployments
            for trial in deployment.trials
            if (row := self.ledger.rows.get(trial.trial_id)) is not None
        ]
        if not run_files.holds(self.paths, rows, [axis for axis in axes if axis not in schema]):
            run_files.write_trials(self.paths, rows)
            self.rewritten = True
        now = time.monotonic()
        self.write_after = now + max(WRITE_INTERVAL, (now - begin) / WRITE_SHARE)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """First SIGINT or SIGTERM: finish the trials that run and stop. Second: stop now."""

        def interrupt(number: int, frame: FrameType | None) -> None:
            self.interrupts += 1  # the loop acts on it: next to nothing is safe in here

        before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def exit_status(plan: Plan, ledger: Ledger, interrupted: bool, left: int = 0) -> int:
    """0; 1 when a trial of the plan failed, or some were left for want of time; 130 when interrupted."""
    if interrupted:
        return 130
    outcomes = [ledger.rows[trial.trial_id]["outcome"] for trial in plan.trials if trial.trial_id in ledger.rows]
    return 1 if left or any(Outcome(outcome).failed for outcome in outcomes) else 0
