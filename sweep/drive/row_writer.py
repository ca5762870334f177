"""Writes a run's rows as they arrive: durably to the ledger, then to trials.parquet, the display and the tracker."""

import time
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

from sweep.base import code_version
from sweep.base.config import content_hash
from sweep.base.exits import Exit
from sweep.base.records import UNMEASURED, Outcome, Sample
from sweep.base.whole_file import read_bounded
from sweep.disk import run_files
from sweep.disk.ledger import Ledger, LedgerRow
from sweep.disk.ledger_lines.checksums import sealed, unsealed
from sweep.disk.ledger_lines.compact_row import dict_of_row
from sweep.disk.run_files import RunPaths
from sweep.drive import policy
from sweep.drive.monitor.progress import Display
from sweep.node.rows import is_current, present_row, recomputed_row, slo_text, unmeasured_row
from sweep.node.work import Work
from sweep.plan.plan import Deployment, Plan, Trial, hourly_price

WRITE_INTERVAL = 10.0  # s between rewrites of trials.parquet while trials finish
WRITE_SHARE = 0.02  # share of the driver's time, at most, for rewrites
TABLE_STAMP = ".trials.json"  # the sources of trials.parquet: rebuilding it takes seconds if it has many rows


class TrialTracker(Protocol):
    """The interface of a service that tracks trials in addition to the files. Its failures never fail a sweep."""

    def log_trial(self, row: LedgerRow, telemetry: Sequence[Sample]) -> None: ...


class TableRows(Collection[LedgerRow]):
    """The rows of trials.parquet, produced one by one: all rows as dicts would fill the driver's memory."""

    def __init__(
        self, plan: Plan, planned: Sequence[tuple[Deployment, Trial, LedgerRow]], others: Sequence[LedgerRow]
    ) -> None:
        self.plan, self.planned, self.others = plan, planned, others

    def __iter__(self) -> Iterator[LedgerRow]:
        settings, axes = self.plan.settings, self.plan.axes
        for deployment, trial, row in self.planned:
            yield present_row(dict_of_row(row), deployment, trial, settings, axes) | {"in_plan": True}
        for row in self.others:
            yield dict_of_row(row) | {"in_plan": False}

    def __len__(self) -> int:
        return len(self.planned) + len(self.others)

    def __contains__(self, row: object) -> bool:
        return any(row == other for other in self)


