"""The pending work of a run: trials without a valid result, why each is run, and their expected durations.

A trial's id is the hash of everything that can change its result: results with this id, and only these, are valid. The
reasons are for users: they compare a trial with the earlier trial at the same coordinates.
"""

import json
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sweep.base.config import ConfigError, Settings
from sweep.base.exits import Outage
from sweep.base.records import LOAD_COLUMNS, Outcome
from sweep.base.setting_labels import dotted
from sweep.disk.ledger import Ledger, LedgerRow
from sweep.drive.policy import needs_run
from sweep.inputs.hub import COMMIT, resolve_outage
from sweep.plan.estimate import UNKNOWN_LAUNCH, Assumed, Expected, History, RunEstimate, estimate_run
from sweep.plan.packing import Node
from sweep.plan.plan import Deployment, Plan, Trial

POSITION = ("backend", "model", "workload", "load", "replicate", *LOAD_COLUMNS)
MOST_DIFFERENCES = 3  # differences that are listed; further differences are only counted
REVISION = re.compile(r"([\w.-]+/[\w.-]+)@(\S+)")  # in a digest: a repository at a commit or at an unresolved revision


@dataclass(frozen=True)
class PendingWork:
    """The work of one run, computed once before anything is printed or started."""

    launches: list[Deployment]  # launches, the unit of scheduling, with only their pending trials
    finished_trials: int  # the plan's trials that have a valid result
    reasons: dict[str, str]  # why each trial is run, by id; empty on the first run
    estimate: RunEstimate
    final_failures: int = 0  # trials that failed for good and are not run again

    @property
    def runnable(self) -> list[Deployment]:
        """The launches of deployments that are available."""
        return [launch for launch in self.launches if not launch.unavailable]

    def of_search(self, finished_trials: int, seconds: float | None) -> "PendingWork":
        """Return the work of a run that begins with no launch: a search adds them, expected to take so many seconds."""
        estimate = self.estimate._replace(expected=Expected([], {}, {}, 0, 0), seconds=seconds, messages=[])
        return replace(self, launches=[], finished_trials=finished_trials, reasons={}, estimate=estimate)


def find_pending(
    plan: Plan,
    ledger: Ledger,
    history: History,
    nodes: Sequence[Node],
    drivers: set[str] | None = None,
    dropped: Container[str] = (),
) -> PendingWork:
    """Find the trials to run, the reasons, and their expected duration on these nodes.

    `drivers` are the nodes' GPU drivers, or None if they are unknown. A failure that was final under another driver is
    not final here. `dropped` are trials that the race does not need.
    """
    launches = pending_launches(plan, ledger, drivers, dropped)
    runnable = [launch for launch in launches if not launch.unavailable]
    return PendingWork(
        launches,
        len(plan.trials) - sum(len(launch.trials) for launch in launches),
        reasons(plan, runnable, ledger) if ledger.rows else {},
        estimate_run(plan, runnable, history, nodes, assumed_durations(plan.settings)),
        len(final_failures(plan, ledger) - {trial.trial_id for launch in launches for trial in launch.trials}),
    )


def assumed_durations(settings: Settings) -> Assumed | None:
    """Return what a plan assumes of durations without history, if anything."""
    simulated, durations = settings.cluster.simulate, (settings.durations or {}).get(settings.hardware.name)
    if simulated is not None and simulated.seconds_per_trial is not None:
        return Assumed(simulated.seconds_per_trial, simulated.seconds_per_launch)
    if simulated is None and durations is not None:
        return Assumed(durations.trial, UNKNOWN_LAUNCH, durations)
    return None


def pending_launches(
    plan: Plan, ledger: Ledger, drivers: set[str] | None = None, dropped: Container[str] = ()
) -> list[Deployment]:
    """Return the launches that have pending trials, with only these trials."""
    _check_commits(plan, ledger)

    def pending(trial: Trial) -> bool:
        row = ledger.valid_row(trial.trial_id)
        if row is not None and row["outcome"] == Outcome.DROPPED and trial.trial_id in dropped:
            return False
        return needs_run(row, ledger.history(trial.trial_id), plan.settings, drivers)

    launches = [replace(launch, trials=list(filter(pending, launch.trials))) for launch in plan.launches]
    return [launch for launch in launches if launch.trials]


def final_failures(plan: Plan, ledger: Ledger) -> set[str]:
    """Return the trials of a plan whose engine failed twice with the same message."""
    return {trial.trial_id for trial in plan.trials if ledger.history(trial.trial_id).final}


