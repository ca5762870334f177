"""Measures how often the analysis names a winner, rightly and wrongly, over simulated sweeps with a known truth.

    python -m benchmarks.winners [--sweeps 1000] [--uneven 3 | --unlike]

Each engine has one launch in each replicate. Launches differ by SPREAD, and all engines of a replicate share a drift of
DRIFT. `false winners`: all engines are equal, and one is named the only best. `false ratios`: all are equal, and some
ratio to the first has an interval without 1. `named`: one engine is FASTER, and it is named the only best. The
functions are the summary's and the report's, with arrays that no writer wrote; written.py uses a run's files.

A second table is of answers within an SLO, where each engine is taken at the best of its loads, on a plateau: all its
loads are equal, and their trials differ by SPREAD besides. `uncorrected`: as if nobody had chosen the load. With
`--unlike` there is one table, of launches that are not alike or not independent, as in the coverage study. The last
line of the output is JSON.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from analysis.answers.deciding import best_choices
from analysis.quantities import compared_column
from analysis.statistics.comparison import Trials, contest, fit
from benchmarks.coverage import ODD, RESEMBLING, launch_factors
from benchmarks.documents import markdown_table, publish

SPREAD = 0.02  # standard deviation between launches of one engine, of logarithms
DRIFT = 0.02  # standard deviation between replicates, for all engines
FASTER = 1.10
LOADS = [(5, 1), (5, 5), (5, 1, 1, 1)]  # number of each engine's loads
LOAD_REPLICATES = (3, 5, 10)
UNLIKE = [
    (design, engines, replicates) for design in (ODD, RESEMBLING) for engines in (2, 5) for replicates in (2, 3, 5, 10)
]
CELLS = [(engines, replicates) for engines in (2, 7, 31) for replicates in (2, 3, 5)]


class Cell(NamedTuple):
    """The shares of outcomes in simulated sweeps of one design."""

    engines: int
    replicates: int
    false_winners: float
    false_ratios: float
    false_of_two: float  # two equal engines are far ahead of the rest, and one of them is named
    named: float


class LoadsCell(NamedTuple):
    """The shares of simulated sweeps in which an engine is named, each at the best of its loads."""

    loads: tuple[int, ...]  # each engine's number of loads
    replicates: int
    uncorrected: float  # named among equal engines, as if the load had not been chosen
    false_winners: float  # named among equal engines, as in the answers
    named: float  # the first engine is FASTER, and it is named


def trials_of(engines: int, replicates: int) -> Trials:
    """Return the trials of a design, each on a separate launch."""
    point, replicate = np.repeat(np.arange(engines), replicates), np.tile(np.arange(replicates), engines)
    launch = np.array([f"{a}-{b}" for a, b in zip(point, replicate, strict=True)], object)
    return Trials(point, replicate, launch)


def study_of_loads(loads: tuple[int, ...], replicates: int, sweeps: int, seed: int) -> LoadsCell:
    """Simulate sweeps in which each engine has this many loads, all of them equal."""
    random, quantity = np.random.default_rng([seed, *loads, replicates]), compared_column("output_throughput", ())
    trials, counts = trials_of(len(loads), replicates), np.zeros(3)
    for _ in range(sweeps):
        drift, of_engines = random.normal(0, DRIFT, replicates), []
        for count in loads:
            launch = random.normal(0, SPREAD, replicates)  # all loads of the engine
            logs = drift + launch + random.normal(0, SPREAD, (count, replicates))
            of_engines.append(logs[np.argsort(-logs.mean(axis=1))])
        best = np.array([logs[0] for logs in of_engines])
        of_loads = [fit(np.exp(logs.ravel()), trials_of(len(logs), replicates), len(logs)) for logs in of_engines]
        choices = sum(best_choices(contest(model, quantity.better, best=0)) for model in of_loads)
        faster = np.where(np.arange(len(loads)) == 0, np.log(FASTER), 0.0)[:, None]
        counts += [
            _winner(best, trials) is not None,
            _winner(best, trials, choices) is not None,
            _winner(best + faster, trials, choices) == 0,
        ]
    return LoadsCell(loads, replicates, *(counts / sweeps))


def study(engines: int, replicates: int, sweeps: int, seed: int, uneven: float = 1.0, unlike: str = "") -> Cell:
    """Simulate sweeps; `uneven` times SPREAD is the spread of one of the engines. `unlike` is a design of launches."""
    random = np.random.default_rng([seed, engines, replicates])
    trials = trials_of(engines, replicates)
    spread = np.where(np.arange(engines) == 1, uneven * SPREAD, SPREAD)[:, None]
    counts = np.zeros(4)
    for _ in range(sweeps):
        logs, drift = random.normal(0, 1, (engines, replicates)) * spread, random.normal(0, DRIFT, replicates)
        if unlike:
            logs = logs * (unlike == ODD) - np.log(launch_factors(unlike, logs.shape, random))
        logs = logs + drift
        counts += [
            _winner(logs, trials) is not None,
            _ratio_without_one(logs, trials),
            engines > 2 and _winner(logs + np.where(np.arange(engines) < 2, 1.0, 0.0)[:, None], trials) is not None,
            _winner(logs + np.where(np.arange(engines) == 0, np.log(FASTER), 0.0)[:, None], trials) == 0,
        ]
    return Cell(engines, replicates, *(counts / sweeps))


def unlike_cells(sweeps: int, seed: int) -> list[dict[str, object]]:
    """Publish and return the shares of outcomes where launches are not alike or not independent."""
    cells = [
        (design, study(engines, replicates, sweeps, seed, unlike=design)) for design, engines, replicates in UNLIKE
    ]
    rows = [
        [design, cell.engines, cell.replicates, f"{cell.false_winners:.1%}", f"{cell.named:.1%}"]
        for design, cell in cells
    ]
    publish(markdown_table("launches | engines | replicates | false winners | 10% faster, named", rows))
    return [{"launches": design, **cell._asdict()} for design, cell in cells]


def alike_cells(sweeps: int, seed: int, uneven: float) -> list[dict[str, object]]:
    """Publish and return the shares of outcomes: with one load of each engine, and with the best of several."""
    cells = [study(*sizes, sweeps=sweeps, seed=seed, uneven=uneven) for sizes in CELLS]
    rows = []
    for cell in cells:
        of_two = f"{cell.false_of_two:.1%}" if cell.engines > 2 else "the same"
        rates = f"{cell.false_winners:.1%}", of_two, f"{cell.false_ratios:.1%}", f"{cell.named:.1%}"
        rows.append([cell.engines, cell.replicates, *rates])
    headings = "engines | replicates | false winners | of two far ahead | false ratios | 10% faster, named"
    publish([*markdown_table(headings, rows), ""])
    of_loads = [study_of_loads(loads, replicates, sweeps, seed) for loads in LOADS for replicates in LOAD_REPLICATES]
    rows = [
        [", ".join(map(str, cell.loads)), cell.replicates]
        + [f"{share:.1%}" for share in (cell.uncorrected, cell.false_winners, cell.named)]
        for cell in of_loads
    ]
    headings = "loads of each engine | replicates | false winners, uncorrected | false winners | 10% faster, named"
    publish(markdown_table(headings, rows))
    return [cell._asdict() for cell in cells] + [cell._asdict() for cell in of_loads]


def _winner(logs: "np.ndarray[tuple[int, int], np.dtype[np.float64]]", trials: Trials, choices: int = 0) -> int | None:
    """Return the engine that is named the only best, if any."""
    best = int(np.argmax(logs.mean(axis=1)))
    model = fit(np.exp(logs.ravel()), trials, len(logs))
    return best if contest(model, "higher", choices, best).won else None


def _ratio_without_one(logs: "np.ndarray[tuple[int, int], np.dtype[np.float64]]", trials: Trials) -> bool:
    others = range(1, len(logs))
    _, low, high = contest(fit(np.exp(logs.ravel()), trials, len(logs)), "higher").ratios(others, [0] * len(others))
    return bool(((low > 1) | (high < 1)).any())


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--uneven", type=float, default=1.0, help="one engine's spread, in units of the others'")
    parser.add_argument("--unlike", action="store_true", help="launches that are not alike or not independent")
    chosen = parser.parse_args(arguments)
    if chosen.unlike and chosen.uneven != 1:
        parser.error("argument --uneven: not allowed with argument --unlike")
    began = time.perf_counter()
    if chosen.unlike:
        results = unlike_cells(chosen.sweeps, chosen.seed)
    else:
        results = alike_cells(chosen.sweeps, chosen.seed, chosen.uneven)
    print(json.dumps([*results, {"seconds": time.perf_counter() - began}]))


if __name__ == "__main__":
    main(sys.argv[1:])
