"""Expected duration and cost of a plan, from earlier similar runs; `unknown` if there are none.

Earlier runs are the folders next to `out`, including folders that `fresh` moved aside. An earlier trial with the same
id is preferred, then trials of the same kind. These have an equal accelerator, and equal keys of backend, model,
workload and load, hence equal flags, numbers of requests and lengths. The same applies to launches. Only trials that
ended `ok` are used: a crash after two seconds does not show how long the trial takes. (Running out of memory or hanging
does, but only for the same trial.) Without history, an assumption may be used: cluster.simulate.seconds_per_trial, or
the durations that an experiment's author measured. Each launch of an engine adds its start-up time.
"""

import json
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TypeVar

from backends.launch import host_facts
from sweep.base.config import DamagedFile, Durations, Hardware
from sweep.base.records import Outcome
from sweep.base.wording import count, duration_text
from sweep.disk.tables import read_table
from sweep.plan.packing import Need, Node, need_of
from sweep.plan.plan import Deployment, Plan, Trial, config_text, elsewhere, hourly_price
from sweep.plan.simulate import SimulatedRun, simulate

HISTORY_COLUMNS = ["trial_id", "deployment_id", "outcome", "config", "accelerator", "gpu_count"]
HISTORY_COLUMNS += ["wall_seconds", "started_at", "ended_at", "startup_seconds"]
BATCH = 4096  # rows
REPEATABLE = (Outcome.OOM_RUN, Outcome.HUNG, Outcome.INVALID, Outcome.CLIENT_LIMITED)  # likely to recur
UNKNOWN_LAUNCH = 60.0  # s
UNKNOWN_TRIAL = 60.0  # s assumed for a trial without history; affects only the order of launches
NAMED = 4  # maximum number of launches listed for a critical path


HistoryKey = TypeVar("HistoryKey")


class History:
    """Durations of trials and launches in earlier runs, in seconds."""

    def __init__(self, rows: Iterable[Mapping[str, Any]], damaged: Sequence[DamagedFile] = ()) -> None:
        by_id: dict[str, list[float]] = defaultdict(list)
        failed_by_id: dict[str, list[float]] = defaultdict(list)
        by_kind: dict[tuple[str, str | None], list[float]] = defaultdict(list)
        launches: dict[tuple[int, str], list[float]] = defaultdict(list)
        launch_kinds: dict[str, tuple[int, str]] = {}  # by deployment, so that a config is not parsed for every row
        for row in rows:
            seconds, ok = trial_seconds(row), row["outcome"] == Outcome.OK
            if not row["config"] or not (ok or row["outcome"] in REPEATABLE):
                continue
            if seconds is not None:
                (by_id if ok else failed_by_id)[row["trial_id"]].append(seconds)
                if ok:
                    by_kind[row["config"], row["accelerator"]].append(seconds)
            if ok and row["startup_seconds"] is not None:
                deployment_id = row["deployment_id"]
                if deployment_id not in launch_kinds:
                    launch_kinds[deployment_id] = _launch_kind(row["gpu_count"], json.loads(row["config"]))
                launches[launch_kinds[deployment_id]].append(row["startup_seconds"])
        self.by_id, self.failed_by_id = _medians(by_id), _medians(failed_by_id)
        self.by_kind, self.launches = _medians(by_kind), _medians(launches)
        repeated = [seconds for seconds in by_kind.values() if len(seconds) > 1]
        total = sum(median(seconds) for seconds in repeated)
        extremes = [sum(min(seconds) for seconds in repeated), sum(max(seconds) for seconds in repeated)]
        self.spread = [extreme / total for extreme in extremes if total]  # of the quickest and slowest, over the median
        self.damaged = damaged  # unreadable files; complete once all rows are read

    @classmethod
    def beside(cls, out: Path) -> "History":
        """Return the history of the runs in and next to a results folder, without damaged files."""
        damaged: list[DamagedFile] = []
        return cls(_earlier_rows(out, damaged), damaged)

    def describe_damage(self) -> list[str]:
        """Return a line for each file that was skipped as damaged."""
        return [f"not used for the estimate: {error}" for error in self.damaged]

    def trial(self, row: Mapping[str, Any]) -> float | None:
        """Return the median duration, in seconds, of trials of this kind; `row` comes from `kind_of`."""
        seconds = self.by_id.get(row["trial_id"])
        if seconds is None and self.by_kind:  # serializing a hundred thousand configs takes seconds
            seconds = self.by_kind.get((config_text(row["config"]), row["accelerator"]))
        return self.failed_by_id.get(row["trial_id"]) if seconds is None else seconds

    def launch(self, deployment: Deployment) -> float | None:
        """Return the median launch time, in seconds, of deployments of this kind."""
        if not self.launches:
            return None
        return self.launches.get(_launch_kind(deployment.gpu_count, deployment.trials[0].config))


def _medians(durations: Mapping[HistoryKey, list[float]]) -> dict[HistoryKey, float]:
    return {key: median(seconds) for key, seconds in durations.items()}