def _check_commits(plan: Plan, ledger: Ledger) -> None:
    """Raise Outage for a revision without a commit if this would change the ids of trials that have results."""
    revisions = _unresolved(plan)
    if not revisions:
        return
    measured = (json.loads(text) for text in {row.get("digests") or "{}" for row in ledger.rows.values()})
    commits = {
        (part, repository): revision
        for digests in measured
        for part, digest in digests.items()
        for repository, revision in REVISION.findall(digest)
        if COMMIT.fullmatch(revision)
    }
    for part, repository, revision in revisions:
        if commit := commits.get((part, repository)):
            raise ConfigError(
                f"{part}: the hub cannot be reached to resolve {repository}@{revision} to a commit, and the results "
                f"are for {commit}; run the same command later, or set that commit as the revision"
            )


def check_resolved(plan: Plan) -> None:
    """Check that every revision of the plan is resolved to a commit, since ids depend on it; not in a dry run.

    Raises Outage if the hub did not answer: otherwise rows would get ids that no later run reproduces.
    """
    if plan.settings.engineless:
        return
    for part, repository, revision in _unresolved(plan):
        if reason := resolve_outage(repository, revision, "dataset" if part == "workload" else "model"):
            raise Outage(f"the hub cannot be reached to resolve {repository}@{revision} to a commit ({reason})")


def _unresolved(plan: Plan) -> list[tuple[str, str, str]]:
    """Return (part, repository, revision) for every revision in the plan that no hub resolved to a commit."""
    contents = [deployment.content for deployment in plan.deployments] + [trial.content for trial in plan.trials]
    digests = {(part, digest) for content in contents for part, digest in content.items()}
    return sorted({(part, *revision) for part, digest in digests for revision in unresolved(digest)})


def unresolved(digest: str) -> list[tuple[str, str]]:
    """Return (repository, revision) for every revision in a digest that no hub resolved to a commit."""
    return [(r, name) for r, name in REVISION.findall(digest) if not COMMIT.fullmatch(name)]


def reasons(plan: Plan, pending: Iterable[Deployment], ledger: Ledger) -> dict[str, str]:
    """Return the reason for each pending trial, by id: new, its last outcome, or the change since its last result."""
    present = {trial.trial_id for trial in plan.trials}
    earlier: dict[tuple[Any, ...], LedgerRow] = {}
    for row in ledger.rows.values():
        if row["trial_id"] not in present:
            earlier[_position(row, plan.axes)] = row
    return {
        trial.trial_id: _reason(plan, deployment, trial, ledger, earlier)
        for deployment in pending
        for trial in deployment.trials
    }


def _reason(
    plan: Plan, deployment: Deployment, trial: Trial, ledger: Ledger, earlier: Mapping[tuple[Any, ...], LedgerRow]
) -> str:
    row = ledger.rows.get(trial.trial_id)
    if row is not None:
        damaged = trial.trial_id in ledger.damaged
        return "its requests.parquet is cut short" if damaged else f"was {row['outcome']}: {row.get('reason')}"
    parts = {"backend": deployment.backend, "model": deployment.model, "workload": trial.workload, "load": trial.load}
    names = {key: part.name for key, part in parts.items()} | {"replicate": trial.replicate}
    before = earlier.get(_position(trial.coordinates | trial.load_columns() | names, plan.axes))
    return "new" if before is None else f"changed: {_change(deployment, trial, before)}"


def _position(row: Mapping[str, Any], axes: Iterable[str]) -> tuple[Any, ...]:
    """Return a row's coordinates in the experiment, used to match old and new rows."""
    return (*(row.get(key) for key in POSITION), *(str(row.get(axis)) for axis in axes))


def _change(deployment: Deployment, trial: Trial, earlier: LedgerRow) -> str:
    """Describe the difference from an earlier row with the same coordinates."""
    before, after = dotted(json.loads(earlier["config"])), dotted(json.loads(json.dumps(trial.config, default=str)))
    keys = [key for key in sorted({*before, *after}) if before.get(key) != after.get(key)]
    if keys:
        changes = [f"{key} {before.get(key)} -> {after.get(key)}" for key in keys[:MOST_DIFFERENCES]]
        more = f" and {len(keys) - MOST_DIFFERENCES} more" if len(keys) > MOST_DIFFERENCES else ""
        return ", ".join(changes) + more
    digests = json.loads(earlier.get("digests") or "{}")
    present = content_digests(deployment, trial)
    changed = [part for part in present if part in digests and digests[part] != present[part]]
    if changed:
        return f"the content of its {' and '.join(changed)}"
    if earlier["deployment_id"] != deployment.deployment_id:
        return "its engine's environment, the accelerator or the protocol"
    return "its seed"


def content_digests(deployment: Deployment, trial: Trial) -> dict[str, str]:
    """Return hashes of the files behind a trial's configuration: weights, data set, in-process server."""
    return {**deployment.content, **trial.content}
