"""The driver: keeps every node busy with launches, and stores each trial's row durably as it arrives.

`Driver.run` is the course of a run. Executors (Ray or inline) only run Work and report its events; each launch's
`LaunchState` decides on retries, and the driver carries out its decisions.
"""

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from datetime import datetime
from typing import Any, NamedTuple, Protocol

from sweep.base.config import Halted
from sweep.base.exits import Cause, Exit
from sweep.base.masking import masked_here
from sweep.base.records import Outcome
from sweep.base.wording import count, duration_text
from sweep.cluster import transfer
from sweep.cluster.breaker import Breaker
from sweep.cluster.node_health import NodeHealth
from sweep.disk import run_files
from sweep.disk.ledger import Ledger, LedgerRow, Misplaced
from sweep.disk.run_files import RunPaths
from sweep.drive import policy
from sweep.drive.launch_state import ENDED, Action, LaunchState, Stage, Trigger
from sweep.drive.monitor.forecast import Forecast
from sweep.drive.monitor.progress import Display, Usage
from sweep.drive.monitor.status import StatusWriter
from sweep.drive.monitor.totals import TotalsWriter
from sweep.drive.row_writer import RowWriter, TrialTracker
from sweep.drive.stop_control import StopControl, StopLevel, job_end, user_deadline
from sweep.node.events import (
    Claimed,
    Completed,
    End,
    Event,
    Files,
    Finished,
    Lost,
    Measuring,
    Note,
    NotStarted,
    Placed,
    Prepared,
    Proposed,
    Stalled,
    State,
    Unprepared,
)
from sweep.node.work import Work
from sweep.plan.estimate import Expected
from sweep.plan.packing import LOOKAHEAD, Need, Node, Packer, SlotKind, Start, infeasible
from sweep.plan.pending import PendingWork
from sweep.plan.plan import Deployment, Plan, Trial, hourly_price

METER_INTERVAL = 1.0  # s between two updates of the usage


class Executor(AbstractContextManager["Executor", None], Protocol):
    """The interface of a place to run Work: a Ray cluster, or this process."""

    @property
    def schedulable_nodes(self) -> Sequence[Node]: ...
    def clean_up(self, marker: str) -> None: ...
    def has_nodes_besides(self, node_ids: set[str]) -> bool: ...
    def request_capacity(self, needs: Sequence[Need], left: Sequence[Node]) -> None: ...
    def submit(self, work: Work, node_id: str, partners: Sequence[str]) -> None: ...
    def events(self) -> Iterator[tuple[Work, Event | End]]: ...
    def export_metrics(self, row: LedgerRow) -> None: ...
    def drain(self) -> None: ...
    def cancel(self) -> None: ...


class RunningRace(Protocol):
    """The interface of a race, which drops trials that the answer does not need."""

    @property
    def dropped(self) -> Mapping[str, str]: ...  # trial -> reason
    def settle(self, trial_ids: Iterable[str]) -> bool: ...  # whether it dropped further trials


class RunningSearch(Protocol):
    """The interface of a search, which chooses launches while others run."""

    @property
    def done(self) -> bool: ...  # whether it needs no further launch
    def ask(self, has_room: Callable[[Need], bool]) -> tuple[Deployment, Expected] | None: ...
    def wanted(self, most: int) -> list[Need]: ...  # of the launches that it would begin with free nodes
    def waiting(self) -> list[Need]: ...  # of all launches that have not begun, with their expected durations, if known
    def settle(self, trial_ids: Iterable[str]) -> str | None: ...  # what the rows so far say, if that is new
    def hear(self, launch: Deployment, event: Proposed | Claimed | End) -> str | None: ...  # End: is not started again


class RunResult(NamedTuple):
    """The result of a run that was not halted."""

    interrupted: bool  # whether the user interrupted it
    unfinished: int  # trials that got no row in this run
    table_changed: bool  # whether trials.parquet was rewritten


