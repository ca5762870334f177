"""Measures how often a claimed capacity is too high, on simulated deployments of known capacity, and its cost.

    python -m benchmarks.capacity --deployments 100 [--first 10000] [--case CASE ...]
    python -m benchmarks.capacity --write docs/measurements/capacity.md

Our search (sweep.search) and four other rules measure the same deployments. Every deployment is a line of FILES, so
that a run continues where it stopped. `right`: the twin has the limits. `endpoint`: the twin has no limits. `wrong`:
the twin ignores the cost of KV, has another prompt budget and 15% too much KV memory. `drift`: steps become 5% slower
over 20 probes, and the truth is the capacity at mid-measurement. `tails`: lengths have heavier tails. `lost`: a search
goes on after another launch, 3% faster or slower, was lost in its first ten probes. `users`: closed loops, with 20
minutes for each search. `engines`: `sweep capacity` searches simulated engines, which serve one request in each of
their lanes; T has no least duration, and the truth is that of a queue. The other truths are from bisection on 120,000
requests per rate, and tested on new seeds. Deployments whose truth is uncertain by over 2% are omitted. The other rules
are our reading of their documents.
"""

import argparse
import functools
import heapq
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.optimize import brentq, isotonic_regression

from benchmarks.deployments import Deployment, compile_event_loop, deployment
from benchmarks.documents import markdown_table, publish
from sweep.cli.commands import dispatch
from sweep.disk.run_files import RunPaths, read_claims
from sweep.search import probes
from sweep.search.capacity import Capacity, CapacityQuestion, Claim, Probe, ProbeResult
from sweep.search.twin import Costs, Floats, Integers, Limits, Replay, Requests, Twin, run_queue
from sweep.search.users import UserCapacity
from tests.support.simulated_engine import simulated as simulated_engine

FILES = Path("benchmarks/results")  # ignored by git
TRUTH_REQUESTS = 40_000  # requests per run; each rate gets three runs
UNCERTAIN = 0.02  # largest standard error of the truth's logarithm
GOOD = 0.9
GRID = 20
CASES = ("right", "wrong", "endpoint", "drift", "tails", "lost", "users", "engines")
LAUNCHES_DIFFER = 0.03  # standard deviation of the logarithm of a launch's speed
TOKENS = 4  # of an answer of the simulated engines
BUDGET_OF_ENGINE = 60  # s
BUDGET = 1200.0  # s of a search for users


class Truth(NamedTuple):
    """The true capacity of a deployment, found by long runs."""

    capacity: float
    error: float  # standard error of the capacity's logarithm
    slope: float  # change of the share of good requests per change of the rate's logarithm
    bound: int