class RowWriter:
    def __init__(
        self, plan: Plan, paths: RunPaths, ledger: Ledger, display: Display, tracker: TrialTracker | None
    ) -> None:
        self.plan, self.paths, self.ledger = plan, paths, ledger
        self.display, self.tracker = display, tracker
        self.write_after = time.monotonic() + WRITE_INTERVAL
        self.changed = False  # whether trials.parquet was rewritten

    def commit(self, deployment: Deployment, trial: Trial, row: LedgerRow, retryable: bool = False) -> None:
        """Store a trial's row durably and report it. A `retryable` failure may be retried in this run."""
        self.ledger.commit(row)
        history = self.ledger.history(trial.trial_id)
        retried = retryable and policy.retried_at_the_tail(self.plan.settings, Outcome(row["outcome"]), history)
        if self.tracker is not None and row["outcome"] not in (Outcome.UNAVAILABLE, Outcome.DROPPED):  # maybe thousands
            self.tracker.log_trial(row, self._telemetry(row))
        label = f"{deployment.describe()} {trial.describe()}"
        self.display.finished(row, label, deployment.describe(), retried)

    def commit_unmeasured(
        self, deployment: Deployment, trial: Trial, attempt: str, verdict: Mapping[str, Any], retryable: bool = False
    ) -> None:
        """Commit the row of a trial that will not run; `verdict` has its outcome, reason, exit and driver."""
        work = Work(deployment, self.plan.settings, str(self.paths.out), attempt, tuple(self.plan.axes))
        outcome, exit = Outcome(verdict["outcome"]), verdict.get("exit")
        row = unmeasured_row(work, trial, outcome, verdict.get("reason"), exit=Exit.restored(exit) if exit else None)
        self.commit(deployment, trial, row | {"driver": verdict.get("driver")}, retryable)

    def _telemetry(self, row: LedgerRow) -> list[Sample]:
        path = self.paths.trial(row["deployment_id"], row["attempt"], row["trial_id"]).telemetry
        try:
            return run_files.read_telemetry(path)
        except run_files.DamagedFile as error:
            self.display.log(f"not sent to the tracker: {error}")
        except FileNotFoundError:  # the engine has no telemetry
            pass
        return []

    def write_table_if_due(self) -> None:
        """Rewrite trials.parquet from time to time."""
        if time.monotonic() > self.write_after:
            self.write_table(recompute=False)

    def write_table(self, recompute: bool = True) -> None:
        """Write trials.parquet: the rows of the current plan, in its order, then all other rows ever measured.

        `recompute` derives rows again from their timestamps under the current settings. For many rows this takes
        minutes, so it must not run while nodes wait for the driver or a measurement needs a core. Raises Misplaced
        instead of recreating a deleted results folder.
        """
        self.ledger.check_in_place()
        begin = time.monotonic()
        planned = [
            (deployment, trial, self._updated(row, trial, recompute))
            for deployment in self.plan.deployments
            for trial in deployment.trials
            if (row := self.ledger.rows.get(trial.trial_id)) is not None
        ]
        if not (recompute and self._is_stamped(self._stamp())):
            self.changed |= run_files.write_trials(self.paths, TableRows(self.plan, planned, self._other_rows()))
            if recompute and (stamp := self._stamp()):
                run_files.write_whole(self.paths, self.paths.out / TABLE_STAMP, sealed(stamp))
        now = time.monotonic()
        self.write_after = now + max(WRITE_INTERVAL, (now - begin) / WRITE_SHARE)

    def _stamp(self) -> dict[str, Any] | None:
        """Return the table's current sources, and the checksum of the table on disk.

        Return None if there is no table, or the code is unknown because of uncommitted changes.
        """
        program, settings = code_version.program_version(), self.plan.settings
        try:
            ledger = self.paths.ledger.stat()
            checksums = [zlib.crc32(path.read_bytes()) for path in (self.paths.plan, self.paths.trials)]
        except FileNotFoundError:
            return None
        if program is None:
            return None
        backends = [deployment.backend for deployment in self.plan.deployments]
        prices = [[hourly_price(backend, settings.hardware), backend.price_per_million_tokens] for backend in backends]
        inputs = [program, ledger.st_size, ledger.st_mtime_ns, settings.model_dump(mode="json"), prices]
        return {"inputs": content_hash(inputs), "checksums": checksums}

    def _is_stamped(self, stamp: dict[str, Any] | None) -> bool:
        """Return whether the table on disk was made from these sources. False if there is no valid stamp."""
        with suppress(FileNotFoundError, ValueError):
            return stamp is not None and unsealed(read_bounded(self.paths.out / TABLE_STAMP)) == stamp
        return False

    def _other_rows(self) -> list[LedgerRow]:
        """Return rows of other plans, and superseded rows of trials that were measured again."""
        planned = {trial.trial_id for trial in self.plan.trials}
        rows = [row for trial_id, row in self.ledger.rows.items() if trial_id not in planned]
        measured = [row for row in rows if row["outcome"] not in UNMEASURED]
        return self.ledger.superseded + measured

    def _updated(self, row: LedgerRow, trial: Trial, recompute: bool) -> LedgerRow:
        """Return the row under the current settings: a new `percentiles` or `slo` needs no new measurement."""
        settings = self.plan.settings
        if row["outcome"] != Outcome.OK or is_current(row, settings):
            return row
        if recompute and (recomputed := recomputed_row(row, trial, settings, self.paths)):
            self.ledger.commit(recomputed)
            return recomputed
        slo = slo_text(settings)
        return row if row.get("slo") == slo else {**row, "slo": slo, "goodput": None}
