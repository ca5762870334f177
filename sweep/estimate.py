"""How long a plan will take and what it will cost, from earlier runs of the same kind; else `unknown`.

Earlier runs are the folders beside `out` (and those that `fresh` moved aside). A trial of the same id counts first,
then trials of the same backend, model, workload, load and accelerator; launches likewise.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from sweep.plan import Deployment, Plan
from sweep.store import DamagedFile, read_trials

KIND = ("backend", "model", "workload", "load", "batch_size", "concurrency", "rate", "accelerator")


class Estimate(NamedTuple):
    """Seconds of engine time for the trials asked about, dollars for them, and how many of them are only guessed at."""

    seconds: float | None
    cost: float | None
    unknown: int


class History:
    """What trials and launches took in earlier runs, s."""

    def __init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self.by_id: dict[str, list[float]] = {}
        self.by_kind: dict[tuple[Any, ...], list[float]] = {}
        self.launches: dict[tuple[Any, Any], list[float]] = {}
        for row in rows:
            if row.get("wall_seconds") is not None:
                self.by_id.setdefault(row["trial_id"], []).append(row["wall_seconds"])
                self.by_kind.setdefault(tuple(row.get(key) for key in KIND), []).append(row["wall_seconds"])
            if row.get("startup_seconds") is not None:
                self.launches.setdefault((row["backend"], row["model"]), []).append(row["startup_seconds"])

    @classmethod
    def beside(cls, out: Path) -> "History":
        """The runs in and beside a results folder; one that cannot be read teaches nothing."""
        rows: list[dict[str, Any]] = []
        for path in sorted(out.parent.glob("*/trials.parquet")):
            try:
                rows += read_trials(path)
            except DamagedFile:
                continue  # an estimate is no place to complain: whoever analyses that run is told
        return cls(rows)

    def trial(self, row: Mapping[str, Any]) -> float | None:
        """Seconds that such a trial took, median; `row` needs trial_id and the columns of KIND."""
        known = self.by_id.get(row["trial_id"]) or self.by_kind.get(tuple(row.get(key) for key in KIND))
        return median(known) if known else None

    def launch(self, deployment: Deployment) -> float | None:
        """Seconds that launching such a deployment took, median."""
        known = self.launches.get((deployment.backend.name, deployment.model.name))
        return median(known) if known else None


def estimate(plan: Plan, deployments: Iterable[Deployment], history: History) -> Estimate:
    """Engine time and cost of these deployments' trials, as if run one after the other."""
    hardware = plan.settings.hardware
    seconds = cost = 0.0
    unknown = 0
    for deployment in deployments:
        if deployment.unavailable:
            continue
        took = [history.trial(kind_of(deployment, trial, hardware)) for trial in deployment.trials]
        unknown += took.count(None)
        total = sum(value for value in took if value is not None) + (history.launch(deployment) or 0.0)
        seconds += total
        cost += total / 3600 * (hardware.price_per_hour or 0.0) * max(1, deployment.gpu_count)
    if unknown:
        return Estimate(None, None, unknown)
    return Estimate(seconds, cost if hardware.price_per_hour else None, 0)


def kind_of(deployment: Deployment, trial: Any, hardware: Any) -> dict[str, Any]:
    """What of a trial says how long it takes: its id and the columns of KIND."""
    return {
        "trial_id": trial.trial_id,
        "backend": deployment.backend.name,
        "model": deployment.model.name,
        "workload": trial.workload.name,
        "load": trial.load.name,
        **trial.load_columns(),
        "accelerator": hardware.accelerator or hardware.name,
    }
