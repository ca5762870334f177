"""The answers of searches for a capacity: the configuration that sustains the highest load within the SLO."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from analysis.answers.asking import run_names
from analysis.answers.slo_bounds import Bound
from analysis.answers.task_answer import RankedConfiguration, TaskAnswer, TaskCriterion
from analysis.point_names import listed
from analysis.quantities import LabelledColumn, labelled_column
from analysis.results import RunResults
from analysis.statistics.contests import Standing
from analysis.statistics.intervals import Estimate
from analysis.table import KEY, NONE, Column, Table, view
from sweep.base.config import read_slo, split_bound
from sweep.base.wording import number
from sweep.numbers.quantity import percentile_name

LOADS = ("capacity", "fresh launch")  # the columns of a table of claims that have a load
USUAL_PERCENTILE = 90.0  # the percentile of a bound that has none
ClaimedBounds = dict[tuple[str, float], float]  # (latency, percentile) -> limit in s


@dataclass(frozen=True)
class CapacityColumn(LabelledColumn):
    """A capacity: the load that a configuration sustains, in its unit."""

    def shown(self, value: float) -> str:
        """Return a rate with three significant digits, and users as a whole number."""
        return f"{value:.0f}" if self.unit == "users" and math.isfinite(value) else number(value)


@dataclass(frozen=True)
class PointClaim:
    """A claim of a search, with its run's name."""

    run: str
    record: Mapping[str, Any]  # as in capacity.json

    @property
    def quantity(self) -> CapacityColumn:
        return CapacityColumn("capacity", "Capacity", "Capacity", self.record["unit"], 1.0, "higher")

    @property
    def bounds(self) -> ClaimedBounds:
        return bounds_of(read_slo(self.record["slo"]) or {})

    @property
    def load(self) -> str:
        """The claimed load in short: `15.4–16.4`, `≥ 15.4`, `> 15.4`, `≤ 16.4`, `none` or `unknown`."""
        low, high = map(self.quantity.shown, self.ends)
        if not self.record["lower"]:
            missing = "none" if self.record["status"] == "impossible" else "unknown"
            return f"≤ {high}" if self.record["upper"] else missing
        if self.record["status"] == "above" or not self.record["upper"]:
            return f"{'>' if self.record['status'] == 'above' else '≥'} {low}"
        return low if low == high else f"{low}–{high}"

    @property
    def ends(self) -> tuple[float, float]:
        """The ends of its interval; nan if unknown."""
        return self.record["lower"] or math.nan, self.record["upper"] or math.nan


def bounds_of(slo: Mapping[str, float]) -> ClaimedBounds:
    """Return the bounds of an SLO by latency and percentile."""
    split = {split_bound(name): limit for name, limit in slo.items()}
    return {(latency, percentile or USUAL_PERCENTILE): limit for (latency, percentile), limit in split.items()}


def claims_within(runs: Sequence[RunResults], slo: Mapping[str, float] | None = None) -> list[PointClaim]:
    """Return the claims of these runs; with an SLO only the claims for these bounds."""
    named = [
        PointClaim(name, record)
        for results, name in zip(runs, run_names(runs), strict=True)
        for record in results.claims.values()
    ]
    return named if slo is None else [claim for claim in named if claim.bounds == bounds_of(slo)]


def _by_task(claims: Sequence[PointClaim]) -> list[list[PointClaim]]:
    """Return each task's claims, one for each configuration of a run: the highest lower end first."""
    tasks: dict[str, list[PointClaim]] = {}
    for claim in claims:
        tasks.setdefault(str([claim.record["asked"], claim.record["unit"]]), []).append(claim)
    return [sorted(_of_all_launches(each), key=lambda claim: -claim.record["lower"]) for each in tasks.values()]


def capacity_answers(claims: Sequence[PointClaim]) -> list[TaskAnswer]:
    """Return the answer of each task. Claims whose intervals overlap tie."""
    return [_answer_of_claims(of_task) for of_task in _by_task(claims)]


def _answer_of_claims(claims: Sequence[PointClaim]) -> TaskAnswer:
    first = claims[0]
    limits = [_claimed_bound(latency, percentile, limit) for (latency, percentile), limit in first.bounds.items()]
    names = [claim.record["configuration"] for claim in claims]
    full = [f"{name} ({each.run})" if names.count(name) > 1 else name for each, name in zip(claims, names, strict=True)]
    pairs = list(zip(claims, full, strict=True))
    best = pairs[0][0].ends
    ranked = [_ranked(claim, name, best) for claim, name in pairs if claim.record["lower"]]
    barred = [replace(_ranked(claim, name, best), codes=(claim.load,)) for claim, name in pairs[len(ranked) :]]
    criterion = TaskCriterion(str(first.record["task"]), first.quantity, tuple(limits))
    placed = [replace(each, standing=Standing.BEST, low=math.nan, high=math.nan) for each in ranked[:1]]
    return TaskAnswer(criterion, (*placed, *ranked[1:]), barred=tuple(barred))


