"""The points of a plan with their demand, and warnings about points that do not fit in memory or in time."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer

from sweep.base.config import Settings, cache_directory, next_time
from sweep.base.wording import count, duration_text
from sweep.plan.capacity.demand import Demand, Lengths, lengths_of, measure
from sweep.plan.capacity.footprint import GIBIBYTE, planned_launch, sizes
from sweep.plan.plan import Deployment, Plan, Trial

MOST_LOADS = 4  # maximum number of loads in a warning
LEAST_BATCHES = 2  # per point, over all its replicates


class PlanPoint(NamedTuple):
    deployment: Deployment
    trials: list[Trial]
    demand: Demand

    @property
    def label(self) -> str:
        return self.trials[0].describe_point()


def plan_points(plan: Plan) -> list[PlanPoint]:
    """Return the points whose demand can be computed: the GPU's memory and bandwidth, and the model's dimensions, must
    be known.
    """
    hardware = plan.settings.hardware
    if not (hardware.gpu_memory and hardware.bandwidth and hardware.flops):
        return []
    cache = cache_directory(plan.settings.cache_dir)
    lengths: dict[tuple[int, str, int], Lengths] = {}
    points: list[PlanPoint] = []
    for deployment in plan.deployments:
        shape = deployment.model.dimensions(cache) if hasattr(deployment.model, "dimensions") else None
        if deployment.unavailable or not deployment.backend.launches or shape is None:
            continue
        size, flags = sizes(deployment, shape, hardware), deployment.backend.flags_on(planned_launch(deployment))
        for trials in deployment.points():
            key = id(trials[0].workload), deployment.model.name, min(trials[0].num_requests, 200)
            if key not in lengths:
                lengths[key] = lengths_of(trials[0], tokenizer_here(deployment, cache), cache)
            points.append(PlanPoint(deployment, trials, measure(trials[0], lengths[key], size, hardware, flags)))
    return points


def tokenizer_here(deployment: Deployment, cache: Path) -> Tokenizer | None:
    """Return the model's tokenizer; None if it is unknown, or not on this machine."""
    try:
        tokenizer: Tokenizer | None = deployment.model.load_tokenizer(cache)
    except (OSError, ValueError):
        return None
    return tokenizer


def capacity_warnings(plan: Plan, points: list[PlanPoint]) -> list[str]:
    """Return one-line warnings about points that exceed memory or time limits, and loads with too few requests."""
    return [*_without_room(points), *_too_slow(points, plan.settings), *_idle_users(plan), *_single_batches(plan)]


def least_time(points: list[PlanPoint], hardware: str) -> list[str]:
    """Return a line with the minimum duration of all trials of known demand, which no engine can undercut."""
    seconds = _least_seconds(points)
    return [f"at least {duration_text(seconds)} of measurement on one {hardware} (roofline bound)"] if seconds else []


def _least_seconds(points: list[PlanPoint]) -> float:
    return sum(point.demand.seconds * len(point.trials) for point in points if point.demand.fits)


def _without_room(points: list[PlanPoint]) -> Iterator[str]:
    """Yield a line for a deployment that cannot be launched, or for each workload with loads that do not fit."""
    by_line: dict[tuple[str, str], list[PlanPoint]] = {}
    for point in points:
        if not point.demand.fits:
            workload = point.trials[0].workload.name if point.demand.sizes.launches else ""
            by_line.setdefault((point.deployment.describe(), workload), []).append(point)
    for (name, workload), misfits in by_line.items():
        memory = misfits[0].demand.sizes.memory / GIBIBYTE
        if not workload:
            yield f"{name}: {_at_launch(misfits[0].demand)} in {memory:.1f} GiB: the launch is expected to fail"
            continue
        loads = dict.fromkeys(f"{p.trials[0].load.describe()} ({p.demand.total / GIBIBYTE:.1f} GiB)" for p in misfits)
        more = f" and {len(loads) - MOST_LOADS} more" if len(loads) > MOST_LOADS else ""
        named = ", ".join(list(loads)[:MOST_LOADS]) + more
        yield f"{name}: {workload} {named} do not fit in {memory:.1f} GiB: expected to end with oom_run"


def _at_launch(demand: Demand) -> str:
    sizes = demand.sizes
    weights = f"weights of {sizes.weights / GIBIBYTE:.1f} GiB"
    if sizes.shared:
        return f"{weights} leave a KV cache of {sizes.room:,.0f} tokens, less than the context of {sizes.context:,},"
    if sizes.room is None:
        return f"{weights} do not fit"
    cache = f"{sizes.room:,.0f} tokens of KV cache ({sizes.room * sizes.per_token / GIBIBYTE:.1f} GiB)"
    return f"{weights} and {cache} do not fit"


def _too_slow(points: list[PlanPoint], settings: Settings) -> Iterator[str]:
    """Yield a line for each point whose minimum duration exceeds a limit, and one if their sum exceeds the deadline."""
    limits = ("trial_timeout", settings.trial_timeout), ("client.timeouts.total", settings.client.timeouts.total)
    for point in points:
        least = (point.demand.seconds, point.demand.request_seconds)
        for seconds, (key, limit) in zip(least, limits, strict=True):
            if limit is not None and seconds > limit:
                name = f"{point.deployment.describe()}: {point.label}"
                yield f"{name} takes at least {duration_text(seconds)}, but {key}={limit:g} s ends it: raise {key}"
    if settings.deadline is not None:
        now = datetime.now()
        remaining = (next_time(settings.deadline, now) - now).total_seconds()
        if (total := _least_seconds(points)) > remaining > 0:
            yield f"deadline={settings.deadline}: the trials take at least {duration_text(total)} on one GPU"


def _idle_users(plan: Plan) -> list[str]:
    """Warn of loads with more users than requests, or sessions: some users would stay idle."""
    lines: dict[str, None] = {}
    for trial in {(id(trial.load), id(trial.workload)): trial for trial in plan.trials}.values():
        users = getattr(trial.load, "concurrency", 0)
        if users and users > (sessions := len(trial.workload.starts(trial.num_requests, trial.seed))):
            work = count(sessions, "session" if sessions < trial.num_requests else "request")
            idle = f"{work} for {users} users; the other users would be idle"
            lines[f"load.concurrency={users}: {idle}: raise workload.num_requests"] = None
    return list(lines)


def _single_batches(plan: Plan) -> list[str]:
    """Warn of points that send only one batch in all their replicates.

    Discarded first batches are counted too. In-process engines are exempt: they get all requests in one call, so the
    batch itself is measured.
    """
    lines: dict[str, None] = {}
    for deployment in plan.deployments:
        for trials in () if deployment.backend.traits.timed_inside else deployment.points():
            size = trials[0].load.size
            if size and sum(trial.num_requests for trial in trials) // size < LEAST_BATCHES:
                lines[
                    f"load.batch_size={size}: workload.num_requests={trials[0].workload.num_requests} is 1 batch, "
                    "without variation: raise num_requests or replicates"
                ] = None
    return list(lines)
