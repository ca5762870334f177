"""Measures by simulation how often a summary's intervals hold the true value, and how wide they are.

`python -m benchmarks.coverage [SCENARIO ...]` gives simulated replicates (simulated_runs.py) to the functions that
summarise a run (analysis/statistics/intervals.py, analysis/statistics/comparison.py). No writer wrote these arrays;
written.py checks them against a run's files. It replaces the scenarios' cells in docs/measurements/coverage.csv, and
writes the tables of docs/measurements/coverage.md from that file, so it can run in parts. `--quick` prints a few cells
and writes nothing.
"""

import argparse
import csv
import itertools
import multiprocessing
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import binom

from analysis.statistics.comparison import Trials, contest, fit
from analysis.statistics.intervals import (
    FEWEST_FOR_STEADY_RATES,
    Interval,
    PooledGaps,
    PooledRequests,
    over_replicates,
    t,
    throughput,
    without_intervals,
)
from benchmarks.documents import markdown_table
from benchmarks.simulated_runs import (
    ADVERSE,
    SCENARIOS,
    STATIONARY,
    FloatArray,
    Runs,
    gaps,
    sent_within,
    simulate,
    stationary,
    steady_states,
)
from sweep.base import code_version

DOCUMENT = Path(__file__).parents[1] / "docs" / "measurements" / "coverage.md"
REQUESTS = (8, 24, 64, 100, 500, 1500)  # with the first two, the intervals come from the launches' own values
REPLICATES = (1, 2, 3, 5, 10)
QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
LAUNCHES = (3, 5, 10)
BETWEEN_LAUNCHES = (0.02, 0.05)
ODD, RESEMBLING, TREND = "an odd launch in five", "resembling launches", "a trend between launches"
UNLIKE_LAUNCHES = (ODD, RESEMBLING, TREND)  # designs of launches that are not alike, or not independent
UNLIKE_SCENARIO, UNLIKE_REQUESTS = "lognormal", (500, 1500)
SLOWER, CORRELATION, UNLIKE_SPREAD, STEP, OF_A_TREND = 1.2, 0.8, 0.03, 0.02, 20
STEADY_REQUESTS = (1500,)  # fewer often hold no steady state
STUDIES = ("whole", "ratios", "steady")  # parts, which can be run one by one
FEW_REPLICATES = (3, 5)  # of steady states, which take long
FEWEST_OF_GAPS, GAP_REPLICATES = 500, 3  # requests and replicates
TRUTH = 4_000_000  # latencies, for the true figure
VALUES_AT_ONCE = 100_000  # so that a processor's cache holds the arrays
LEAST_COVERAGE, MOST_LISTED = 0.93, 40  # that a shown cell should have, and figures below it that are listed
SHOWN = 0.5  # share of the repetitions with an interval, from which a cell counts as shown

Figures = dict[str, Interval]


# Rules ---------------------------------------------------------------------------------------------------------------


def ours(runs: Runs) -> Figures:
    """Return our intervals by quantity, of shape (repetitions,)."""
    pool = PooledRequests(runs.latency)
    figures = {name: pool.quantile(q) for name, q in QUANTILES.items()}
    figures["mean"] = pool.mean()
    figures["throughput"] = throughput(np.ones_like(runs.sent), runs.sent, runs.latency)
    return figures


def of_gaps(runs: Runs) -> Figures:
    """Return our intervals of the gaps' quantiles."""
    pool = PooledGaps(gaps(runs.latency, seed=1))
    return {f"itl {name}": pool.quantile(q) for name, q in QUANTILES.items()}


def over_runs(runs: Runs) -> Figures:
    """Return intervals by AIPerf's rule: Student's t over each run's own value."""
    quantiles = np.quantile(runs.latency, list(QUANTILES.values()), axis=-1)
    return {name: _student(values) for name, values in zip(QUANTILES, quantiles, strict=True)} | {
        "mean": _student(runs.latency.mean(-1)),
        "throughput": _student(runs.sent.shape[-1] / (runs.sent + runs.latency).max(-1)),
    }


