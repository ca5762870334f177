"""Coverage of the intervals of a summary, by simulation: how often the true figure lies in them, and how wide they are.

`python -m benchmarks.coverage` simulates replicates of known timing, gives them to the functions that summarise a run
(analysis/intervals.py) and rewrites docs/measurements/coverage.csv and the tables of docs/measurements/coverage.md.
`--quick` prints a few cells and writes nothing.
"""

import argparse
import csv
import itertools
import multiprocessing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from analysis.intervals import Interval, PooledRequests, quotient, t, throughput

FloatArray = NDArray[np.float64]

DOCUMENT = Path(__file__).parents[1] / "docs" / "measurements" / "coverage.md"
SLOTS = 16
LOADS = {f"load {load}": load for load in (0.3, 0.5, 0.7, 0.85, 0.9)}
SCENARIOS = ("lognormal", "2 % slow", *LOADS)
REQUESTS = (64, 100, 500, 1500)
REPLICATES = (1, 2, 3, 5, 10)
QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
LAUNCHES = (3, 5, 10)
BETWEEN_LAUNCHES = (0.02, 0.05)
CHUNK = 200  # repetitions at once: 200 × 10 × 1,500 values of 8 bytes are 24 MB, and a dozen such arrays are needed
SHOWN = 0.5  # share of the repetitions with an interval, from which a cell counts as shown


class Runs(NamedTuple):
    """Simulated replicates, each from an empty system. Shape (runs, n) each, in the order of the sends."""

    sent: FloatArray
    latency: FloatArray

    def first(self, runs: slice, shape: tuple[int, ...], n: int) -> "Runs":
        """The first n requests of some runs: what comes later does not change them."""
        return Runs(*(part[runs, :n].reshape(*shape, -1, n) for part in self))


def simulate(scenario: str, runs: int, n: int, seed: int) -> Runs:
    """A queue of SLOTS slots, first in, first out; without a load, a user in each slot whose answers are independent.

    Service takes lognormal(0.5) times; in "2 % slow" lognormal(0.25), and 20 times as long in 2 of 100.
    """
    chance = np.random.default_rng([seed, SCENARIOS.index(scenario)])
    free, clock, each = np.zeros((runs, SLOTS)), np.zeros(runs), np.arange(runs)
    sent, latency = np.empty((n, runs), np.float32), np.empty((n, runs), np.float32)
    for index in range(n):
        slot = free.argmin(1)
        begin = free[each, slot]
        if scenario in LOADS:
            clock += chance.exponential(1 / (LOADS[scenario] * SLOTS), runs)
            sent[index], begin = clock, np.maximum(clock, begin)
        else:
            sent[index] = begin
        end = begin + _service(scenario, runs, chance)
        free[each, slot] = end
        latency[index] = end - sent[index]
    return Runs(*(part.T.astype(np.float64) for part in (sent, latency)))


def _service(scenario: str, runs: int, chance: np.random.Generator) -> FloatArray:
    if scenario == "2 % slow":
        slow = np.where(chance.random(runs) < 0.02, 20.0, 1.0)
        return np.asarray(slow * np.exp(0.25 * chance.standard_normal(runs)))
    return np.exp(0.5 * chance.standard_normal(runs) - 0.125)


# Rules ---------------------------------------------------------------------------------------------------------------

Figures = dict[str, Interval]


def ours(runs: Runs) -> Figures:
    """The intervals of these launches, of shape (repetitions,), by figure."""
    pool = PooledRequests(runs.latency)
    figures = {name: pool.quantile(q) for name, q in QUANTILES.items()}
    figures["mean"] = pool.mean()
    figures["throughput"] = throughput(np.ones_like(runs.sent), *runs)
    return figures


def over_runs(runs: Runs) -> Figures:
    """AIPerf's rule: Student's t over each run's own figure."""
    return {name: _student(np.quantile(runs.latency, q, axis=-1)) for name, q in QUANTILES.items()} | {
        "mean": _student(runs.latency.mean(-1)),
        "throughput": _student(runs.sent.shape[-1] / (runs.sent + runs.latency).max(-1)),
    }


def _student(values: FloatArray) -> Interval:
    n = values.shape[-1]
    mean = values.mean(-1)
    half = t(n - 1.0) * values.std(-1, ddof=1) / np.sqrt(n) if n > 1 else np.full_like(mean, np.nan)
    return _of_these(mean, mean - half, mean + half)


def over_requests(runs: Runs) -> Figures:
    """The rule of requests as independent: order statistics of a run, and Student's t of the mean."""
    pooled = np.sort(runs.latency.reshape(len(runs.latency), -1), -1)
    n = pooled.shape[-1]
    figures = {}
    for name, q in QUANTILES.items():
        low, high = int(binom.ppf(0.025, n, q)) - 1, int(binom.ppf(0.975, n, q))
        nothing = np.full(len(pooled), np.nan)
        ends = (pooled[:, place] if 0 <= place < n else nothing for place in (low, high))
        figures[name] = _of_these(np.quantile(pooled, q, axis=-1), *ends)
    return figures | {"mean": _student(pooled)}


