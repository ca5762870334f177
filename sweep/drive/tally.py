"""The tally of a run, kept row by row by the driver, so that `sweep status` need not read a ledger of gigabytes."""

from collections import Counter
from collections.abc import Mapping
from heapq import nsmallest
from typing import Any, NamedTuple

from sweep.disk.ledger import LedgerRow
from sweep.records import Outcome

MOST_LISTED = 20  # failures, and trials with failed requests; more are only counted


class Summary(NamedTuple):
    """The trials of the present plan, counted."""

    name: str
    total: int
    outcomes: dict[str, int]  # of those that have a row
    failures: list[list[str]]  # label, outcome, reason
    num_failures: int
    failed_requests: list[list[Any]]  # of trials that are results: label, failed, measured
    num_results: int
    num_with_failed: int
    num_failed: int  # requests
    num_requests: int


class Tally:
    """The outcomes of a plan's trials; `labels` are those of the trials, by id, in the plan's order."""

    def __init__(self, name: str, labels: Mapping[str, str], rows: Mapping[str, LedgerRow]) -> None:
        self.name, self.labels = name, labels
        self.place = {trial_id: index for index, trial_id in enumerate(labels)}
        self.outcomes: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()  # results, and their failed and measured requests
        self.counted: dict[str, tuple[str, int | None, int]] = {}  # outcome, failed requests, measured requests
        self.failures: dict[str, tuple[str, str]] = {}  # outcome, reason
        self.with_failed: set[str] = set()
        for trial_id in labels:
            if trial_id in rows:
                self.count(rows[trial_id])

    def count(self, row: LedgerRow) -> None:
        """Count a row in the place of the trial's earlier one; rows of other plans do not count."""
        trial_id, outcome = row["trial_id"], Outcome(row["outcome"])
        if trial_id not in self.labels:
            return
        if trial_id in self.counted:
            self._add(*self.counted[trial_id], -1)
        failed = row.get("num_failed") if outcome is Outcome.OK else None
        self.counted[trial_id] = str(outcome), failed, row.get("num_requests") or 0
        self._add(*self.counted[trial_id], 1)
        (self.with_failed.add if failed else self.with_failed.discard)(trial_id)
        self.failures.pop(trial_id, None)
        if outcome.failed or outcome is Outcome.UNAVAILABLE:
            self.failures[trial_id] = str(outcome), _reason(row)

    def _add(self, outcome: str, failed: int | None, requests: int, sign: int) -> None:
        self.outcomes[outcome] += sign
        if failed is not None:
            for name, number in (("results", 1), ("failed", failed), ("measured", requests)):
                self.requests[name] += sign * number

    def summary(self) -> Summary:
        """Return the counts, and the first failures in the plan's order."""
        first = nsmallest(MOST_LISTED, self.failures, key=self.place.__getitem__)
        with_failed = nsmallest(MOST_LISTED, self.with_failed, key=self.place.__getitem__)
        return Summary(
            name=self.name,
            total=len(self.labels),
            outcomes={outcome: number for outcome, number in self.outcomes.items() if number},
            failures=[[self.labels[trial_id], *self.failures[trial_id]] for trial_id in first],
            num_failures=len(self.failures),
            failed_requests=[[self.labels[trial_id], *self.counted[trial_id][1:]] for trial_id in with_failed],
            num_results=self.requests["results"],
            num_with_failed=len(self.with_failed),
            num_failed=self.requests["failed"],
            num_requests=self.requests["measured"],
        )


def _reason(row: LedgerRow) -> str:
    """Return the reason and the path of the log; an unavailable trial has none."""
    log = "" if row["outcome"] == Outcome.UNAVAILABLE else f" [{row['deployment_id']}/{row['attempt']}/engine.log]"
    return f"{row.get('reason') or 'no reason given'}{log}"