def _student(values: FloatArray) -> Interval:
    n = values.shape[-1]
    mean = values.mean(-1)
    half = t(n - 1.0) * values.std(-1, ddof=1) / np.sqrt(n) if n > 1 else np.full_like(mean, np.nan)
    return _of_one_interval(mean, mean - half, mean + half)


def over_requests(runs: Runs) -> Figures:
    """Return intervals that treat requests as independent: a run's order statistics, and Student's t of the mean."""
    pooled = np.sort(runs.latency.reshape(len(runs.latency), -1), -1)
    n = pooled.shape[-1]
    figures = {}
    for name, q in QUANTILES.items():
        low, high = int(binom.ppf(0.025, n, q)) - 1, int(binom.ppf(0.975, n, q))
        nothing = np.full(len(pooled), np.nan)
        ends = (pooled[:, place] if 0 <= place < n else nothing for place in (low, high))
        figures[name] = _of_one_interval(np.quantile(pooled, q, axis=-1), *ends)
    return figures | {"mean": _student(pooled)}


def _of_one_interval(value: FloatArray, low: FloatArray, high: FloatArray) -> Interval:
    """Return a value whose rule has a single interval, for these launches and for a new launch."""
    return Interval(value, low, high, low, high, np.full_like(value, np.nan), np.zeros(value.shape, np.bool_))


def steady(runs: Runs, states: FloatArray) -> Figures:
    """Return our intervals of steady-state values, from the runs and their steady states."""
    repetitions, replicates = states.shape[:2]
    unsettled = np.asarray(np.isnan(states[..., 0]).any(-1), np.bool_)
    pool = PooledRequests(sent_within(runs, states))
    figures = {f"steady {name}": pool.quantile(QUANTILES[name]) for name in ("p50", "p99")}
    repetition = np.repeat(np.arange(repetitions), replicates)
    launch = np.arange(repetition.size)
    figures["steady throughput"] = over_replicates(
        states[..., 2].ravel(), repetition, launch, repetitions, FEWEST_FOR_STEADY_RATES
    )
    return {name: without_intervals(figure, unsettled) for name, figure in figures.items()}


def ratios(runs: Runs) -> Figures:
    """Return the summary's ratios, each of a repetition to the previous one, whose engine is equally fast."""
    replicates = runs.sent.shape[1]
    names = np.array([f"{side}{index}" for side in "ab" for index in range(replicates)], object)
    trials = Trials(np.repeat([0, 1], replicates), np.tile(np.arange(replicates), 2), names)
    values = {
        "ratio of p50": np.quantile(runs.latency, 0.5, axis=-1),
        "ratio of throughput": 1 / (runs.sent + runs.latency).max(-1),
    }
    figures = {}
    for name, each in values.items():
        pairs = np.concatenate([each, np.roll(each, 1, axis=0)], axis=1)
        figures[name] = _of_one_interval(
            *np.array([contest(fit(pair, trials, 2), None).ratios([0], [1])[:, 0] for pair in pairs]).T
        )
    return figures


# Study ---------------------------------------------------------------------------------------------------------------


class Cell(NamedTuple):
    """A quantity in a scenario, under a rule. The fields are the columns of coverage.csv."""

    rule: str
    figure: str
    scenario: str
    requests: int
    replicates: int
    repetitions: int
    shown: float  # share of the repetitions with an interval
    coverage: float  # share of those intervals that hold the truth
    width: float  # median width of those intervals, divided by the range of 95% of the values (the oracle)
    misleading: float  # share of all repetitions whose interval does not hold the truth
    effective: float  # median of the effective number of requests
    commit: str  # commit of the code that was studied

    @property
    def key(self) -> tuple[str, str, str, int, int]:
        return self[:5]

    @property
    def counts(self) -> bool:
        return self.shown >= SHOWN