def _earlier_rows(out: Path, damaged: list[DamagedFile]) -> Iterator[dict[str, Any]]:
    for path in sorted(out.parent.glob("*/trials.parquet")):
        try:
            table = read_table(path, HISTORY_COLUMNS)
        except DamagedFile as error:
            damaged.append(error)
            continue
        if set(table.column_names) == set(HISTORY_COLUMNS):
            for batch in table.to_batches(BATCH):  # a hundred thousand rows at once would be hundreds of megabytes
                yield from batch.to_pylist()


def trial_seconds(row: Mapping[str, Any]) -> float | None:
    """Return the seconds from a trial's start to its row, including building its requests; None if not measured."""
    if row.get("wall_seconds") is None:
        return None
    if row.get("started_at") is None or row.get("ended_at") is None:
        return float(row["wall_seconds"])
    try:
        return (datetime.fromisoformat(row["ended_at"]) - datetime.fromisoformat(row["started_at"])).total_seconds()
    except (TypeError, ValueError):  # another run's row may have any text
        return float(row["wall_seconds"])


def _launch_kind(gpus: int, config: Mapping[str, Any]) -> tuple[int, str]:
    """Return a key for similar launches: their shared settings. Imported rows may lack a model."""
    return gpus, config_text({group: config.get(group) for group in ("backend", "model")})


def kind_of(deployment: Deployment, trial: Trial, hardware: Hardware) -> dict[str, Any]:
    """Return the columns of a trial's row that determine its duration: id, resolved config and accelerator."""
    gpus = host_facts.gpu_names() if deployment.gpu_count and hardware.accelerator is None else ()
    accelerator = hardware.accelerator or next(iter(gpus), hardware.name)
    return {
        "trial_id": trial.trial_id,
        "config": trial.config,
        "accelerator": None if elsewhere(deployment.backend, hardware) else accelerator,
    }


class Assumed(NamedTuple):
    """Durations to assume if there is no history, in seconds."""

    trial: float
    launch: float
    measured: Durations | None = None  # launch times by backend, and the time before the first launch

    def launch_of(self, deployment: Deployment) -> float:
        launches = self.measured.launches if self.measured else {}
        return launches.get(deployment.backend.name, self.launch)


class Expected(NamedTuple):
    """Expected durations of launches; trials and launches without history are only counted."""

    needs: list[Need]
    trials: dict[str, float]  # seconds by trial id, from earlier runs; unknown trials are absent
    launches: dict[str, float]  # seconds until the engine is ready, by launch key; unknown launches are absent
    unknown_trials: int
    unknown_launches: int

    def trials_of(self, launch: Deployment) -> dict[str, float]:
        """Return the durations of a launch's trials, in seconds, by trial id, without unknown durations."""
        return {t.trial_id: self.trials[t.trial_id] for t in launch.trials if t.trial_id in self.trials}

    def first_result(self, launch: Deployment) -> float:
        """Return the seconds until a launch's shortest trial ends, counting unknown durations as 0."""
        shortest = min((self.trials.get(trial.trial_id, 0.0) for trial in launch.trials), default=0.0)
        return self.launches.get(launch.launch_key, 0.0) + shortest


def expect(
    launches: Iterable[Deployment], history: History, hardware: Hardware, assumed: Assumed | None = None, seed: int = 0
) -> Expected:
    """Return the expected durations of launches and their trials, and each launch's GPUs and order."""
    assumed = assumed or Assumed(UNKNOWN_TRIAL, 0.0)
    expected = Expected([], {}, {}, 0, 0)
    number = 0
    for launch in launches:
        number += len(launch.trials)
        for trial in launch.trials:
            if (seconds := history.trial(kind_of(launch, trial, hardware))) is not None:
                expected.trials[trial.trial_id] = seconds
        if (seconds := history.launch(launch)) is not None:
            expected.launches[launch.launch_key] = seconds
        total = expected.launches.get(launch.launch_key, assumed.launch_of(launch))
        total += sum(expected.trials.get(trial.trial_id, assumed.trial) for trial in launch.trials)
        place = random.Random(f"{seed}/{launch.launch_key}").random()
        expected.needs.append(need_of(launch, total, place))
    unknown_launches = len(expected.needs) - len(expected.launches)
    return expected._replace(unknown_trials=number - len(expected.trials), unknown_launches=unknown_launches)


class RunEstimate(NamedTuple):
    """The expected course of a plan on a cluster."""

    expected: Expected
    simulated: SimulatedRun
    seconds: float | None  # until the end; None if neither earlier runs nor an assumption provide durations
    messages: list[str]  # the estimate in one line, then how it was computed


