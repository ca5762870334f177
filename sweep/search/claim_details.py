"""The details of a claim, as in capacity.json: the shares of good requests by load, and the cost at the claim."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from sweep.base.config import Settings, slo_in_units
from sweep.base.records import Outcome
from sweep.base.wording import number
from sweep.numbers.quantities.throughput import cost_per_million_tokens
from sweep.plan.plan import Deployment, Trial
from sweep.search.capacity import Capacity, Claim, LatencyBound, Probe, Shares
from sweep.search.users import UserCapacity

ASKED_PARTS = ("workload", "load")  # of a trial, which say what was asked
CHOSEN = ("rate", "concurrency", "num_requests")  # by the search
ProbeRow = tuple[Probe, Mapping[str, Any]]  # with the row of its trial


def claim_details(
    proposer: Capacity | UserCapacity,
    claim: Claim,
    rows: Sequence[ProbeRow],
    point: tuple[Deployment, Trial],
    settings: Settings,
) -> dict[str, Any]:
    """Return what capacity.json has beside a claim.

    Without a price, the cost at both ends of the interval is null.
    """
    deployment, trial = point
    bounds = proposer.bounds
    return {
        "configuration": deployment.describe(),
        "task": task_of(trial),
        "estimate": _likely_load(proposer, claim),
        "asked": asked_of(deployment, trial),
        "slo": slo_in_units(settings.slo),
        "throughput": proposer.most_throughput,
        "bounds": {bound.describe(): bound.share for bound in bounds},
        "measured": [_described(shares, bounds) for shares in proposer.measured_shares()],
        "twin": [_described(shares, bounds) for shares in proposer.twin_shares()],
        "cost_per_million_tokens": [_cost_at(claim.unit, end, rows) for end in (claim.lower, claim.upper)],
    }


def asked_of(deployment: Deployment, trial: Trial) -> dict[str, Any]:
    """Return what a search asks: the model, and the settings of workload and load that it does not choose."""
    parts = {part: {key: each for key, each in trial.config[part].items() if key not in CHOSEN} for part in ASKED_PARTS}
    return {"model": deployment.model.name, **parts}


def _likely_load(proposer: Capacity | UserCapacity, claim: Claim) -> float | None:
    """Return the load that is most likely the capacity: by the twin, or the interval's middle; None if unknown."""
    if claim.status in ("impossible", "refused"):
        return None
    likely = proposer.estimate if isinstance(proposer, Capacity) else math.nan
    if math.isnan(likely):
        likely = math.sqrt(claim.lower * (claim.upper or claim.lower))
    return min(max(likely, claim.lower), claim.upper or math.inf) or None


def task_of(trial: Trial) -> str:
    """Return a planned trial's description without its load's rate or users, which a search varies."""
    return trial.describe_point().replace(trial.load.describe(), trial.load.name, 1)


def with_fresh_launch(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the claims of a point's launches with `fresh_launch`, which the last one's lines say too.

    A fresh launch sustains its `lower` at a risk of 5%: a one-sided prediction from the logarithms of the lower ends.
    It is None unless each of at least two launches has a lower end.
    """
    lowers = [record["lower"] for record in records]
    if len(lowers) < 2 or min(lowers) <= 0:
        return [record | {"fresh_launch": None} for record in records]
    from scipy import stats  # here, since a run without replicates imports this module too

    logs = [math.log(lower) for lower in lowers]
    spread = statistics.stdev(logs)
    margin = float(stats.t.ppf(0.95, len(logs) - 1)) * spread * math.sqrt(1 + 1 / len(logs))
    fresh = {"lower": math.exp(statistics.fmean(logs) - margin), "launches": len(logs), "spread": spread}
    launches = f"{len(logs)} launches, whose lower ends differ by {spread:.1%}"
    line = f"fresh launch: at least {number(fresh['lower'])} {records[0]['unit']}, at a risk of 5%; {launches}"
    last = records[-1] | {"lines": [*records[-1]["lines"][:3], line]}
    return [record | {"fresh_launch": fresh} for record in (*records[:-1], last)]


def _described(shares: Shares, bounds: Sequence[LatencyBound]) -> dict[str, Any]:
    pairs = zip(bounds, shares.good, strict=True)
    good = {bound.describe(): None if math.isnan(share) else share for bound, share in pairs}
    return {"load": shares.load, "good": good}


def _cost_at(unit: str, load: float, rows: Sequence[ProbeRow]) -> float | None:
    """Return the cost per million output tokens at a load, in USD; None if it is unknown.

    At a rate, the engine makes the tokens of that many requests per second. For users the throughput was measured.
    """
    if unit == "users":
        throughputs = [row["output_throughput"] for probe, row in rows if probe.users == load]
    else:
        counts = [
            (row.get("output_tokens") or 0, row["num_requests"])
            for probe, row in rows
            if probe.rate and row["outcome"] != Outcome.CENSORED  # whose answers were not awaited
        ]
        tokens, requests = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0)
        throughputs = [load * tokens / requests] if requests else []
    if not load or not rows or None in throughputs or not throughputs:
        return None
    row, throughput = rows[-1][1], sum(throughputs) / len(throughputs)
    if row.get("price_per_hour") is None:
        cost: float | None = row.get("cost_per_million_tokens")  # charged by token
        return cost
    return cost_per_million_tokens(row["price_per_hour"], row.get("gpu_count") or 0, throughput)