class Design(NamedTuple):
    """The number of requests and replicates, and the differences between launches."""

    scenario: str
    n: int
    replicates: int
    repetitions: int
    spread: float | str = 0.0  # or one of UNLIKE_LAUNCHES

    def cells(
        self,
        rule: str,
        runs: Runs,
        function: Callable[..., Figures],
        truth: Mapping[str, float],
        states: FloatArray | None = None,
    ) -> Iterator[Cell]:
        """Yield a rule's cells. `function` gets the runs, and their steady states if there are any, in parts."""
        parts = [function(*part) for part in self._parts(runs, states)]
        for figure in parts[0]:
            interval = Interval(
                *(np.concatenate(values) for values in zip(*(each[figure] for each in parts), strict=True))
            )
            if self.spread:
                interval = interval._replace(low=interval.new_low, high=interval.new_high)
            yield self._cell(rule, figure, interval, truth[figure])

    def _parts(self, runs: Runs, states: FloatArray | None) -> Iterator[tuple[Runs] | tuple[Runs, FloatArray]]:
        """Yield the replicates of some repetitions, of shape (repetitions, replicates, n), with their steady states."""
        share = len(runs.sent) // self.repetitions
        chance = np.random.default_rng([self.n, self.replicates, _code(self.spread)])
        size = max(1, VALUES_AT_ONCE // (self.replicates * self.n))
        for begin in range(0, self.repetitions, size):
            chosen = slice(begin * share, min(begin + size, self.repetitions) * share)
            shape = (-1, share, self.n)
            part = Runs(*(values.reshape(shape)[:, : self.replicates] for values in runs.section(chosen, self.n)))
            factors = launch_factors(self.spread, part.sent.shape[:2], chance)
            if states is None:
                yield (part.slower(factors),)
            else:
                launch_states = states[chosen].reshape(-1, share, 3)[:, : self.replicates]
                yield part.slower(factors), launch_states * np.stack([factors, factors, 1 / factors], -1)

    def _cell(self, rule: str, figure: str, interval: Interval, truth: float) -> Cell:
        shown = np.isfinite(interval.low) & np.isfinite(interval.high)
        covered = (interval.low <= truth) & (truth <= interval.high)
        values = interval.value[np.isfinite(interval.value)]
        oracle = np.subtract(*np.quantile(values, [0.975, 0.025])) if values.size else np.nan
        width = np.median((interval.high - interval.low)[shown]) / oracle if shown.any() else np.nan
        coverage = float(covered[shown].mean()) if shown.any() else np.nan
        wrong, effective = float((shown & ~covered).mean()), float(np.median(interval.effective_n))
        return Cell(
            rule, figure, self.scenario, self.n, self.replicates, self.repetitions, float(shown.mean()), coverage,
            float(width), wrong, effective, code_version.commit() or "",
        )  # fmt: skip


def launch_factors(spread: float | str, shape: tuple[int, ...], chance: np.random.Generator) -> FloatArray:
    """The factors by which launches take longer, in their order. Shape (repetitions, launches)."""
    normal = chance.standard_normal(shape)
    if spread == ODD:
        return np.asarray(np.where(chance.random(shape) < 0.2, SLOWER, 1.0))
    if spread == TREND:
        return np.broadcast_to(np.exp(STEP * np.arange(shape[-1])), shape)
    if spread == RESEMBLING:
        for launch in range(1, shape[-1]):
            normal[:, launch] *= np.sqrt(1 - CORRELATION**2)
            normal[:, launch] += CORRELATION * normal[:, launch - 1]
        spread = UNLIKE_SPREAD
    return np.asarray(np.exp(float(spread) * normal))


def _new_launches(spread: float | str, count: int) -> FloatArray:
    """The factors of launches that are independent of those measured; of a trend, any of OF_A_TREND launches."""
    chance = np.random.default_rng(1)
    if spread == TREND:
        return np.asarray(np.exp(STEP * chance.integers(0, OF_A_TREND, count)))
    return launch_factors(spread, (count, 1), chance)[:, 0]


def _code(spread: float | str) -> int:
    return 10_000 + UNLIKE_LAUNCHES.index(spread) if isinstance(spread, str) else round(1000 * spread)


def _truth(latency: FloatArray, rate: float, spread: float | str) -> dict[str, float]:
    """The figures over infinitely many launches, each slower by a factor: over many factors of each latency."""
    latency = latency.ravel()[:: max(1, latency.size // TRUTH)].astype(np.float64)
    latency = latency * _new_launches(spread, latency.size)
    quantiles = {name: float(np.quantile(latency, q)) for name, q in QUANTILES.items()}
    noise = gaps(latency[np.random.default_rng(2).random(latency.size) < 0.25], seed=2)  # not every fourth of a batch
    return {
        **quantiles,
        "mean": float(latency.mean()),
        "throughput": rate,
        **{f"itl {name}": float(np.quantile(noise, q)) for name, q in QUANTILES.items()},
    }


def study(
    scenario: str,
    requests: Sequence[int] = REQUESTS,
    replicates: Sequence[int] = REPLICATES,
    repetitions: int = 2000,
    seed: int = 1,
    rival_rules: bool = True,
    figures: Callable[[Runs], Figures] = ours,
) -> Iterator[Cell]:
    """Yield every cell of a scenario: for these launches and a new launch, and under the rules of other tools."""
    runs = simulate(scenario, repetitions * max(replicates), max(requests), seed)
    unlike = UNLIKE_LAUNCHES if scenario == UNLIKE_SCENARIO and figures is ours else ()
    for n, spread in itertools.product(requests, (0.0, *BETWEEN_LAUNCHES, *unlike)):
        if spread in UNLIKE_LAUNCHES and n not in UNLIKE_REQUESTS:
            continue
        truth = _truth(runs.latency[:, :n], _rate(runs, n, spread), spread)
        for count in [each for each in (LAUNCHES if spread else REPLICATES) if each in replicates]:
            design = Design(scenario, n, count, repetitions, spread)
            yield from design.cells(_rule(spread), runs, figures, truth)
            if count == GAP_REPLICATES and n >= FEWEST_OF_GAPS and spread in (0.0, min(BETWEEN_LAUNCHES)):
                yield from design.cells(_rule(spread), runs, of_gaps, truth)
            if rival_rules and not spread:
                yield from design.cells("AIPerf", runs, over_runs, truth)
            if rival_rules and count == 1:
                yield from design.cells("independent requests", runs, over_requests, truth)


def ratio_study(
    scenario: str, requests: Sequence[int] = REQUESTS, repetitions: int = 2000, seed: int = 1
) -> Iterator[Cell]:
    """Yield the ratios of two equally fast engines, with 0, 2 and 5% between launches."""
    replicates = [count for count in REPLICATES if count > 1]  # one replicate does not show the spread
    runs = simulate(scenario, repetitions * max(replicates), max(requests), seed)
    equal = {"ratio of p50": 1.0, "ratio of throughput": 1.0}
    for n, spread, count in itertools.product(requests, (0.0, *BETWEEN_LAUNCHES), replicates):
        yield from Design(scenario, n, count, repetitions, spread).cells(f"ratio, {spread:.0%}", runs, ratios, equal)


def _rule(spread: float | str) -> str:
    if isinstance(spread, str):
        return f"new launch, {spread}"
    return f"new launch, {spread:.0%}" if spread else "ours"


def _rate(runs: Runs, n: int, spread: float | str) -> float:
    """The throughput over infinitely many launches: requests over the mean duration."""
    duration = float(((runs.sent[:, :n] + runs.latency[:, :n]).max(-1) - runs.sent[:, 0]).mean(dtype=np.float64))
    factor = float(_new_launches(spread, 100_000).mean()) if isinstance(spread, str) else float(np.exp(spread**2 / 2))
    return n / (duration * factor)


def steady_study(
    scenario: str,
    requests: Sequence[int] = STEADY_REQUESTS,
    replicates: Sequence[int] = FEW_REPLICATES,
    repetitions: int = 2000,
    seed: int = 1,
) -> Iterator[Cell]:
    """Yield every cell of a scenario's steady state."""
    latency, rate = stationary(scenario, repetitions, seed)
    runs = simulate(scenario, repetitions * max(replicates), max(requests), seed)
    for n in requests:
        states = steady_states(runs.section(slice(None), n))
        for count, spread in itertools.product(replicates, (0.0, *BETWEEN_LAUNCHES)):
            truth = _truth(latency, rate * np.exp(spread**2 / 2), spread)  # the mean of the launches' own values
            truth = {f"steady {name}": value for name, value in truth.items()}
            yield from Design(scenario, n, count, repetitions, spread).cells(_rule(spread), runs, steady, truth, states)


# Document ------------------------------------------------------------------------------------------------------------

GROUPS = {
    "ours": "## Of these launches",
    **{
        f"new launch, {spread:.0%}": f"## Of a new launch, {spread:.0%} between launches" for spread in BETWEEN_LAUNCHES
    },
    **{f"new launch, {design}": f"## Of a new launch, {design}" for design in UNLIKE_LAUNCHES},
    **{
        f"ratio, {spread:.0%}": f"## Ratios of two engines, {spread:.0%} between launches"
        for spread in (0.0, *BETWEEN_LAUNCHES)
    },
    "AIPerf": "## AIPerf's rule: Student's t over the runs' own figures",
    "independent requests": "## One run, its requests taken as independent",
}


def document(results: Sequence[Cell]) -> str:
    """Return a section for each rule: its description, and a table with the lowest shown share and coverage."""
    parts = []
    for rule, heading in GROUPS.items():
        parts += [heading] if any(cell.rule == rule for cell in results) else []
        for adverse, title in ((False, ""), (True, "Adverse designs: ")):
            chosen = [cell for cell in results if cell.rule == rule and (cell.scenario in ADVERSE) == adverse]
            parts += [textwrap.fill(title + _account(chosen), 120), _table(chosen), *_below(chosen)] if chosen else []
    return "\n\n".join(parts)


def _account(chosen: Sequence[Cell]) -> str:
    shown = [cell for cell in chosen if cell.counts]
    if not shown:
        return "No cell is shown."
    least, widest = min(shown, key=lambda cell: cell.coverage), max(shown, key=lambda cell: cell.width)
    below = sum(cell.coverage < LEAST_COVERAGE for cell in shown)
    wide = sum(cell.width > 1.5 for cell in shown)
    worst = max(chosen, key=lambda cell: cell.misleading)
    return (
        f"{len(shown)} of {len(chosen)} cells are shown. {below} of them cover less than 93%, the least "
        f"{_at(least)} with {least.coverage:.1%}. {wide} are wider than 1.5 × the oracle, the widest {_at(widest)} "
        f"with {widest.width:.2f}. The largest share of repetitions that show an interval without the truth is "
        f"{worst.misleading:.1%}, {_at(worst)}."
    )


def _below(chosen: Sequence[Cell]) -> Iterator[str]:
    """A table of the shown cells that are covered too seldom, unless they are as many as of others' rules."""
    below: dict[tuple[str, str], list[str]] = {}
    for cell in chosen:
        if cell.counts and cell.coverage < LEAST_COVERAGE:
            covered = f"{cell.replicates} × {cell.requests:,}: {cell.coverage:.1%}"
            below.setdefault((cell.scenario, cell.figure), []).append(covered)
    if 0 < len(below) <= MOST_LISTED:
        yield "\n".join(
            markdown_table(
                "covered too seldom | figure | cells", [[*name, "; ".join(cells)] for name, cells in below.items()]
            )
        )


def _at(cell: Cell) -> str:
    return f"({cell.figure}, {cell.scenario}, {cell.replicates} × {cell.requests})"


def _table(chosen: Sequence[Cell]) -> str:
    scenarios = [scenario for scenario in SCENARIOS if any(cell.scenario == scenario for cell in chosen)]
    rows = []
    for figure in dict.fromkeys(cell.figure for cell in chosen):
        cells = [[cell for cell in chosen if (cell.figure, cell.scenario) == (figure, each)] for each in scenarios]
        rows.append([figure, *map(_text, cells)])
    return "\n".join(markdown_table(" | ".join(["figure", *scenarios]), rows))


def _text(cells: Sequence[Cell]) -> str:
    """Return `3 × 100: 97.3%, 1.12`: fewest replicates (from three) and requests, lowest coverage, largest width."""
    shown = [cell for cell in cells if cell.counts]
    if not shown:
        return "–"
    fewest = min(shown, key=lambda cell: (cell.replicates < 3, cell.replicates, cell.requests))
    coverage, width = min(cell.coverage for cell in shown), max(cell.width for cell in shown)
    return f"{fewest.replicates} × {fewest.requests:,}: {coverage:.1%}, {width:.2f}"


def write(results: Sequence[Cell]) -> None:
    """Replace the cells of these scenarios in coverage.csv, and the tables of coverage.md."""
    path, measured = DOCUMENT.with_suffix(".csv"), {cell.key for cell in results}
    with path.open(newline="") as file:
        earlier = [cell for cell in map(_read, csv.DictReader(file)) if cell.key not in measured]
    for rule, cells in Counter(cell.rule for cell in earlier if cell.rule not in GROUPS).items():
        print(f"{path.name}: {cells} cells of the unknown rule {rule!r} are left out", file=sys.stderr)
    earlier = [cell for cell in earlier if cell.rule in GROUPS]
    results = sorted(
        [*earlier, *results],
        key=lambda cell: (list(GROUPS).index(cell.rule), SCENARIOS.index(cell.scenario), cell.requests),
    )
    with path.open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(Cell._fields)
        rows.writerows([f"{value:.4g}" if isinstance(value, float) else value for value in cell] for cell in results)
    commits: dict[int, dict[str, None]] = {}
    for cell in results:
        commits.setdefault(cell.repetitions, {})[cell.commit] = None
    sources = " ".join(
        f"Measured at commit {', '.join(names)} ({repetitions:,} repetitions a cell)."
        for repetitions, names in commits.items()
    )
    before, mark, _ = DOCUMENT.read_text().partition("<!-- tables: python -m benchmarks.coverage -->\n")
    DOCUMENT.write_text(f"{before}{mark}\n{textwrap.fill(sources, 120)}\n\n{document(results)}\n")


def _read(row: Mapping[str, str]) -> Cell:
    types = Cell.__annotations__
    return Cell(**{name: types[name](value) for name, value in row.items()})


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenarios", nargs="*", default=SCENARIOS, metavar="SCENARIO", help=", ".join(SCENARIOS))
    parser.add_argument("--quick", action="store_true", help="a few cells of 300 repetitions, printed")
    parser.add_argument("--ours", action="store_true", help="keep the cells of others' rules")
    parser.add_argument("--steady", action="store_true", help="the steady states only")
    parser.add_argument("--whole", action="store_true", help="the whole runs only")
    parser.add_argument("--ratios", action="store_true", help="the ratios of two engines only")
    parser.add_argument("--requests", nargs="*", type=int, default=REQUESTS, help="of a whole run")
    parser.add_argument("--replicates", nargs="*", type=int, default=REPLICATES, help="of a whole run")
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument("--processes", type=int, default=1)
    arguments = parser.parse_args()
    np.seterr(invalid="ignore", divide="ignore")
    if arguments.quick:
        print(document(list(study("load 0.7", [100], [3], 300))))
        return
    chosen = [part for part in STUDIES if getattr(arguments, part)]
    sizes = arguments.requests, arguments.replicates, arguments.repetitions
    jobs = list(itertools.product(arguments.scenarios, chosen or STUDIES, [sizes], [not arguments.ours]))
    with multiprocessing.Pool(arguments.processes) as pool:
        for cells in pool.imap_unordered(_job, jobs):
            write(cells)


def _job(job: tuple[str, str, tuple[Sequence[int], Sequence[int], int], bool]) -> list[Cell]:
    scenario, part, (requests, replicates, repetitions), rival_rules = job
    np.seterr(invalid="ignore", divide="ignore")
    match part:
        case "whole":
            return list(study(scenario, requests, replicates, repetitions, rival_rules=rival_rules))
        case "ratios":
            return list(ratio_study(scenario, requests, repetitions=repetitions))
    return list(steady_study(scenario, repetitions=repetitions)) if scenario in STATIONARY else []


if __name__ == "__main__":
    main()
