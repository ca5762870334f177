"""The totals of a plan's trials: counts by outcome, failures with reasons, and the number of failed requests.

The driver writes them to OUT/totals.json, so that `sweep status` for 100,000 trials reads a small file instead of a
gigabyte. The file stores the sizes and times of its sources. If these have changed since (the driver was killed, or a
file was edited), the status counts again.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sweep.base.config import first_line
from sweep.base.records import Outcome
from sweep.base.whole_file import read_bounded
from sweep.disk import run_files
from sweep.disk.ledger import Ledger
from sweep.disk.ledger_lines.checksums import sealed, unsealed
from sweep.disk.run_files import RunPaths
from sweep.drive.policy import FAILED
from sweep.plan.plan import Deployment, Plan

COUNT_INTERVAL = 2.0  # s between two counts
COUNT_SHARE = 0.02  # share of the driver's time, at most, for counting
COUNTED_COLUMNS = frozenset(
    ("trial_id", "deployment_id", "attempt", "outcome", "reason", "fault", "driver", "num_failed", "num_requests")
)
"""The columns of a row that are counted, or that the ledger needs."""


class Totals(NamedTuple):
    """The trials of a plan by outcome."""

    name: str
    trials: int
    outcomes: dict[str, int]  # of trials that have a row
    failures: list[tuple[str, str, str]]  # label, outcome, reason, for trials that failed or cannot run
    failed_requests: list[tuple[str, int, int]]  # label, failed, measured, for results with failed requests
    results: int  # number of results that count their requests
    requests: int  # number of requests in those results


def count_trials(
    name: str, trial_ids: Iterable[str], label: Callable[[str], str], rows: Mapping[str, Mapping[str, Any]]
) -> Totals:
    """Count a plan's trials; `label` returns a trial's description."""
    outcomes: Counter[str] = Counter()
    failures, failed_requests = [], []
    trials = results = requests = 0
    for trial_id in trial_ids:
        trials += 1
        row = rows.get(trial_id)
        if row is None:
            continue
        outcome = Outcome(row["outcome"])
        outcomes[outcome.value] += 1
        if outcome in FAILED or outcome is Outcome.UNAVAILABLE:
            failures.append((label(trial_id), outcome.value, _failure(row)))
        elif outcome is Outcome.OK and row.get("num_failed") is not None:
            results += 1
            requests += row["num_requests"]
            if row["num_failed"]:
                failed_requests.append((label(trial_id), row["num_failed"], row["num_requests"]))
    return Totals(name, trials, dict(outcomes), failures, failed_requests, results, requests)


def _failure(row: Mapping[str, Any]) -> str:
    """Return the reason and the path of the log; an unavailable trial has no log."""
    log = "" if row["outcome"] == Outcome.UNAVAILABLE else f" [{row['deployment_id']}/{row['attempt']}/engine.log]"
    return f"{row.get('reason') or 'no reason given'}{log}"


class TotalsWriter:
    """Writes OUT/totals.json for the driver when rows were added, at most every COUNT_INTERVAL seconds."""

    def __init__(self, plan: Plan, paths: RunPaths, ledger: Ledger) -> None:
        self.name, self.paths, self.ledger = plan.settings.name, paths, ledger
        self.trials = {trial.trial_id: (each, trial) for each in plan.deployments for trial in each.trials}
        self.write_after = 0.0  # monotonic
        self.written: dict[str, Any] | None = None  # the stamps of the files that were last counted

    def add(self, launch: Deployment) -> None:
        """Count the trials of a launch that was not planned."""
        self.trials |= {trial.trial_id: (launch, trial) for trial in launch.trials}

    def write(self, ended: bool = False) -> None:
        """Write the current totals if COUNT_INTERVAL has passed or the run has ended."""
        now = time.monotonic()
        if (now < self.write_after and not ended) or self.ledger.set_aside:  # a reader reports the damaged lines
            return
        stamps = _stamps(self.paths)
        if stamps is None or stamps == self.written:
            return
        totals = count_trials(
            self.name, self.trials, lambda key: " ".join(each.describe() for each in self.trials[key]), self.ledger.rows
        )
        write_totals(self.paths, totals)
        self.written, end = stamps, time.monotonic()
        self.write_after = end + max(COUNT_INTERVAL, (end - now) / COUNT_SHARE)


def write_totals(paths: RunPaths, totals: Totals) -> None:
    """Write the totals with the current size and modification time of the plan and of the ledger."""
    run_files.write_whole(paths, paths.totals, sealed({**totals._asdict(), "stamps": _stamps(paths)}))


def read_totals(paths: RunPaths, driver_alive: bool) -> Totals | None:
    """Return the driver's last totals if they belong to the current plan and ledger, otherwise None.

    While the driver is alive, its latest rows may be missing.

    Raises DamagedFile if the file has been changed.
    """
    try:
        content = unsealed(read_bounded(paths.totals))
        stamps, present = content.pop("stamps"), _stamps(paths)
        for name in ("failures", "failed_requests"):
            content[name] = [tuple(each) for each in content[name]]
        totals = Totals(**content)
    except (FileNotFoundError, NotADirectoryError, KeyError, TypeError):  # missing, or from another version
        return None
    except (OSError, ValueError) as error:
        raise run_files.DamagedFile(paths.totals, first_line(error)) from None
    if present is None or stamps["plan"] != present["plan"]:
        return None
    if stamps["ledger"] != present["ledger"] and not (driver_alive and stamps["ledger"][0] < present["ledger"][0]):
        return None
    return totals


def count_anew(paths: RunPaths) -> tuple[Totals, list[str]]:
    """Count the trials of a plan in its ledger; also return lines about damage in the ledger.

    Raises FileNotFoundError or NotADirectoryError if there is no plan; DamagedFile if the plan is damaged.
    """
    labels: dict[str, str] = {}
    trials: dict[str, str] = {}  # trial -> deployment
    name = ""
    for entry in run_files.plan_entries(paths.plan):  # one at a time, since all of them take hundreds of megabytes
        kind = entry.get("kind", "trial")
        if kind == "experiment":
            name = entry["name"]
            continue
        key = entry[f"{kind}_id"]
        labels[key] = entry.get("label", key)  # older plans have no labels
        if kind == "trial":
            trials[key] = entry["deployment_id"]

    def label(trial_id: str) -> str:
        return f"{labels[trials[trial_id]]} {labels[trial_id]}"

    ledger = Ledger(paths.ledger, write=False, columns=COUNTED_COLUMNS)
    return count_trials(name, trials, label, ledger.rows), ledger.describe_damage()


def _stamps(paths: RunPaths) -> dict[str, list[int]] | None:
    """Return size and modification time of the plan and the ledger; None if either is missing."""
    try:
        return {"plan": _stamp(paths.plan), "ledger": _stamp(paths.ledger)}
    except FileNotFoundError:
        return None


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