def _of_these(value: FloatArray, low: FloatArray, high: FloatArray) -> Interval:
    nothing = np.full_like(value, np.nan)
    return Interval(value, low, high, nothing, nothing, nothing)


def of_new_launches(runs: Runs, spread: float, chance: np.random.Generator) -> tuple[Figures, FloatArray]:
    """The intervals of a new launch where each replicate is a launch, and the factors by which launches are slower."""
    factors = np.exp(spread * chance.standard_normal(runs.sent.shape[:2]))
    figures = ours(Runs(*(part * factors[..., None] for part in runs)))
    return {
        name: interval._replace(low=interval.new_low, high=interval.new_high) for name, interval in figures.items()
    }, factors


# Study ---------------------------------------------------------------------------------------------------------------


class Cell(NamedTuple):
    """A figure of a scenario, under a rule. Its fields are the columns of coverage.csv."""

    rule: str
    figure: str
    scenario: str
    requests: int
    replicates: int
    shown: float  # share of the repetitions with an interval
    coverage: float  # share of those that hold the truth
    width: float  # median of those, over the range of 95 % of the figure's values (the oracle)
    misleading: float  # share of all repetitions whose interval does not hold the truth
    effective: float  # median of the effective number of requests

    @property
    def counts(self) -> bool:
        return self.shown >= SHOWN


def cells(runs: Runs, scenario: str, n: int, replicates: int, repetitions: int) -> Iterator[Cell]:
    """The cells of one scenario, number of requests and number of replicates, under each rule."""
    truth = _truth(runs, n)
    rules = {"ours": ours, "AIPerf": over_runs} | ({"independent requests": over_requests} if replicates == 1 else {})
    for rule, function in rules.items():
        parts = [function(part) for part in _chunks(runs, n, replicates, repetitions)]
        for figure in parts[0]:
            interval = _joined([part[figure] for part in parts])
            yield _cell(rule, figure, scenario, n, replicates, interval, truth[figure])
            if rule == "ours" and figure in ("p50", "throughput"):
                other = Interval(*(np.roll(part, 1) for part in interval))
                yield _cell(rule, f"ratio of {figure}", scenario, n, replicates, quotient(interval, other), 1.0)


def launch_cells(runs: Runs, scenario: str, n: int, launches: int, repetitions: int, spread: float) -> Iterator[Cell]:
    """The cells of the intervals of a new launch."""
    chance = np.random.default_rng([n, launches, round(1000 * spread)])
    parts, factors = zip(
        *(of_new_launches(part, spread, chance) for part in _chunks(runs, n, launches, repetitions)), strict=True
    )
    truth = _truth(runs, n, np.concatenate([factor.ravel() for factor in factors]))
    for figure in parts[0]:
        interval = _joined([part[figure] for part in parts])
        yield _cell(f"new launch, {spread:.0%}", figure, scenario, n, launches, interval, truth[figure])


def _chunks(runs: Runs, n: int, replicates: int, repetitions: int) -> Iterator[Runs]:
    """The replicates of each repetition, of shape (repetitions, replicates, n): those of its share of the runs."""
    share = len(runs.sent) // repetitions
    for begin in range(0, repetitions, CHUNK):
        size = min(CHUNK, repetitions - begin)
        part = runs.first(slice(begin * share, (begin + size) * share), (size,), n)
        yield Runs(*(values[:, :replicates] for values in part))


def _truth(runs: Runs, n: int, factors: FloatArray | None = None) -> dict[str, float]:
    """The figures over all the runs of the same design: as many as all repetitions have together."""
    sent, latency = (part[:, :n] for part in runs)
    if factors is not None:
        sent, latency = (part[: len(factors)] * factors[:, None] for part in (sent, latency))
    return {
        **{name: float(np.quantile(latency, q)) for name, q in QUANTILES.items()},
        "mean": float(latency.mean()),
        "throughput": n / float((sent + latency).max(-1).mean()),
    }


