"""The answers of searches for a capacity: the configuration that sustains the highest load within the SLO."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from analysis.answers.asking import run_names
from analysis.answers.slo_bounds import Bound
from analysis.answers.task_answer import RankedConfiguration, TaskAnswer, TaskCriterion
from analysis.quantities import LabelledColumn, labelled_column
from analysis.results import RunResults
from analysis.statistics.contests import Standing
from analysis.statistics.intervals import Estimate
from analysis.table import KEY, NONE, Cell, Column, Table, view
from sweep.base.config import read_slo, split_bound
from sweep.base.wording import number
from sweep.numbers.quantity import percentile_name

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
    def text(self) -> str:
        """The claim in words, without its label."""
        return str(self.record["lines"][0]).partition(":")[2].strip()

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


def capacity_answers(claims: Sequence[PointClaim]) -> list[TaskAnswer]:
    """Return the answer of each task: the highest lower end first. Claims whose intervals overlap tie."""
    tasks: dict[str, list[PointClaim]] = {}
    for claim in claims:
        tasks.setdefault(str([claim.record["asked"], claim.record["unit"]]), []).append(claim)
    return [_answer_of_claims(of_task) for of_task in tasks.values()]


def _answer_of_claims(claims: Sequence[PointClaim]) -> TaskAnswer:
    claims = _of_all_launches(claims)
    first = claims[0]
    limits = [_claimed_bound(latency, percentile, limit) for (latency, percentile), limit in first.bounds.items()]
    names = [claim.record["configuration"] for claim in claims]
    full_names = [
        f"{name} ({claim.run})" if names.count(name) > 1 else name for claim, name in zip(claims, names, strict=True)
    ]
    pairs = sorted(zip(claims, full_names, strict=True), key=lambda pair: -pair[0].record["lower"])
    best = pairs[0][0].ends
    ranked = [_ranked(claim, name, best) for claim, name in pairs if claim.record["lower"]]
    barred = [replace(_ranked(claim, name, best), codes=(claim.text,)) for claim, name in pairs[len(ranked) :]]
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
        uppers = [claim.record["upper"] for claim in each]
        ends = {"lower": min(claim.record["lower"] for claim in each), "upper": max(uppers) if all(uppers) else 0.0}
        lowest = min(each, key=lambda claim: float(claim.record["lower"]))
        pooled.append(replace(lowest, record={**lowest.record, **ends, "launches": len(each)}))
    return pooled


def _ranked(claim: PointClaim, name: str, best: tuple[float, float]) -> RankedConfiguration:
    """Return a claim's configuration, with the interval of the best's capacity over its own."""
    low, high = claim.ends
    fresh = (claim.record.get("fresh_launch") or {}).get("lower", math.nan)
    ends = (low, high) if math.isfinite(high) else (math.nan, math.nan)
    figure = Estimate(low, *ends, claim.record["launches"], fresh)
    standing = Standing.BEHIND if high < best[0] else Standing.TIED
    ratios = best[0] / low, best[0] / high, best[1] / low
    return RankedConfiguration(name, "", claim.run, figure, math.nan, None, None, standing, *ratios)


def _claimed_bound(latency: str, percentile: float, limit: float) -> Bound:
    labelled = labelled_column(f"{latency}_{percentile_name(percentile)}", [percentile])
    assert labelled is not None, "a claim's bounds are latencies"
    return Bound(labelled, limit, percentile)


def _cost_cell(claim: PointClaim) -> Cell:
    costs = [cost for cost in claim.record["cost_per_million_tokens"] if cost is not None]
    if not costs:
        return Cell(NONE)
    return Cell(number(costs[0]), f"{number(costs[1])}–{number(costs[0])}" if len(costs) > 1 else "")


CLAIM_COLUMNS: tuple[Column[PointClaim], ...] = (
    Column("run", "name of the run", lambda claim: claim.run),
    Column(
        "configuration", "the engine, with the settings that vary", lambda claim: claim.record["configuration"], **KEY
    ),
    Column("task", "what was asked", lambda claim: claim.record["task"], **KEY),
    Column("replicate", "number of the launch", lambda claim: claim.record.get("replicate")),
    Column("status", "confirmed, interval, above, impossible, drift or refused", lambda claim: claim.record["status"]),
    Column("lower, upper", "ends of the claim's interval", lambda claim: claim.ends, of_value="`unit`"),
    Column("unit", "requests/s or users", lambda claim: claim.record["unit"]),
    view("capacity", lambda claim: claim.text, kind="text wide"),
    Column("limit", "the bound that is exceeded first", lambda claim: claim.record["limit"] or NONE, kind="text"),
    Column(
        "cost_at_lower, cost_at_upper",
        "cost per million output tokens at the interval's ends",
        lambda claim: tuple(claim.record["cost_per_million_tokens"]),
        _cost_cell,
        "USD",
        heading="cost",
        unit="$/M tokens",
    ),
    Column(
        "fresh_launch_lower",
        "load that a fresh launch sustains at a risk of 5%; of several launches only",
        lambda claim: (claim.record.get("fresh_launch") or {}).get("lower"),
        of_value="`unit`",
    ),
    Column("probes", "number of trials", lambda claim: claim.record["probes"]),
    Column("seconds", "time of measurement", lambda claim: claim.record["seconds"], of_value="s"),
)
"""The columns of a table of claims."""


def claims_table(claims: Sequence[PointClaim]) -> Table[PointClaim]:
    """Return the capacity of each configuration and task."""
    return Table(CLAIM_COLUMNS, claims)