class Driver:
    """One run of one plan in one results folder."""

    def __init__(
        self,
        plan: Plan,
        pending: PendingWork,
        paths: RunPaths,
        ledger: Ledger,
        executor: Executor,
        display: Display,
        tracker: TrialTracker | None,
        race: RunningRace | None = None,
        search: RunningSearch | None = None,
    ) -> None:
        self.plan, self.paths, self.ledger, self.race, self.search = plan, paths, ledger, race, search
        self.asking = search is not None  # until a launch is postponed
        self.executor, self.display = executor, display
        self.rows = RowWriter(plan, paths, ledger, display, tracker)
        self.expected = pending.estimate.expected
        self.states = {launch.launch_key: LaunchState(launch) for launch in pending.launches}
        self.by_deployment: dict[str, list[LaunchState]] = defaultdict(list)
        for state in self.states.values():
            self.by_deployment[state.launch.deployment_id].append(state)
        self.packer = Packer(self.expected.needs)
        self.ended: list[str] = []  # trials with a row that the race has not seen yet
        self.requeued: list[LaunchState] = []  # launches likewise
        self.nodes = NodeHealth()
        self.forecast = Forecast(self.expected)
        self.spent, self.metered = 0.0, time.monotonic()  # USD spent in this run, and when that was last updated
        self.priced = any(hourly_price(launch.backend, plan.settings.hardware) for launch in pending.launches)
        self.breaker = Breaker()
        self.unschedulable_since: dict[SlotKind, float] = {}  # monotonic time since when no healthy node fits
        self.stop = StopControl(user_deadline(plan.settings.deadline, paths, display.log), job_end())
        self.status = StatusWriter(paths, display)
        self.totals = TotalsWriter(plan, paths, ledger)

    def run(self) -> RunResult:
        """Run the pending work until none remains or the run has to stop.

        Raises Halted if the sweep cannot continue; all rows so far are safe.
        """
        try:
            for state in self.states.values():
                if state.launch.unavailable:
                    self._carry_out(state, state.advance(Trigger.UNSCHEDULABLE), state.launch.unavailable)
            self._settle()
            self._drop(self.states.values())  # what the rows of earlier runs decide
            self.executor.clean_up(self.ledger.run)
            with self.stop.signals():
                self._loop()
            self.rows.write_table()
            self._write_status(ended=True)
        except Misplaced:
            raise
        except Halted:
            with suppress(OSError, Misplaced):  # the error raised below names the cause; the rows are in the ledger
                self.rows.write_table()
            raise
        except OSError as error:  # the results folder cannot be written: its disk is full or disconnected
            self.ledger.check_in_place()
            problem = os.strerror(error.errno) if error.errno else str(error)
            raise Halted(f"{problem}: {error.filename or self.paths.out}") from error
        unfinished = sum(state.trials_without_row for state in self.states.values())
        if self.search is not None and not self.search.done:
            unfinished = max(1, unfinished)
        return RunResult(self.stop.interrupts > 0, unfinished, self.rows.changed)

    def _loop(self) -> None:
        level = self.stop.level
        if self.stop.deadline and self.stop.overdue and len(self.packer):
            passed = datetime.fromtimestamp(self.stop.deadline).strftime("%F %R")
            cause, remedy = f"deadline={self.plan.settings.deadline}", "set a later one, or add a date"
            if self.stop.deadline != self.stop.user_deadline:
                cause, remedy = "the time of this batch job", "submit it again to continue"
            self.display.log(f"{cause} passed at {passed}: no more trials are started; {remedy}")
        if level is StopLevel.NONE:
            self._ask()
        while self.packer.running or (len(self.packer) and level is StopLevel.NONE):
            if level is StopLevel.NONE:
                self._start_pending()
            for work, event in self.executor.events():
                self._handle(work, _masked(event))
            self._settle()
            self._retry_at_the_tail()
            self._settle()  # before a failed trial of a dropped point is launched again
            self._write_status()
            level = self._apply_stop(level)
            if level is StopLevel.NONE:
                self._ask()

    def _apply_stop(self, before: StopLevel) -> StopLevel:
        level = self.stop.level
        if level > before and self.stop.overdue and self.packer.running:
            self.display.log("deadline reached: cancelling running trials; the next run repeats them")
        if level > before is StopLevel.NONE:
            self.executor.drain()
            if level is StopLevel.DRAIN:
                self.display.log("finishing running trials; press Ctrl-C again to stop immediately")
        if level is StopLevel.CANCEL:
            self.executor.cancel()
            for key in list(self.packer.running):
                state = self.states[key]
                self.ledger.end_attempt(state.launch.deployment_id, state.attempt, "stopped")
                state.advance(Trigger.POSTPONE)
                self.packer.release(key)
        return level

    def _write_status(self, ended: bool = False) -> None:
        self.ledger.check_in_place()
        self.display.show_held_back()
        if ended or time.monotonic() - self.metered > METER_INTERVAL:
            self._meter()
        if self.forecast.due() or ended:
            now, running = time.monotonic(), self.display.running
            elapsed = {key: now - since for key, (_, _, since) in running.items()}
            available = self.executor.schedulable_nodes
            waiting = self.search.waiting() if self.search else ()
            seconds = self.forecast.update(self.states.values(), available, elapsed, self.display.progress, waiting)
            if seconds is not None or self.display.seconds_left() == 0:  # otherwise the initial estimate is still valid
                self.display.estimated(seconds)
        at = self.stop.user_deadline
        deadline = None if at is None else {"text": self.plan.settings.deadline, "at": at}
        nodes = {key: node.address for key in self.packer.running if (node := self.states[key].node)}
        self.totals.write(ended)
        self.status.write(nodes, self.stop.level is not StopLevel.NONE, ended, deadline, self.breaker.pause)

    def _meter(self) -> None:
        """Update the cluster usage and its cost."""
        hardware, now = self.plan.settings.hardware, time.monotonic()
        launches = [(self.states[key].launch, need) for key, (_, need) in self.packer.running.items()]
        prices = [hourly_price(launch.backend, hardware) or 0.0 for launch, _ in launches]
        per_hour = sum(max(1, need.gpus) * price for (_, need), price in zip(launches, prices, strict=True))
        self.spent += per_hour * (now - self.metered) / 3600
        self.metered = now
        nodes = self.executor.schedulable_nodes
        gpus = sum(node.gpus for node in nodes)
        busy = sum(need.gpus if gpus else 1 for _, need in launches)
        unit = "GPU" if gpus else "node"
        self.display.usage = Usage(busy, gpus or len(nodes), unit, self.spent if self.priced else None)

    # Starting --------------------------------------------------------------------------------------------------------

    def _start_pending(self) -> None:
        nodes = self.executor.schedulable_nodes
        healthy = [node for node in nodes if node.node_id not in self.nodes.quarantined]
        for start in self.packer.start(healthy, most=self.breaker.most_starts):
            self._submit(start)
        if self.breaker.opened is not None:
            return
        wanted = self.search.wanted(LOOKAHEAD) if self.search and self.asking else []
        needs = [*self.packer.next_needs(healthy), *wanted][:LOOKAHEAD]
        self.executor.request_capacity(needs, self.packer.left(healthy))
        if nodes:
            self._place_unschedulable(nodes, healthy)
        else:  # the executor halts the sweep if this lasts
            self.unschedulable_since.clear()

    def _ask(self) -> None:
        """Start the launches that a search chooses for the free slots; if nothing runs, one that waits for a slot."""
        nodes = [node for node in self.executor.schedulable_nodes if node.node_id not in self.nodes.quarantined]

        def has_room(need: Need) -> bool:
            return not self.packer.running or self.packer.has_room(need, nodes)

        while self.search and self.asking and not len(self.packer) and self.breaker.opened is None:
            asked = self.search.ask(has_room)
            if asked is None:
                return
            launch, expected = asked
            self.expected.trials.update(expected.trials)
            self.expected.launches.update(expected.launches)
            state = self.states[launch.launch_key] = LaunchState(launch)
            self.by_deployment[launch.deployment_id].append(state)
            self.totals.add(launch)
            self.priced |= bool(hourly_price(launch.backend, self.plan.settings.hardware))
            self.display.total += len(launch.trials)
            for need in expected.needs:
                self.expected.needs.append(need)
                self.forecast.needs[need.key] = need
                self.packer.add(need)
            for start in self.packer.start(nodes, most=self.breaker.most_starts):
                self._submit(start)

    def _place_unschedulable(self, nodes: Sequence[Node], healthy: Sequence[Node]) -> None:
        """After a wait, start launches on quarantined nodes if no other fits, and drop launches that fit nowhere."""
        now, limit = time.monotonic(), self.plan.settings.cluster.wait_for_nodes
        kinds = {need.kind for need in self.packer.first_of_each_kind() if infeasible(need, healthy)}
        self.unschedulable_since = {kind: self.unschedulable_since.get(kind, now) for kind in kinds}
        wait = min(limit, policy.QUARANTINE_WAIT) if self.executor.has_nodes_besides(self.nodes.quarantined) else 0.0
        due = {kind for kind, since in self.unschedulable_since.items() if now - since >= wait}
        quarantined = {node.node_id: node for node in nodes if node.node_id in self.nodes.quarantined}
        for start in self.packer.start([*quarantined.values(), *healthy], due):
            bad = (quarantined[each].address for each in (start.node_id, *start.partners) if each in quarantined)
            label, place = self.states[start.key].launch.describe_launch(), f"quarantined node {', '.join(bad)}"
            self.display.log(f"{label}: starting on {place}, since no other node can run it")
            self._submit(start)
        expired = [n for n in self.packer.unschedulable(nodes) if now - self.unschedulable_since[n.kind] > limit]
        self.packer.drop(expired)
        for need in expired:
            state = self.states[need.key]
            reason = f"waited {limit / 60:.0f} min: {infeasible(need, nodes)}"
            self._carry_out(state, state.advance(Trigger.UNSCHEDULABLE), reason)

    def _submit(self, start: Start) -> None:
        state = self.states[start.key]
        launch = replace(state.launch, trials=state.pending_trials)
        if self.stop.deadline and time.time() + self.expected.first_result(launch) > self.stop.deadline:
            trials = count(len(launch.trials), "trial")
            self.display.log(f"{launch.describe_launch()}: {trials} not started: they would end after the deadline")
            self.packer.release(launch.launch_key)
            state.advance(Trigger.POSTPONE)
            self.asking = False
            return
        state.submitted(self.ledger.begin_attempt(launch.deployment_id))
        work = Work(
            launch,
            self.plan.settings,
            str(self.paths.out),
            state.attempt,
            tuple(self.plan.axes),
            self.ledger.run,
            self.stop.deadline,
            self.expected.trials_of(launch) if self.stop.deadline else {},
            policy.patience(self.plan.settings, self.breaker.worked),
        )
        self.display.update(launch.launch_key, launch.describe_launch(), "submitted")
        transfer.mark(work)
        self.breaker.begin(launch.launch_key)
        self.executor.submit(work, start.node_id, start.partners)

    # Events ----------------------------------------------------------------------------------------------------------

    def _handle(self, work: Work, event: Event | End) -> None:
        launch = work.deployment
        state = self.states[launch.launch_key]
        match event:
            case Placed():
                state.started(event)
                self.ledger.place_attempt(launch.deployment_id, work.attempt, event.address)
            case State(text):
                self.display.update(launch.launch_key, launch.describe_launch(), text)
            case Measuring(progress):
                self.display.measuring(launch.launch_key, progress)
            case Note(text):
                self.display.log(f"{launch.describe_launch()}: {text}")
            case Stalled(text):
                if self.breaker.stall(launch.launch_key, launch.deployment_id, text):
                    self.display.log(f"{self.breaker.pause}; no other launch starts until a preparation succeeds")
            case Prepared():
                if (pause := self.breaker.prepared(launch.launch_key)) is not None:
                    self.display.log(f"resumed after {duration_text(pause)}: preparation works again")
            case Unprepared(text, postponed):
                state.unprepared = event
                if postponed:
                    self.display.log(f"{launch.describe_launch()}: {text}; the next run of the command retries it")
            case Files():
                transfer.receive(self.paths, work, event)
            case Finished():
                self._finish_trial(state, work, event)
            case Proposed(trial, seconds):
                self.forecast.searches[launch.launch_key] = seconds, time.monotonic()
                self._add_trial(state, trial)
                self._tell_search(launch, event)
            case Claimed():
                self._tell_search(launch, event)
            case Completed() | Lost() | NotStarted():
                self._end_attempt(state, work, event)
                self._review_nodes()

    def _add_trial(self, state: LaunchState, trial: Trial) -> None:
        """Count a trial that was not planned. A launch that is lost does not begin with it again."""
        if all(each.trial_id != trial.trial_id for each in state.launch.trials):
            state.launch.trials.append(trial)
            self.totals.add(replace(state.launch, trials=[trial]))
            self.display.total += 1

    def _tell_search(self, launch: Deployment, event: Proposed | Claimed | End) -> None:
        if self.search is not None and (news := self.search.hear(launch, event)):
            self.display.log(news)

    def _finish_trial(self, state: LaunchState, work: Work, event: Finished) -> None:
        row = event.row
        self.rows.commit(work.deployment, event.trial, row, event.trial.trial_id not in state.retried)
        self.executor.export_metrics(row)
        self.forecast.finished(work.deployment, event.trial, row)
        outcome = Outcome(row["outcome"])
        state.finish(event.trial.trial_id, outcome)
        if state.node and outcome in policy.NODE_FAULTS and not policy.was_interrupted(row):
            self.nodes.record_failure(work.deployment.deployment_id, state.node, policy.node_is_broken(row))
        elif state.node and outcome is Outcome.OK:
            self.nodes.record_success(state.node)
        self.ended.append(event.trial.trial_id)
        self.rows.write_table_if_due()

    def _end_attempt(self, state: LaunchState, work: Work, end: End) -> None:
        launch, label = work.deployment, work.deployment.describe_launch()
        self.packer.release(launch.launch_key)
        self.breaker.end(launch.launch_key)
        self.display.remove(launch.launch_key)
        self.forecast.searches.pop(launch.launch_key, None)  # the next launch's searches begin anew
        ending = "done" if isinstance(end, Completed) else end.reason
        self.ledger.end_attempt(launch.deployment_id, work.attempt, ending)
        if isinstance(end, Completed):
            action = state.ended(self.breaker.opened is not None)
            self._carry_out(state, action, state.unprepared and state.unprepared.reason)
            self.asking &= state.stage is not Stage.POSTPONED
            self._conclude(launch.deployment_id)
            if state.unprepared:
                self.breaker.check(self.plan.settings.patience)
        elif self.stop.level is not StopLevel.NONE:
            state.advance(Trigger.POSTPONE)
        elif isinstance(end, NotStarted):
            limit = self.plan.settings.cluster.wait_for_nodes
            self.display.log(f"{label}: {end.reason}")
            action = state.not_started(time.monotonic(), limit)
            self._carry_out(state, action, f"waited {limit / 60:.0f} min: {end.reason}")
        else:
            self._log_loss(work, end)
            limit = policy.most_losses(end.error is not None, self.plan.settings)
            action = state.lost(end.error is not None, limit)
            self._carry_out(state, action, f"gave up after {limit} failed attempts: {end.reason}")
        if state.stage in ENDED:
            self._tell_search(launch, end)

    def _log_loss(self, work: Work, loss: Lost) -> None:
        label = work.deployment.describe_launch()
        if loss.error is None:
            self.display.log(f"lost {label}: {loss.reason}")
            return
        traceback = self.paths.attempt(work.deployment.deployment_id, work.attempt) / "task-error.txt"
        run_files.write_whole(self.paths, traceback, loss.error)
        self.display.log(f"{label}: {loss.reason}; traceback: {traceback}")

    def _review_nodes(self) -> None:
        """Quarantine bad nodes, restore good nodes, and retry trials that failed on quarantined nodes elsewhere."""
        review = self.nodes.review(self.executor.has_nodes_besides)
        addresses = self.nodes.addresses
        for node_id in review.restored:
            self.display.log(
                f"node {addresses[node_id]} is no longer quarantined: its deployments fail on other nodes too"
            )
        for node_id in review.quarantined:
            failed = len(self.nodes.failed_only_on(node_id))
            self.display.log(f"node {addresses[node_id]} quarantined: {count(failed, 'deployment')} failed only there")
        for node_id in self.nodes.quarantined:
            for deployment_id in self.nodes.failed_only_on(node_id):
                for state in self.by_deployment[deployment_id]:
                    reopened, action = state.reopen(lambda _, outcome: outcome in policy.NODE_FAULTS)
                    self.display.retry(reopened)
                    self._carry_out(state, action)

    def _retry_at_the_tail(self) -> None:
        """Retry failed trials once nothing else remains to start, on another node if possible."""
        if len(self.packer) or self.stop.level is not StopLevel.NONE:
            return

        def retried(trial_id: str, outcome: Outcome) -> bool:
            return policy.retried_at_the_tail(self.plan.settings, outcome, self.ledger.history(trial_id))

        for state in self.states.values():
            if state.stage is not Stage.DONE:
                continue
            reopened, action = state.reopen(retried)
            if not reopened:
                continue
            self.display.retry(reopened)
            trials = count(len(reopened), "failed trial")
            self.display.log(f"{state.launch.describe_launch()}: retrying {trials}")
            launches = self.by_deployment[state.launch.deployment_id]
            self._carry_out(state, action, avoid=frozenset().union(*(launch.failed_on for launch in launches)))

    def _conclude(self, deployment_id: str) -> None:
        """Record rows for pending launches' trials whose outcome an earlier launch of the deployment has settled."""
        states = self.by_deployment[deployment_id]
        rows = [self.ledger.rows[trial_id] for state in states for trial_id in state.outcomes.keys() - state.reopened]
        failed = policy.hopeless(rows, self.plan.settings.attempts)
        out_of_memory = [trial for state in states for trial in state.launch.trials if state.ran_out_of_memory(trial)]
        for state in states:
            if state.stage is not Stage.PENDING:
                continue
            if failed is not None:
                for trial in state.pending_trials:
                    self._record_one(state, trial, failed["attempt"], failed)
            for trial, reason in policy.censored(state.pending_trials, out_of_memory):
                self._record_one(state, trial, "0", {"outcome": Outcome.CENSORED, "reason": reason})
            self._complete(state)

    def _complete(self, state: LaunchState) -> None:
        """Take a pending launch out of the queue if none of its trials is left."""
        if state.stage is Stage.PENDING and not state.pending_trials:
            self.packer.drop([self.packer.needs[state.launch.launch_key]])
            state.advance(Trigger.COMPLETE)

    def _settle(self) -> None:
        """Tell the race which trials ended, and drop the trials that it no longer needs."""
        ended, requeued, self.ended, self.requeued = self.ended, self.requeued, [], []
        if self.race is not None and (ended or requeued):
            self._drop(self.states.values() if self.race.settle(ended) else requeued)
        if self.search is not None and ended and (news := self.search.settle(ended)):
            self.display.log(news)

    def _drop(self, states: Iterable[LaunchState]) -> None:
        """Record the trials of pending launches that the race dropped; a running launch is left to end."""
        dropped = self.race.dropped if self.race is not None else {}
        for state in states if dropped else ():
            for trial in state.pending_trials if state.stage is Stage.PENDING else ():
                if reason := dropped.get(trial.trial_id):
                    self._record_one(state, trial, "0", {"outcome": Outcome.DROPPED, "reason": reason})
            self._complete(state)

    # Actions ---------------------------------------------------------------------------------------------------------

    def _carry_out(
        self, state: LaunchState, action: Action, reason: str | None = None, avoid: frozenset[str] = frozenset()
    ) -> None:
        match action:
            case Action.REQUEUE:
                self.packer.requeue(state.launch.launch_key, avoid)
                self.requeued.append(state)
            case Action.RECORD_INVALID:
                self._record(state, state.attempt, Outcome.INVALID, reason, Cause.LOST)
            case Action.RECORD_LAUNCH_FAILED:
                self._record(state, state.attempt, Outcome.LAUNCH_FAILED, reason, Cause.OUTAGE)
            case Action.RECORD_UNAVAILABLE:
                self._keep_failed_rows(state)
                self._record(state, "0", Outcome.UNAVAILABLE, reason, Cause.NO_NODE)
        if state.stage in (Stage.GIVEN_UP, Stage.UNAVAILABLE):
            self.display.settle(state.outcomes)

    def _keep_failed_rows(self, state: LaunchState) -> None:
        """Keep trials' earlier failed rows, which say more than `unavailable` and refer to a log."""
        for trial in state.pending_trials:
            row = self.ledger.rows.get(trial.trial_id)
            if row and row["outcome"] in policy.FAILED:
                state.finish(trial.trial_id, Outcome(row["outcome"]))
                self.display.done += 1

    def _record(self, state: LaunchState, attempt: str, outcome: Outcome, reason: str | None, cause: Cause) -> None:
        """Record a row without measurements for each pending trial, since no engine has run it."""
        verdict = {"outcome": outcome, "reason": reason, "exit": Exit(cause).stored()}
        for trial in state.pending_trials:
            self._record_one(state, trial, attempt, verdict)

    def _record_one(self, state: LaunchState, trial: Trial, attempt: str, verdict: Mapping[str, Any]) -> None:
        """Give a trial a row without measurements; `verdict` has the outcome and what is known about it."""
        self.rows.commit_unmeasured(state.launch, trial, attempt, verdict, trial.trial_id not in state.retried)
        state.finish(trial.trial_id, Outcome(verdict["outcome"]))
        self.ended.append(trial.trial_id)


def _masked(event: Event | End) -> Event | End:
    """Return an event with secrets in its texts masked: error messages may contain URLs with keys."""
    parts: Iterator[Any] = (masked_here(part) if isinstance(part, str) else part for part in event)
    return type(event)(*parts)