@functools.lru_cache(maxsize=1)  # cases share it
def true_capacity(simulated: Deployment) -> Truth | None:
    """Return the capacity by bisection on long runs; None if no rate meets the bounds."""

    def shares(log_rate: float, seed: int, least: float = 0.0) -> Floats:  # no more runs once the mean is below `least`
        every = np.ones((3, len(simulated.bounds)))
        for number in range(3):
            random = np.random.default_rng([simulated.seed, seed, number])
            run = simulated.open_loop(float(np.exp(log_rate)), TRUTH_REQUESTS, random)
            every[number] = [np.nanmean(bound.good(run)[TRUTH_REQUESTS // 20 :]) for bound in simulated.bounds]
            if every.mean(axis=0).min() < least:
                break
        return every

    saturated = np.log(simulated.saturation_guess)
    low, high = saturated + np.log(0.05), saturated + np.log(1.1)
    if shares(low, 1, GOOD).mean(axis=0).min() < GOOD:
        return None
    for _ in range(11):
        middle = (low + high) / 2
        low, high = (middle, high) if shares(middle, 1, GOOD).mean(axis=0).min() >= GOOD else (low, middle)
    centre = (low + high) / 2
    below, above = shares(centre - 0.02, 2).mean(axis=0), shares(centre + 0.02, 3).mean(axis=0)
    bound = int(np.argmin(above))
    slope = float(above[bound] - below[bound]) / 0.04
    if slope < -0.02:  # fresh seeds correct for the luck of the bisection's seeds
        centre += float(np.clip((GOOD - (above[bound] + below[bound]) / 2) / slope, -0.02, 0.02))
    fresh = shares(centre, 4)[:, bound]
    error = float(fresh.std(ddof=1)) / np.sqrt(6) / max(-slope, 0.02)
    return Truth(float(np.exp(centre)), error, slope, bound)


def most_users(simulated: Deployment) -> int:
    """Return the most users of a closed loop that meets the bounds, by bisection on long runs; 0 if none does."""

    def share(users: int) -> float:
        every = []
        for number in range(3):
            random = np.random.default_rng([simulated.seed, 5, number])
            run = simulated.closed_loop(users, TRUTH_REQUESTS, random)
            section = slice(TRUTH_REQUESTS // 20, -users)
            every.append([np.nanmean(bound.good(run)[section]) for bound in simulated.bounds])
        return float(np.mean(every, axis=0).min())

    low, high = 0, 2
    while share(high) >= GOOD:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if share(middle) >= GOOD else (low, middle)
    return low


class Bench:
    """A deployment that is measured, and the time that measuring it has taken."""

    def __init__(self, simulated: Deployment, seed: Sequence[int]) -> None:
        self.simulated, self.random = simulated, np.random.default_rng(seed)
        self.clock, self.unit = 0.0, simulated.unit

    def share(self, rate: float) -> float:
        """Return the smallest share of good requests in a probe of the grid's length, without its first fifth."""
        return min(float(np.nanmean(good)) for good in self.good(rate))

    def good(self, rate: float) -> list[Floats]:
        count = max(1, self.random.poisson(rate * self.unit))
        horizon = 1.5 * self.unit
        run = self.simulated.open_loop(rate, count, self.random, self.clock, horizon)
        last = run.arrivals + run.e2el
        self.clock += max(self.unit, float(last.max())) if np.isfinite(last).all() else horizon
        skipped = count // 5
        return [np.nan_to_num(bound.good(run))[skipped:] for bound in self.simulated.bounds]

    def saturate(self) -> float:
        """Return the throughput of a closed loop that lasts half a probe."""
        users = 2 * self.simulated.limits.running
        count = max(3 * users, int(self.unit / 2 * self.simulated.saturation_guess))
        run = self.simulated.closed_loop(users, count, self.random, self.clock)
        ends = np.sort(run.arrivals + run.e2el)
        self.clock += float(ends[-1])
        start, end = ends[len(ends) // 5], run.arrivals.max()
        return float(np.sum((ends > start) & (ends <= end)) / (end - start))

    def measure(self, probe: Probe) -> ProbeResult:
        """Run a probe of our search until its last request has ended."""
        if probe.users:
            run = self.simulated.closed_loop(probe.users, probe.requests, self.random, self.clock)
        else:
            run = self.simulated.open_loop(probe.rate, probe.requests, self.random, self.clock)
        seconds = float(np.nanmax(run.arrivals + run.e2el))
        self.clock += seconds
        return ProbeResult(probe, run, seconds)


# The other rules -----------------------------------------------------------------------------------------------------


def grid(bench: Bench) -> float:
    """Return the highest of 20 rates that passes."""
    saturated = bench.saturate()
    rates = [saturated * number / GRID for number in range(1, GRID + 1)]
    return max([rate for rate in rates if bench.share(rate) >= GOOD], default=0.0)


def bisection(bench: Bench) -> float:
    """Bisect to 2% on point estimates, as vLLM's `serve_sla` does."""
    saturated = bench.saturate()
    low, high = 0.05 * saturated, 1.05 * saturated
    for _ in range(12):
        middle = float(np.sqrt(low * high)) if high / low > 2 else (low + high) / 2
        low, high = (middle, high) if bench.share(middle) >= GOOD else (low, middle)
        if high / low < 1.02:
            break
    return low


def wilson(bench: Bench) -> float:
    """Test ten rates by Wilson's lower bound, as GuideLLM does."""
    saturated, z, best = bench.saturate(), 1.96, 0.0
    for rate in np.linspace(0.05 * saturated, saturated, 10):
        lows = []
        for good in bench.good(float(rate)):
            share, count = float(good.mean()), len(good)
            spread = z * np.sqrt(share * (1 - share) / count + z * z / 4 / count / count)
            lows.append((share + z * z / 2 / count - spread) / (1 + z * z / count))
        best = float(rate) if min(lows) >= GOOD else best
    return best


def isotonic(bench: Bench) -> float:
    """Find a bracket, then the root of an isotonic fit, to 5% in at most ten probes, as AIPerf does."""
    logs: list[float] = []
    shares: list[float] = []

    def passes(rate: float) -> bool:
        logs.append(float(np.log(rate)))
        shares.append(bench.share(rate))
        return shares[-1] >= GOOD

    rate, low, high = 0.05 * bench.simulated.saturation_guess, 0.0, 0.0
    while len(logs) < 10 and not high:
        if passes(rate):
            low, rate = rate, 2 * rate
        else:
            high = rate
    while high and low and len(logs) < 10 and high / low > 1.05:
        order = np.argsort(logs)
        at = np.array(logs)[order]
        fitted = isotonic_regression(np.array(shares)[order], increasing=False).x - 1e-6 * np.arange(len(at))
        curve = PchipInterpolator(at, fitted)
        try:
            root = float(
                np.exp(brentq(lambda log_rate, curve=curve: curve(log_rate) - GOOD, np.log(low), np.log(high)))
            )
        except ValueError:
            root = float(np.sqrt(low * high))
        root = float(np.clip(root, low * (high / low) ** 0.1, low * (high / low) ** 0.9))
        if passes(root):
            low = max(low, root)
        else:
            high = min(high, root)
    return low


RULES: dict[str, Callable[[Bench], float]] = {
    "grid of 20": grid,
    "bisection": bisection,
    "Wilson, 10 rates": wilson,
    "isotonic": isotonic,
}


# Ours ----------------------------------------------------------------------------------------------------------------


class WrongTwin(Twin):
    """A twin that ignores the cost of KV, has another prompt budget, and 15% more KV memory than the engine."""

    def run(self, requests: Requests, costs: Costs | None = None) -> Replay:
        limits = Limits(self.limits.running, int(1.15 * self.limits.cached_tokens), 2048)
        return run_queue((costs or self.costs)._replace(per_cached_token=0.0), limits, requests)


def search(bench: Bench, case: str) -> Claim:
    """Return our search's claim about a deployment."""
    simulated = bench.simulated

    def arrivals(count: int, seed: int) -> Floats:
        return np.sort(np.random.default_rng([seed, 1]).random(count)) * count

    def lengths(count: int, seed: int) -> tuple[Integers, Integers]:
        return simulated.lengths(count, np.random.default_rng([seed, 2]))

    limits = None if case == "endpoint" else simulated.limits
    proposer = Capacity(CapacityQuestion(simulated.bounds, arrivals, lengths, limits))
    if case == "wrong":
        proposer.twin = WrongTwin(simulated.limits)
    if case == "lost":
        lost, random = Capacity(proposer.question), np.random.default_rng([simulated.seed, 6])
        speed = float(np.exp(LAUNCHES_DIFFER * random.normal()))
        costs = Costs(*(speed * cost for cost in simulated.costs))
        before = Bench(replace(simulated, costs=costs), [simulated.seed, 7])
        for _ in range(random.integers(1, 11)):
            if probe := lost.ask():
                lost.tell(before.measure(probe))
        proposer.continue_from(lost)
    while probe := proposer.ask():
        proposer.tell(bench.measure(probe))
    return proposer.claim()


def study_of_users(seed: int) -> dict[str, Any] | None:
    """Search the most users of one deployment; None if a single user is too many."""
    simulated = deployment(seed)
    if not (truth := most_users(simulated)):
        return None
    bench, proposer = Bench(simulated, [seed, 3]), UserCapacity(simulated.bounds, BUDGET)
    while probe := proposer.ask():
        proposer.tell(bench.measure(probe))
    claim = proposer.claim()
    ours = {"reached": claim.lower / truth, "upper": claim.upper / truth, "cost": bench.clock / bench.unit}
    return {"seed": seed, "case": "users", "truth": truth, "ours": {**ours, "status": claim.status}}


def rate_of_lanes(lanes: int, service: float, wait: float, seed: int) -> float:
    """Return the Poisson rate at which 90% of 120,000 requests wait at most `wait` s for one of the lanes."""
    random = np.random.default_rng(seed)
    gaps = random.exponential(size=3 * TRUTH_REQUESTS)
    low, high = 0.05 * lanes / service, lanes / service
    for _ in range(14):
        rate, due, good, free = (low + high) / 2, 0.0, 0, [0.0] * lanes
        for gap in gaps / rate:
            due += gap
            start = max(due, free[0])
            heapq.heapreplace(free, start + service)
            good += start - due <= wait
        low, high = (rate, high) if good >= GOOD * len(gaps) else (low, rate)
    return low


def study_of_engine(seed: int) -> dict[str, Any]:
    """Search a simulated engine through the whole command."""
    random = np.random.default_rng(seed)
    lanes, saturated = int(random.choice([16, 32, 64])), float(np.exp(random.uniform(np.log(100), np.log(250))))
    service, unit = lanes / saturated, 1000 / saturated
    first = service * random.uniform(0.3, 0.8)
    wait = first * float(np.exp(random.uniform(np.log(0.3), np.log(5))))
    truth = rate_of_lanes(lanes, service, wait, seed + 1)
    timing = {"ttft": {"mean": first}, "itl": {"mean": (service - first) / (TOKENS - 1)}, "max_concurrency": lanes}
    with tempfile.TemporaryDirectory() as out, simulated_engine(**timing) as (url, _):
        shape = ["workload.input_tokens=16", f"workload.output_tokens={TOKENS}", "workload.spread=0"]
        asked = ["--slo", f"ttft={first + wait:.6f}s", "--budget", f"{BUDGET_OF_ENGINE}s"]
        dispatch(["capacity", url, *asked, *shape, f"out={out}/run", "report=false"])
        (claim,) = read_claims(RunPaths(Path(out) / "run")).values()
    ours = {"reached": claim["lower"] / truth, "upper": claim["upper"] / truth, "cost": claim["seconds"] / unit}
    return {"seed": seed, "case": "engines", "truth": truth, "ours": {**ours, "status": claim["status"]}}


def study(seed: int, case: str) -> dict[str, Any] | None:
    """Measure one deployment by every rule; None if its true capacity is not certain enough."""
    if case == "users":
        return study_of_users(seed)
    if case == "engines":
        return study_of_engine(seed)
    simulated = deployment(seed, drift=0.05 if case == "drift" else 0.0, tails=0.3 if case == "tails" else 0.0)
    truth = true_capacity(replace(simulated, drift=0.0))
    if truth is None or not truth.error < UNCERTAIN:
        return None
    entry: dict[str, Any] = {"seed": seed, "case": case, "truth": truth._asdict(), "rules": {}}
    bench = Bench(simulated, [seed, 3])
    claim = search(bench, case)
    reached = claim.lower / truth.capacity
    if case == "drift":  # compared with the capacity at mid-measurement
        slowed = 1 + 0.05 * min(bench.clock / 2 / (20 * bench.unit), 1.0)
        middle = true_capacity(replace(simulated, drift=0.0, costs=Costs(*(cost * slowed for cost in simulated.costs))))
        reached = claim.lower / middle.capacity if middle else float("nan")
    entry["ours"] = {"reached": reached, "cost": bench.clock / bench.unit, "status": claim.status}
    entry["ours"] |= {"upper": claim.upper / truth.capacity, "probes": claim.probes}
    for number, (name, rule) in enumerate(RULES.items() if case == "right" else ()):
        bench = Bench(simulated, [seed, 4 + number])
        entry["rules"][name] = {"reached": rule(bench) / truth.capacity, "cost": bench.clock / bench.unit}
    return entry


# Tables --------------------------------------------------------------------------------------------------------------

HEADINGS = (
    "rule | deployments | too high | by over 1% | by over 5% | true and within 5% | within 10% | "
    "lowest, highest claim / truth | cost in T: median, mean, p90 | to the grid: median, mean"
)


def table_row(name: str, reached: Floats, cost: Floats, grid_cost: Floats | float) -> list[str]:
    """Return a line of the table: shares of claims, and what the claims cost."""

    def percentage(condition: Any) -> str:
        return f"{100 * np.mean(condition):.1f}%"

    ratio = cost / grid_cost
    return [
        name,
        f"{len(reached)}",
        *(percentage(reached > most) for most in (1, 1.01, 1.05)),
        *(percentage((reached >= least) & (reached <= 1)) for least in (0.95, 0.9)),
        f"{np.nanmin(reached):.2f}, {np.nanmax(reached):.2f}",
        f"{np.median(cost):.1f}, {cost.mean():.1f}, {np.quantile(cost, 0.9):.1f}",
        f"{np.median(ratio):.2f}, {ratio.mean():.2f}",
    ]


def table(entries: Sequence[dict[str, Any]]) -> list[str]:
    """Return the lines of the document: our search by case, then the other rules."""
    rows = []

    def column(chosen: Sequence[dict[str, Any]], key: str, rule: str = "") -> Floats:
        return np.array([(entry["rules"][rule] if rule else entry["ours"])[key] for entry in chosen], float)

    for case in CASES:
        chosen = [entry for entry in entries if entry["case"] == case]
        if not chosen:
            continue
        finished = [entry for entry in chosen if entry["ours"]["status"] == "confirmed"]
        for name, part in ((f"ours, {case}", chosen), (f"ours, {case}, finished", finished)):
            if part:
                rows.append(table_row(name, column(part, "reached"), column(part, "cost"), GRID + 0.9))
    right = [entry for entry in entries if entry["case"] == "right"]
    for rule in RULES if right else ():
        rows.append(table_row(rule, column(right, "reached", rule), column(right, "cost", rule), GRID + 0.9))
    shares = [np.mean([e["ours"]["cost"] <= 21 and e["ours"]["status"] == "confirmed" for e in right])] if right else []
    sentences = [f"Finished within 21 T: {100 * share:.0f}% of the searches of case `right`." for share in shares]
    return [*markdown_table(HEADINGS, rows), "", *sentences]


def read_entries() -> list[dict[str, Any]]:
    """Return the results of all deployments simulated so far."""
    files = sorted(FILES.glob("capacity-*.jsonl"))
    entries = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [entry for entry in entries if entry.get("ours")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate the deployments that are in no file yet, or print the table of those in files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deployments", type=int, default=0)
    parser.add_argument("--first", type=int, default=10_000, help="seed of the first")
    parser.add_argument("--case", choices=CASES, nargs="+", default=["right"])
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no deployment after them")
    parser.add_argument("--write", type=Path, metavar="DOCUMENT")
    options = parser.parse_args(arguments)
    compiled, began = options.case == ["engines"] or compile_event_loop(), time.monotonic()
    setattr(probes, "CapacityQuestion", functools.partial(CapacityQuestion, shortest=0.0))  # noqa: B010 - for `engines`
    FILES.mkdir(exist_ok=True)
    paths = {case: FILES / f"capacity-{case}.jsonl" for case in options.case}
    files = [path for path in paths.values() if path.exists()]
    done = {(path, json.loads(line)["seed"]) for path in files for line in path.read_text().splitlines()}
    for seed in range(options.first, options.first + options.deployments):
        for case, path in paths.items():
            if (path, seed) in done or time.monotonic() - began > options.seconds:
                continue
            entry = study(seed, case) or {"seed": seed, "case": case, "ours": None}
            with path.open("a") as file:
                file.write(json.dumps(entry) + "\n")
    if not compiled:
        print("numba is not installed: the simulation takes 20 times as long", file=sys.stderr)
    publish(table(read_entries()), options.write)


if __name__ == "__main__":
    main()
