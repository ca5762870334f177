"""Measures how often an overloaded open loop is reported as a growing queue, and how often a load below capacity is.

    python -m benchmarks.growing_queue [--repetitions 600]

Poisson arrivals reach a first-in-first-out server with some slots, whose service takes a constant, lognormal(0.5) or
exponential time. The arrays go to the function that computes a trial's score (`quantities.load.score_of`). The table is
written to docs/measurements/growing_queue.md, between its marks.
"""

import argparse
from pathlib import Path

import numpy as np

from benchmarks.documents import markdown_table, write_section
from benchmarks.simulated_runs import FloatArray
from sweep.numbers.quantities.load import GROWING, score_of

DOCUMENT = Path(__file__).parents[1] / "docs" / "measurements" / "growing_queue.md"
MARKS = ("<!-- table: python -m benchmarks.growing_queue -->", "<!-- end of table -->")
SLOTS, SERVICES = (1, 4, 16, 64), ("constant", "lognormal", "exponential")
REQUESTS = {64: 1.2, 256: 1.1, 1000: 1.05}  # requests of a trial -> the overload that the trial should show
BELOW = (0.7, 0.85, 0.95)  # loads as shares of the capacity


def simulate(load: float, n: int, slots: int, service: str, runs: int, seed: int) -> tuple[FloatArray, FloatArray]:
    """Return when each request was due, and how long it then took. Shape (runs, n) each."""
    chance, each = np.random.default_rng([seed, n, slots, SERVICES.index(service)]), np.arange(runs)
    due = np.cumsum(chance.exponential(1 / (load * slots), (runs, n)), 1)
    took = np.ones((runs, n))
    if service == "lognormal":
        took = np.exp(0.5 * chance.standard_normal((runs, n)) - 0.125)
    elif service == "exponential":
        took = chance.exponential(1, (runs, n))
    free, latency = np.zeros((runs, slots)), np.empty((runs, n))
    for index in range(n):
        slot = free.argmin(1)
        free[each, slot] = np.maximum(due[:, index], free[each, slot]) + took[:, index]
        latency[:, index] = free[each, slot] - due[:, index]
    return due, latency


def flagged(load: float, n: int, slots: int, service: str, runs: int, seed: int = 1) -> float:
    """Return the share of such trials that are reported as a growing queue."""
    scores = [score_of(*trial) for trial in zip(*simulate(load, n, slots, service, runs, seed), strict=True)]
    return float(np.mean([score is not None and score >= GROWING for score in scores]))


def table(runs: int) -> list[str]:
    """Return a row for each length and server."""
    rows = []
    for n, overload in REQUESTS.items():
        for slots in SLOTS:
            for service in SERVICES:
                *below, above = (f"{flagged(load, n, slots, service, runs):.0%}" for load in (*BELOW, overload))
                rows.append([n, slots, service, *below, overload, above])
    headings = " | ".join(f"at {load}" for load in BELOW)
    return markdown_table(f"requests | slots | service | {headings} | overload | flagged", rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=600)
    write_section(DOCUMENT, MARKS, ["", *table(parser.parse_args().repetitions), ""])


if __name__ == "__main__":
    main()
