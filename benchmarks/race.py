"""How often a race drops the best, names a wrong winner, and saves launches, over simulated sweeps with a known truth.

    python -m benchmarks.race [--sweeps 1000] [--engines 31]

Each engine has one launch in each replicate. Launches differ by SPREAD, and all engines of a replicate have a drift of
DRIFT in common. The race (`sweep.search.race`) is told the trials of one block after another. Its looks use the test of
`sweep run` (`analysis.racing.retired`), but read no rows. Then the winner is named by the summary's test, from the
trials that ran; beside it stands the winner of the full grid. The last line of the output is JSON.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analysis.racing import retired
from analysis.statistics.comparison import Contest, Trials, contest, fit
from benchmarks.documents import markdown_table, publish
from sweep.search.race import Race

SPREAD = 0.02  # standard deviation between launches of one engine, of logarithms
DRIFT = 0.02  # of all engines between replicates
SLOW_LAUNCHES = 0.05  # share of launches that are slower by SLOWER, in one scenario
SLOWER = 0.1

Floats = NDArray[np.float64]


class Scenario(NamedTuple):
    """How the engines of a sweep differ, in logarithms."""

    label: str
    fastest: tuple[float, ...] = ()  # leads of the first engines over the others
    engine_spread: float = 0.0  # standard deviation between engines
    spread: float = SPREAD
    slow_launches: float = 0.0


SCENARIOS = (
    Scenario("all equal"),
    Scenario("two equal, far ahead", (1.0, 1.0)),
    Scenario("one 3% faster, the others equal", (0.03,)),
    Scenario("one 10% faster, the others equal", (0.1,)),
    Scenario("engines differ by 5%", engine_spread=0.05),
    Scenario("engines differ by 10%", engine_spread=0.1),
    Scenario("engines differ by 20%", engine_spread=0.2),
    Scenario("engines differ by 10%, launches by 5%", engine_spread=0.1, spread=0.05),
    Scenario("engines differ by 20%, launches by 5%", engine_spread=0.2, spread=0.05),
    Scenario("engines differ by 10%, one launch in 20 is 10% slower", engine_spread=0.1, slow_launches=SLOW_LAUNCHES),
)


class Cell(NamedTuple):
    """The shares of simulated sweeps of one scenario."""

    scenario: str
    replicates: int
    launches: float  # of the race, as a share of the grid's
    best_dropped: float  # the best engine, or one of the best, leaves the race
    false_winners: float
    false_winners_of_grid: float
    named: float  # the best engine
    named_by_grid: float
    loss: float  # 95th percentile of what the leader is slower than the best, named or not
    loss_of_grid: float


def judged(logs: Floats, counted: Sequence[tuple[int, int]]) -> Contest:
    """Compare engines by these (engine, replicate)."""
    point, replicate = np.array(counted, np.int64).T
    launch = np.array([f"{engine}-{block}" for engine, block in counted], object)
    model = fit(np.exp(logs[point, replicate]), Trials(point, replicate, launch), len(logs))
    return contest(model, "higher")


def race(logs: Floats) -> Race:
    """Run a race to its end."""
    names = {f"{engine}-{block}": (engine, block) for engine, block in np.ndindex(*logs.shape)}
    ids = list(names)
    points = [ids[engine * logs.shape[1] :][: logs.shape[1]] for engine in range(len(logs))]

    def judge(counted: list[str]) -> Mapping[int, str]:
        contest_so_far = judged(logs, [names[trial] for trial in counted])
        racing = [point for point in range(len(logs)) if point not in running.ends]
        return {
            each.point: "beaten" if each.figures else "won" for each in retired(contest_so_far, racing, running.looks)
        }

    running = Race(points, judge)
    for block in range(logs.shape[1]):
        running.settle([trials[block] for trials in points])
    return running


def study(scenario: Scenario, replicates: int, engines: int, sweeps: int, seed: int) -> Cell:
    """Simulate sweeps of a scenario."""
    random = np.random.default_rng([seed, replicates, SCENARIOS.index(scenario)])
    counts, losses = np.zeros(6), np.zeros((2, sweeps))
    for sweep in range(sweeps):
        truth = random.normal(0, scenario.engine_spread, engines)
        truth[: len(scenario.fastest)] += scenario.fastest
        logs = truth[:, None] + random.normal(0, scenario.spread, (engines, replicates))
        logs += random.normal(0, DRIFT, replicates)
        logs -= SLOWER * (random.random(logs.shape) < scenario.slow_launches)
        best, cells = truth == truth.max(), list(np.ndindex(*logs.shape))
        raced, first = race(logs), int(np.argmax(best))
        ran = [cell for cell in cells if cell[1] < raced.ends.get(cell[0], replicates)]
        outcomes = judged(logs, ran), judged(logs, cells)
        rightly = [contest.won and best.sum() == 1 and contest.best == first for contest in outcomes]
        counts += [
            len(ran) / len(cells),
            raced.dropped.get(f"{first}-{replicates - 1}") == "beaten",
            *(contest.won and not right for contest, right in zip(outcomes, rightly, strict=True)),
            *rightly,
        ]
        losses[:, sweep] = [truth.max() - truth[contest.best] for contest in outcomes]
    return Cell(scenario.label, replicates, *(counts / sweeps), *np.quantile(losses, 0.95, axis=1))


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=1000)
    parser.add_argument("--engines", type=int, default=31)
    parser.add_argument("--replicates", type=int, nargs="+", default=[3, 5, 10])
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    began = time.process_time()
    cells = [
        study(scenario, replicates, chosen.engines, chosen.sweeps, chosen.seed)
        for replicates in chosen.replicates
        for scenario in SCENARIOS
    ]
    headings = "engines | replicates | launches of the grid | best dropped | false winners: race, grid"
    headings += " | best named: race, grid | 95% lose at most: race, grid"
    rows = [[*map(str, cell[:2]), *(f"{share:.1%}" for share in cell[2:])] for cell in cells]
    publish(markdown_table(headings, [[*row[:4], *map(", ".join, (row[4:6], row[6:8], row[8:]))] for row in rows]))
    print(json.dumps([*(cell._asdict() for cell in cells), {"cpu_seconds": time.process_time() - began}]))


if __name__ == "__main__":
    main(sys.argv[1:])