def estimate_run(
    plan: Plan, launches: Sequence[Deployment], history: History, nodes: Sequence[Node], assumed: Assumed | None = None
) -> RunEstimate:
    """Estimate the duration and cost of launches on these nodes by simulating the scheduler."""
    expected = expect(launches, history, plan.settings.hardware, assumed, plan.settings.seed)
    simulated = simulate(expected.needs, nodes)
    if not launches:
        return RunEstimate(expected, simulated, None, [])
    if expected.unknown_trials and not assumed:
        unknown = count(expected.unknown_trials, "trial")
        message = f"duration and cost unknown (no earlier successful run of {unknown} to estimate from)"
        return RunEstimate(expected, simulated, None, [message])
    if not simulated.spans:
        return RunEstimate(expected, simulated, None, ["duration unknown: no node can run the plan now"])
    names = {launch.launch_key: launch.describe_launch() for launch in launches}
    hardware = plan.settings.hardware
    if not any(launch.backend.launches for launch in launches):  # this machine's price does not apply to an endpoint
        prices = {hourly_price(launch.backend, hardware) for launch in launches}
        hardware = hardware.model_copy(update={"price_per_hour": prices.pop() if len(prices) == 1 else None})
    gpus = sum(node.gpus for node in nodes)
    cluster = count(len(nodes), "node") + (f" with {count(gpus, 'GPU')}, {simulated.busy:.0%} busy" if gpus else "")
    units = "GPUs" if hardware.platform == "cuda" else "nodes"
    measured = assumed.measured if assumed else None
    parts = _parts_from_empty(launches, expected, assumed, measured) if assumed and measured else {}
    from_empty = f"{sum(parts.values()) / 60:.1f} min from an empty folder and cache"
    ends = [duration_text(simulated.makespan * share) for share in history.spread if expected.trials]
    ranges = [" to ".join(ends)] if len({*ends}) > 1 else []
    ranges += [from_empty] if parts and expected.unknown_launches else []
    spread = f" ({'; '.join(ranges)})" if ranges else ""
    listed = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in parts.items() if seconds)
    messages = [
        f"about {duration_text(simulated.makespan)}{spread} on {cluster}, {_cost(simulated, hardware)}",
        *([f"{from_empty}: {listed} (on {measured.machine})"] if measured else []),
        f"{count(len(simulated.spans), 'launch')}, {simulated.makespan / (simulated.bound or 1):.2f} times "
        f"the shortest possible: all {units} busy, or the longest launch",
        f"durations: {_sources(expected, assumed)}",
        _critical_path(simulated, names, units),
    ]
    return RunEstimate(expected, simulated, simulated.makespan, messages)


def _parts_from_empty(
    launches: Sequence[Deployment], expected: Expected, assumed: Assumed, measured: Durations
) -> dict[str, float]:
    """Return the parts of the time from an empty machine to the last trial, in s: set-up, launches, trials, …"""
    deployments = {launch.deployment_id for launch in launches}
    trials = [trial.trial_id for launch in launches for trial in launch.trials]
    return {
        "set-up": measured.set_up,
        "environments": measured.environments,
        "model": measured.model,
        "reference answers": measured.reference,
        f"{count(len(deployments), 'comparison')} with them": measured.comparison * len(deployments),
        count(len(launches), "launch"): sum(
            expected.launches.get(launch.launch_key, assumed.launch_of(launch)) for launch in launches
        ),
        count(len(trials), "trial"): sum(expected.trials.get(trial, assumed.trial) for trial in trials),
    }


def _cost(simulated: SimulatedRun, hardware: Hardware) -> str:
    """Describe the GPU-hours (or node-hours) used, their cost, and the cost of the whole cluster until the end."""
    unit = "GPU-hours" if hardware.platform == "cuda" else "node-hours"
    hours = simulated.gpu_seconds / 3600
    if not hardware.price_per_hour:
        return f"{hours:.2f} {unit}, no price set"
    rented = simulated.makespan * simulated.capacity / 3600 * hardware.price_per_hour
    return f"{hours:.2f} {unit}, ${hours * hardware.price_per_hour:.2f} (${rented:.2f} for the whole cluster)"


def _sources(expected: Expected, assumed: Assumed | None) -> str:
    parts = ["from earlier runs of the same kind"] if expected.trials else []
    if assumed and expected.unknown_trials:
        parts.append(f"{assumed.trial:g} s assumed for each of {count(expected.unknown_trials, 'trial')}")
    if assumed and expected.unknown_launches:
        each = "as the experiment states" if assumed.measured else f"{assumed.launch:g} s assumed"
        parts.append(f"{each} for each of {expected.unknown_launches} launches")
    return "; ".join(parts)


def _critical_path(simulated: SimulatedRun, names: Mapping[str, str], units: str) -> str:
    """Describe the chain of launches that determines the run's end, each waiting for the one before."""
    path = simulated.critical_path()
    steps = [f"{names[span.key]} [{span.key}] ({duration_text(span.end - span.begin)})" for span in path]
    if len(steps) > NAMED:
        steps = [*steps[: NAMED - 1], f"{len(steps) - NAMED} more", steps[-1]]
    hint = f"more {units} would not shorten it" if len(path) == 1 else f"more {units} would shorten it"
    return f"critical path: {', then '.join(steps)}; {hint}"