def _of_all_launches(claims: Sequence[PointClaim]) -> list[PointClaim]:
    """Return one claim for each configuration of a run: each of its launches is within the claim's interval."""
    launches: dict[tuple[str, str], list[PointClaim]] = {}
    for claim in claims:
        launches.setdefault((claim.run, claim.record["configuration"]), []).append(claim)
    pooled = []
    for each in launches.values():
        lowest = min(each, key=lambda claim: float(claim.record["lower"]))
        highest = max(each, key=lambda claim: float(claim.record["upper"] or math.inf))
        costs = [claim.record["cost_per_million_tokens"] for claim in (lowest, highest)]
        ends = {"upper": highest.record["upper"], "cost_per_million_tokens": [costs[0][0], costs[1][-1]]}
        pooled.append(replace(lowest, record={**lowest.record, **ends, "launches": len(each)}))
    return pooled


def _ranked(claim: PointClaim, name: str, best: tuple[float, float]) -> RankedConfiguration:
    """Return a claim's configuration, with the interval of the best's capacity over its own."""
    low, high = claim.ends
    fresh = _fresh_launch(claim) or math.nan
    ends = (low, high) if math.isfinite(high) else (math.nan, math.nan)
    figure = Estimate(low, *ends, claim.record["launches"], fresh)
    standing = Standing.BEHIND if high < best[0] else Standing.TIED
    ratios = best[0] / low, best[0] / high, best[1] / low
    return RankedConfiguration(name, "", claim.run, figure, math.nan, None, None, standing, *ratios)


def _claimed_bound(latency: str, percentile: float, limit: float) -> Bound:
    labelled = labelled_column(f"{latency}_{percentile_name(percentile)}", [percentile])
    assert labelled is not None, "a claim's bounds are latencies"
    return Bound(labelled, limit, percentile)


def _fresh_launch(claim: PointClaim) -> float | None:
    """Return the load that a fresh launch sustains; None if launches were not repeated."""
    return (claim.record.get("fresh_launch") or {}).get("lower")


def _cost_range(claim: PointClaim) -> str:
    """Return the cost at the interval's ends: the higher load is the cheaper."""
    costs = [number(cost) for cost in reversed(claim.record["cost_per_million_tokens"]) if cost is not None]
    return "–".join(dict.fromkeys(costs)) or NONE


CLAIM_COLUMNS: tuple[Column[PointClaim], ...] = (
    Column("run", "name of the run", lambda claim: claim.run),
    Column(
        "configuration", "the engine, with the settings that vary", lambda claim: claim.record["configuration"], **KEY
    ),
    Column("task", "what was asked", lambda claim: claim.record["task"], **KEY),
    Column("replicate", "number of the launch", lambda claim: claim.record.get("replicate")),
    Column("lower, upper", "ends of the claim's interval", lambda claim: claim.ends, of_value="`unit`"),
    Column("unit", "requests/s or users", lambda claim: claim.record["unit"]),
    view("capacity", lambda claim: claim.load),
    Column(
        "limit",
        "the bound that is exceeded first, or why the search ended without one",
        lambda claim: claim.record["limit"] or claim.record["ended"].partition(": ")[0] or None,
        kind="text",
    ),
    Column(
        "cost_at_lower, cost_at_upper",
        "cost per million output tokens at the interval's ends",
        lambda claim: tuple(claim.record["cost_per_million_tokens"]),
        _cost_range,
        "USD",
        heading="cost",
        unit="$/M tokens",
    ),
    Column(
        "fresh_launch_lower",
        "load that a fresh launch sustains at a risk of 5%; of several launches only",
        _fresh_launch,
        lambda claim: NONE if (lower := _fresh_launch(claim)) is None else f"≥ {claim.quantity.shown(lower)}",
        "`unit`",
        heading="fresh launch",
    ),
    Column("status", "confirmed, interval, above, refused, …", lambda claim: claim.record["status"], kind="text"),
    Column("probes", "number of trials", lambda claim: claim.record["probes"]),
    Column("seconds", "time of measurement", lambda claim: claim.record["seconds"], of_value="s"),
)
"""The columns of a table of claims."""


def claims_table(claims: Sequence[PointClaim]) -> Table[PointClaim]:
    """Return the capacity of each configuration and task."""
    unit = listed(sorted({claim.record["unit"] for claim in claims}))
    columns = [replace(each, unit=unit) if each.heading in LOADS else each for each in CLAIM_COLUMNS]
    return Table(columns, claims, points=len(claims))


def of_capacities(results: RunResults) -> Table[PointClaim]:
    """Return a run's capacities, one for each configuration and task: the highest of a task first."""
    return claims_table(list(chain(*_by_task(claims_within([results])))))
