"""How long a plan will take and what it will cost, from earlier runs of the same kind; else `unknown`.

Earlier runs are the folders beside `out` (and those that `fresh` moved aside). A trial of the same id counts first,
then trials of the same kind: every key of backend, model, workload and load alike (so the engine's flags, the number
of requests and their lengths too), on the same accelerator; launches likewise. Only trials that came out `ok` count:
one that crashed after two seconds says nothing. (One that ran out of memory or hung does, but of itself only.) Where
neither is known, a stated assumption may stand in (cluster.simulate.seconds_per_trial), and the words say so.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from sweep import provenance
from sweep.config import Hardware
from sweep.disk.run_files import DamagedFile, read_table
from sweep.plan.packing import Need, Node
from sweep.plan.plan import Deployment, Plan, Trial, config_text, elsewhere
from sweep.plan.simulate import Schedule, simulate
from sweep.records import Outcome
from sweep.wording import duration

COLUMNS = ["trial_id", "deployment_id", "outcome", "config", "accelerator", "gpu_count"]
COLUMNS += ["wall_seconds", "started_at", "ended_at", "startup_seconds"]
BATCH = 4096  # rows
AGAIN = (Outcome.OOM_RUN, Outcome.HUNG, Outcome.INVALID, Outcome.CLIENT_LIMITED)  # these may well end so again
GUESS = 60.0  # s of a trial of which nothing is known: only for the order in which deployments start
SHOWN = 4  # deployments of a critical path that are named


class History:
    """What trials and launches took in earlier runs, s."""

    def __init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self.by_id: dict[str, list[float]] = {}
        self.failed_by_id: dict[str, list[float]] = {}
        self.by_kind: dict[tuple[str, str | None], list[float]] = {}
        self.launches: dict[tuple[int, str], list[float]] = {}
        launched: dict[str, tuple[int, str]] = {}  # by deployment, so that not every row's config is read
        for row in rows:
            if not row["config"]:
                continue
            if row["outcome"] != Outcome.OK:
                if row["outcome"] in AGAIN and (took := _took(row)) is not None:
                    self.failed_by_id.setdefault(row["trial_id"], []).append(took)
                continue
            if (took := _took(row)) is not None:
                self.by_id.setdefault(row["trial_id"], []).append(took)
                self.by_kind.setdefault((row["config"], row["accelerator"]), []).append(took)
            if row["startup_seconds"] is not None:
                one = row["deployment_id"]
                if one not in launched:
                    launched[one] = _launch_kind(row["gpu_count"], json.loads(row["config"]))
                self.launches.setdefault(launched[one], []).append(row["startup_seconds"])
        self.medians: dict[int, float] = {}  # of the lists above, by identity: one kind may have many trials

    @classmethod
    def beside(cls, out: Path) -> "History":
        """The runs in and beside a results folder; one that cannot be read teaches nothing."""
        return cls(_earlier_rows(out))

    def trial(self, row: Mapping[str, Any]) -> float | None:
        """Seconds that such a trial took (`row` as `kind_of` makes it), median."""
        known = self.by_id.get(row["trial_id"])
        if known is None and self.by_kind:  # a hundred thousand configs are not written out for nothing
            known = self.by_kind.get((config_text(row["config"]), row["accelerator"]))
        return self._median(known or self.failed_by_id.get(row["trial_id"]))

    def launch(self, deployment: Deployment) -> float | None:
        """Seconds that launching such a deployment took, median."""
        if not self.launches:
            return None
        return self._median(self.launches.get(_launch_kind(deployment.gpu_count, deployment.trials[0].config)))

    def _median(self, known: list[float] | None) -> float | None:
        if known is None:
            return None
        if id(known) not in self.medians:
            self.medians[id(known)] = median(known)
        return self.medians[id(known)]


def _earlier_rows(out: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(out.parent.glob("*/trials.parquet")):
        try:
            table = read_table(path, COLUMNS)
        except DamagedFile:
            continue  # an estimate is no place to complain: whoever analyses that run is told
        if set(table.column_names) == set(COLUMNS):
            for batch in table.to_batches(BATCH):  # a hundred thousand rows at once would be hundreds of megabytes
                yield from batch.to_pylist()


def _took(row: Mapping[str, Any]) -> float | None:
    """Seconds from the beginning of a trial to its row, the building of its requests included; None if not measured."""
    if row.get("wall_seconds") is None:
        return None
    if row.get("started_at") is None or row.get("ended_at") is None:
        return float(row["wall_seconds"])
    return (datetime.fromisoformat(row["ended_at"]) - datetime.fromisoformat(row["started_at"])).total_seconds()


def _launch_kind(gpus: int, config: Mapping[str, Any]) -> tuple[int, str]:
    return gpus, config_text({group: config[group] for group in ("backend", "model")})


def kind_of(deployment: Deployment, trial: Trial, hardware: Hardware) -> dict[str, Any]:
    """What of a trial says how long it takes: its id, its resolved config and the accelerator as its row names it."""
    own = provenance.gpu_names() if deployment.gpu_count and hardware.accelerator is None else ()
    accelerator = hardware.accelerator or next(iter(own), hardware.name)
    return {
        "trial_id": trial.trial_id,
        "config": trial.config,
        "accelerator": None if elsewhere(deployment.backend, hardware) else accelerator,
    }


class Assumed(NamedTuple):
    """What stands in where earlier runs tell nothing, s."""

    trial: float
    launch: float


class Times(NamedTuple):
    """Expected seconds of deployments, and how much of it is not from earlier runs."""

    needs: list[Need]
    unknown_trials: int
    unknown_launches: int


def times(
    deployments: Iterable[Deployment], history: History, hardware: Hardware, assumed: Assumed | None = None
) -> Times:
    """What each deployment takes: its GPUs, and the seconds of its launch and its trials."""
    needs: list[Need] = []
    unknown_trials = unknown_launches = 0
    for deployment in deployments:
        took = [history.trial(kind_of(deployment, trial, hardware)) for trial in deployment.trials]
        launch = history.launch(deployment)
        unknown_trials += took.count(None)
        unknown_launches += launch is None
        stand_in = assumed.trial if assumed else GUESS
        seconds = sum(stand_in if value is None else value for value in took)
        seconds += (assumed.launch if assumed else 0.0) if launch is None else launch
        needs.append(Need(deployment.deployment_id, deployment.gpu_count, deployment.accelerator, seconds))
    return Times(needs, unknown_trials, unknown_launches)


class Estimate(NamedTuple):
    """A plan on a cluster, before it runs."""

    schedule: Schedule
    nodes: Sequence[Node]
    unknown: int  # trials of which nothing is known
    words: list[str]  # for people, one line each

    @property
    def seconds(self) -> float | None:
        """Until the end; None where it is not known."""
        return None if self.unknown or not self.schedule.spans else self.schedule.makespan


def estimate(
    plan: Plan,
    deployments: Iterable[Deployment],
    history: History,
    nodes: Sequence[Node],
    assumed: Assumed | None = None,
) -> Estimate:
    """How long these deployments take on these nodes, by simulating the scheduler, and what they cost."""
    able = [deployment for deployment in deployments if not deployment.unavailable]
    if not able:
        return Estimate(simulate([], nodes), nodes, 0, [])
    expected = times(able, history, plan.settings.hardware, assumed)
    schedule = simulate(expected.needs, nodes)
    if expected.unknown_trials and not assumed:
        words = [
            f"duration and cost unknown ({_trials(expected.unknown_trials)} of a kind that has not come out ok yet)"
        ]
        return Estimate(schedule, nodes, expected.unknown_trials, words)
    if not schedule.spans:
        return Estimate(schedule, nodes, expected.unknown_trials, ["duration unknown: no node could run it now"])
    names = {deployment.deployment_id: deployment.describe() for deployment in able}
    hardware = plan.settings.hardware
    if all(elsewhere(deployment.backend, hardware) for deployment in able):
        hardware = hardware.model_copy(update={"price_per_hour": None})  # an endpoint's price is not this machine's
    words = [
        f"{duration(schedule.makespan)} on {_cluster(nodes, schedule)}, {_used(schedule, hardware)}",
        f"durations: {_sources(expected, sum(len(d.trials) for d in able), assumed)}",
        _critical_path(schedule, names),
    ]
    return Estimate(schedule, nodes, 0, words)


def _trials(number: int) -> str:
    return f"{number} trial{'s' if number != 1 else ''}"


def _cluster(nodes: Sequence[Node], schedule: Schedule) -> str:
    gpus = sum(node.gpus for node in nodes)
    count = f"{len(nodes)} node{'s' if len(nodes) > 1 else ''}"
    return f"{count} with {gpus} GPU{'s' if gpus > 1 else ''}, {schedule.busy:.0%} busy" if gpus else count


def _used(schedule: Schedule, hardware: Hardware) -> str:
    """Hours of what is paid for, and dollars: for what is in use, and for the whole cluster until the end."""
    unit = "GPU-hours" if hardware.platform == "cuda" else "node-hours"
    hours = schedule.gpu_seconds / 3600
    if not hardware.price_per_hour:
        return f"{hours:.2f} {unit}, no price, no cost"
    rented = schedule.makespan * schedule.capacity / 3600 * hardware.price_per_hour
    return f"{hours:.2f} {unit}, ${hours * hardware.price_per_hour:.2f} (${rented:.2f} for all of it until the end)"


def _sources(expected: Times, trials: int, assumed: Assumed | None) -> str:
    parts = ["from earlier runs of the same kind"] if expected.unknown_trials < trials else []
    if assumed and expected.unknown_trials:
        parts.append(f"assumed {assumed.trial:g} s for each of {_trials(expected.unknown_trials)}")
    if assumed and expected.unknown_launches:
        parts.append(f"assumed {assumed.launch:g} s for each of {expected.unknown_launches} launches")
    return "; ".join(parts)


def _critical_path(schedule: Schedule, names: Mapping[str, str]) -> str:
    """Which deployments decide the end, one after the other on the place that is free last."""
    path = schedule.critical_path()
    told = [f"{names[span.key]} [{span.key}] ({duration(span.end - span.begin)})" for span in path]
    if len(told) > SHOWN:
        told = [*told[: SHOWN - 1], f"{len(told) - SHOWN} more", told[-1]]
    more = "more GPUs would not shorten it" if len(path) == 1 else "more GPUs would shorten it"
    return f"critical path: {', then '.join(told)}; {more}" if path else "critical path: none"
