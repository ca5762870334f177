"""What the present run has to do, and why: trials without a result that holds.

A trial is known by the hash of everything that can change its result, so a result either is this trial's or it is not.
The reasons are for people: they compare a trial with the nearest of the earlier ones.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from sweep.config import ConfigError
from sweep.disk.ledger import Ledger, Row
from sweep.plan.plan import Deployment, Plan, Trial
from sweep.records import LOAD_COLUMNS

NOT_SHOWN = 3  # differences beyond this many are only counted
REPOSITORY = re.compile(r"([\w.-]+/[\w.-]+)@(\S+)")  # in a digest: a repository at a commit or, unknown, at a revision
COMMIT = re.compile(r"[0-9a-f]{40}")


def todo(plan: Plan, ledger: Ledger) -> list[Deployment]:
    """The deployments with the trials that this run of the command has to do.

    Raises:
        ConfigError: if it cannot be told, since no hub says which commits the results are of.
    """
    _check_commits(plan, ledger)
    retry = plan.settings.retry == "once"
    left = [
        replace(deployment, trials=[trial for trial in deployment.trials if not ledger.done(trial.trial_id, retry)])
        for deployment in plan.deployments
    ]
    return [deployment for deployment in left if deployment.trials]


def _check_commits(plan: Plan, ledger: Ledger) -> None:
    """A revision that stayed a name, for want of a hub, makes ids new: what has a result would be measured again."""
    digests = {digest for deployment in plan.deployments for digest in deployment.content.values()}
    names = {one for digest in digests for one in unresolved(digest)}
    if not names:
        return
    done = {json.loads(row.get("digests") or "{}").get("model", "") for row in ledger.rows.values()}
    commits = {r: commit for digest in done for r, commit in REPOSITORY.findall(digest) if COMMIT.fullmatch(commit)}
    for repository, name in sorted(names):
        if repository in commits:
            raise ConfigError(
                f"model: no hub says which commit {repository}@{name} is, and there are results of "
                f"{commits[repository]}; allowed is the same command later, or that commit as the revision"
            )


def unresolved(digest: str) -> list[tuple[str, str]]:
    """The repositories in a digest that stand there by the name of a revision, for want of a hub to say its commit."""
    return [(r, name) for r, name in REPOSITORY.findall(digest) if not COMMIT.fullmatch(name)]


def reasons(plan: Plan, left: Iterable[Deployment], ledger: Ledger) -> dict[str, str]:
    """Why each trial that is left is run, by id: it is new, its last outcome, or what has changed since it was done."""
    present = {trial.trial_id for trial in plan.trials}
    earlier: dict[tuple[Any, ...], Row] = {}
    for row in ledger.rows.values():
        if row["trial_id"] not in present:
            earlier[_place_of_row(row, plan.axes)] = row
    return {
        trial.trial_id: _reason(plan, deployment, trial, ledger, earlier)
        for deployment in left
        for trial in deployment.trials
    }


def _reason(
    plan: Plan, deployment: Deployment, trial: Trial, ledger: Ledger, earlier: Mapping[tuple[Any, ...], Row]
) -> str:
    row = ledger.rows.get(trial.trial_id)
    if row is not None:
        damaged = trial.trial_id in ledger.damaged
        return "its requests.parquet is cut short" if damaged else f"was {row['outcome']}: {row.get('reason')}"
    old = earlier.get(_place(deployment, trial, plan.axes))
    return "new" if old is None else f"changed: {_change(deployment, trial, old)}"


def _place(deployment: Deployment, trial: Trial, axes: Iterable[str]) -> tuple[Any, ...]:
    """Where in the experiment a trial stands, whatever its content: what a row must share with it to be compared."""
    names = (deployment.backend.name, deployment.model.name, trial.workload.name, trial.load.name, trial.replicate)
    loads = trial.load_columns()
    return (*names, *(loads[key] for key in sorted(loads)), *(str(trial.coordinates.get(axis)) for axis in axes))


def _place_of_row(row: Row, axes: Iterable[str]) -> tuple[Any, ...]:
    names = tuple(row.get(key) for key in ("backend", "model", "workload", "load", "replicate"))
    loads = tuple(row.get(key) for key in LOAD_COLUMNS)
    return (*names, *loads, *(str(row.get(axis)) for axis in axes))


def _change(deployment: Deployment, trial: Trial, old: Row) -> str:
    """What is different from an earlier row of the same place."""
    before, after = _flat(json.loads(old["config"])), _flat(json.loads(json.dumps(trial.config, default=str)))
    keys = [key for key in sorted({*before, *after}) if before.get(key) != after.get(key)]
    if keys:
        words = [f"{key} {before.get(key)} -> {after.get(key)}" for key in keys[:NOT_SHOWN]]
        return ", ".join(words) + (f" and {len(keys) - NOT_SHOWN} more" if len(keys) > NOT_SHOWN else "")
    digests = json.loads(old.get("digests") or "{}")
    now = content_digests(deployment, trial)
    changed = [part for part in now if part in digests and digests[part] != now[part]]
    if changed:
        return f"the content of its {' and '.join(changed)}"
    if old["deployment_id"] != deployment.deployment_id:
        return "its engine's environment, the accelerator or the protocol"
    return "its seed"


def content_digests(deployment: Deployment, trial: Trial) -> dict[str, str]:
    """Hashes of what a trial's configuration points to: the weights, the data set, our own part of an engine."""
    return {**deployment.content, **trial.content}


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    """A nested mapping under dotted keys."""
    if not isinstance(value, Mapping):
        return {key: value}
    return {
        inner: leaf for name, item in value.items() for inner, leaf in _flat(item, f"{key}.{name}".strip(".")).items()
    }