def _joined(parts: Sequence[Interval]) -> Interval:
    return Interval(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def _cell(rule: str, figure: str, scenario: str, n: int, replicates: int, interval: Interval, truth: float) -> Cell:
    shown = np.isfinite(interval.low) & np.isfinite(interval.high)
    held = (interval.low <= truth) & (truth <= interval.high)
    values = interval.value[np.isfinite(interval.value)]
    oracle = np.subtract(*np.quantile(values, [0.975, 0.025])) if values.size else np.nan
    width = np.median((interval.high - interval.low)[shown]) / oracle if shown.any() else np.nan
    coverage = float(held[shown].mean()) if shown.any() else np.nan
    wrong, effective = float((shown & ~held).mean()), float(np.median(interval.effective_n))
    return Cell(rule, figure, scenario, n, replicates, float(shown.mean()), coverage, width, wrong, effective)


def study(
    scenarios: Sequence[str] = SCENARIOS,
    requests: Sequence[int] = REQUESTS,
    replicates: Sequence[int] = REPLICATES,
    repetitions: int = 2000,
    seed: int = 1,
) -> Iterator[Cell]:
    """Every cell: of these launches under each rule, and of a new launch."""
    for scenario in scenarios:
        runs = simulate(scenario, repetitions * max(replicates), max(requests), seed)
        for n, count in itertools.product(requests, replicates):
            yield from cells(runs, scenario, n, count, repetitions)
        for n, count, spread in itertools.product(requests, LAUNCHES, BETWEEN_LAUNCHES):
            if count <= max(replicates):
                yield from launch_cells(runs, scenario, n, count, repetitions, spread)


# Document ------------------------------------------------------------------------------------------------------------

GROUPS = {
    "ours": "## Of these launches",
    **{
        f"new launch, {spread:.0%}": f"## Of a new launch, {spread:.0%} between launches" for spread in BETWEEN_LAUNCHES
    },
    "AIPerf": "## AIPerf's rule: Student's t over the runs' own figures",
    "independent requests": "## One run, its requests taken as independent",
}


def document(results: Sequence[Cell]) -> str:
    """The tables, a section for each rule: coverage in %, width over the oracle's, and how often it is shown."""
    parts = []
    for rule, heading in GROUPS.items():
        chosen = [cell for cell in results if cell.rule == rule]
        if chosen:
            parts += [heading, _account(chosen), *(_table(figure, chosen) for figure in _distinct(chosen, "figure"))]
    return "\n\n".join(parts)


def _account(chosen: Sequence[Cell]) -> str:
    shown = [cell for cell in chosen if cell.counts]
    if not shown:
        return "No cell is shown."
    least, widest = min(shown, key=lambda cell: cell.coverage), max(shown, key=lambda cell: cell.width)
    below = sum(cell.coverage < 0.93 for cell in shown)
    wide = sum(cell.width > 1.5 for cell in shown)
    worst = max(chosen, key=lambda cell: cell.misleading)
    return (
        f"{len(shown)} of {len(chosen)} cells are shown; {below} of them cover less than 93 %, the least {_at(least)} "
        f"with {least.coverage:.1%}; {wide} are wider than 1.5 × the oracle, the widest {_at(widest)} with "
        f"{widest.width:.2f}. The largest share of repetitions that show an interval without the truth is "
        f"{worst.misleading:.1%}, {_at(worst)}."
    )


def _at(cell: Cell) -> str:
    return f"({cell.figure}, {cell.scenario}, {cell.replicates} × {cell.requests})"


def _table(figure: str, chosen: Sequence[Cell]) -> str:
    cells = {(cell.scenario, cell.requests, cell.replicates): cell for cell in chosen if cell.figure == figure}
    counts = sorted({key[2] for key in cells})
    lines = ["| " + " | ".join([figure, "requests", *(f"{count} ×" for count in counts)]) + " |"]
    lines.append("|---" * (len(counts) + 2) + "|")
    for scenario, n in dict.fromkeys(key[:2] for key in cells):
        texts = (_text(cells.get((scenario, n, count))) for count in counts)
        lines.append("| " + " | ".join([scenario, f"{n:,}", *texts]) + " |")
    return "\n".join(lines)


def _text(cell: Cell | None) -> str:
    if cell is None or not cell.shown:
        return "–"
    text = f"{cell.coverage:.1%}, {cell.width:.2f}"
    if not cell.counts:
        return f"({cell.shown:.0%})"
    return text if cell.shown > 0.995 else f"{text} ({cell.shown:.0%})"


def _distinct(chosen: Sequence[Cell], field: str) -> list[str]:
    return list(dict.fromkeys(getattr(cell, field) for cell in chosen))


def write(results: Sequence[Cell]) -> None:
    """Write every cell to coverage.csv and replace the tables of coverage.md."""
    with DOCUMENT.with_suffix(".csv").open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(Cell._fields)
        rows.writerows([f"{value:.4g}" if isinstance(value, float) else value for value in cell] for cell in results)
    before, mark, _ = DOCUMENT.read_text().partition("<!-- tables: python -m benchmarks.coverage -->\n")
    DOCUMENT.write_text(f"{before}{mark}\n{document(results)}\n")


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few cells of 300 repetitions, printed")
    parser.add_argument("--processes", type=int, default=1)
    arguments = parser.parse_args()
    np.seterr(invalid="ignore", divide="ignore")
    if arguments.quick:
        print(document(list(study(["lognormal", "load 0.7"], [100], [3], 300))))
        return
    with multiprocessing.Pool(arguments.processes) as pool:
        results: list[Cell] = []
        for part in pool.imap(_scenario, SCENARIOS):
            results += part
            write(results)


def _scenario(scenario: str) -> list[Cell]:
    return list(study([scenario]))


if __name__ == "__main__":
    main()
