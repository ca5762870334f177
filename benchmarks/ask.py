"""How often `ask:` finds a configuration within its tolerance of the best, and from how many launches.

    python -m benchmarks.ask flags [--problems 40] [--first 1000] [--noise 0.02 0.05] [--nodes 1]
    python -m benchmarks.ask silicon --table silicon_sample.csv [--noise 0.02 0.05]
    python -m benchmarks.ask baselines [--problems 40] [--noise 0.02 0.05] [--table silicon_sample.csv --launches 0.5]

`flags`: spaces of 576 configurations (four switches, one setting of three values, an ordered one of four, GPUs of
three) with interactions between 30% of the pairs. At least 15% of the configurations fail, and 2% of the launches
crash and are repeated. `silicon`: families of measured GPU rows (benchmarks/silicon.py), asked for the throughput of a
GPU at the quartiles of tokens per second and user. `baselines`: rules with a fixed number of launches on the same
problems, which measure all loads in each launch; Optuna's TPE takes part if it is installed. A launch takes 90 s and a
trial 30 s.

Each problem is searched by `sweep.search.ask`, which is told the results in simulated time. With `--state FILE` each
result is appended, and the next command continues there. The last line of the output is JSON.
"""

import argparse
import functools
import heapq
import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.documents import markdown_table, publish
from benchmarks.silicon import CONFIGURATION, LAUNCH, TRIAL, Family, read_families
from sweep.search.ask import BestQuestion, BestSearch, NextLaunch, ObjectiveScale, Proposer, Result, longest
from sweep.search.model import Floats, Ints, Space
from sweep.search.tpe import TpeSearch, has_optuna

LEVELS = (2, 2, 2, 2, 3, 4, 3)
ORDERED = (5, 6)
FLAGS: Ints = np.array(list(itertools.product(*map(range, LEVELS))))
FAILED_LAUNCH = 60  # s
CRASHES = 0.02  # share of launches
TRIAL_NOISE = 0.01  # between trials of one launch
SIZES = ("tp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size")  # ordered settings of the measured rows
QUARTILES = (0.25, 0.5, 0.75)


BASELINE_HEADINGS = "noise | rule | launches | problems | within 5% | within 10% | below 0.85 | worst"
SEARCHED_HEADINGS = (
    "noise, nodes | problems | launches | points | node time | within 5% | within 10% | below 0.85 | worst"
    " | sure, of these right | bands | node s, wall s"
)


class Problem(NamedTuple):
    """A space whose truth is known."""

    name: str
    space: Space
    question: BestQuestion
    measure: Callable[[int, float], tuple[float, ...] | None]  # a point, and its launch's ln(slowness)
    quality: Callable[[int], float]  # a point's value over the best's; 0 if it fails or misses a bound
    truth: Floats  # what `measure` would give of the objective without noise, ln; NaN if it fails


class Searched(NamedTuple):
    """A search's end. Shares are of the grid: every configuration launched once, every point measured once."""

    problem: str
    launches: int
    points: float
    seconds: float  # of nodes
    wall: float  # s
    spent: float  # s of nodes
    quality: float
    probability: float
    sure: bool
    cover: float  # share of 90% bands that hold the truth of a point not measured


def flag_space(seed: int) -> tuple[Floats, np.ndarray]:
    """Return the ln of each configuration's speed, and whether it fails."""
    random, count = np.random.default_rng(seed), len(FLAGS)
    speed = np.zeros(count)
    for flag, levels in enumerate(LEVELS):
        if flag == 5:
            peak = random.uniform(0, 3)
            effect = -random.uniform(0.03, 0.12) * (np.arange(4) - peak) ** 2 / 2
        else:
            gpus = flag == 6
            effect = random.normal(size=levels) * (0.15 if gpus else 0.08) * (random.random() < (1 if gpus else 0.6))
        speed += effect[FLAGS[:, flag]]
    for flag, other in itertools.combinations(range(len(LEVELS)), 2):
        if random.random() < 0.3:
            speed += (random.normal(size=(LEVELS[flag], LEVELS[other])) * 0.04)[FLAGS[:, flag], FLAGS[:, other]]
    speed += random.normal(size=count) * 0.01
    fails = np.zeros(count, bool)
    while fails.mean() < 0.15:
        flag, other = random.choice(len(LEVELS), 2, replace=False)
        level, other_level = random.integers(LEVELS[flag]), random.integers(LEVELS[other])
        fails |= (FLAGS[:, flag] == level) & (FLAGS[:, other] == other_level)
    return speed, fails


def flag_problem(seed: int, within: float) -> Problem:
    speed, fails = flag_space(seed)
    count, best = len(FLAGS), speed[~fails].max()
    ordered = tuple(flag in ORDERED for flag in range(len(LEVELS)))
    space = Space(FLAGS, ordered, np.arange(count), np.ones(count), np.ones(count))
    noise = np.random.default_rng([seed, 1])

    def measure(point: int, slowness: float) -> tuple[float, ...] | None:
        return None if fails[point] else (float(np.exp(speed[point] - slowness + noise.normal() * TRIAL_NOISE)),)

    question = BestQuestion(ObjectiveScale(-1, np.zeros(count)), (), within, seed=seed)
    truth = np.where(fails, np.nan, speed)
    return Problem(
        f"{seed}",
        space,
        question,
        measure,
        lambda point: 0.0 if fails[point] else float(np.exp(speed[point] - best)),
        truth,
    )


def silicon_problem(name: str, family: Family, quartile: float, seed: int, within: float) -> Problem:
    """Return a family's question: the most tokens/s of a GPU at a quartile of tokens per second and user."""
    speed, tpot = np.array(list(family.points.values())).T
    configuration, users = np.array(list(family.points)).T
    columns = [sorted({key[index] for key in family.configurations}) for index in range(len(CONFIGURATION))]
    for index, column in enumerate(CONFIGURATION):
        if column in SIZES:
            columns[index].sort(key=lambda text: float(text or 0))
    levels = np.array([[columns[i].index(text) for i, text in enumerate(key)] for key in family.configurations])
    gpus = np.array([float(key[CONFIGURATION.index("tp_size")]) for key in family.configurations])
    ordered = tuple(column in SIZES for column in CONFIGURATION)
    space = Space(levels, ordered, configuration, users.astype(float), gpus)
    bound = float(1 / np.quantile(1 / tpot, quartile))
    best = speed[tpot <= bound].max()
    noise = np.random.default_rng([seed, int(100 * quartile), sum(map(ord, name))])

    def measure(point: int, slowness: float) -> tuple[float, ...]:
        slow = np.exp(slowness + noise.normal() * TRIAL_NOISE)
        return float(speed[point] / slow), float(tpot[point] * slow)

    def quality(point: int) -> float:
        return float(min(speed[point] / best, 1.0)) if tpot[point] <= bound * (1 + within + 0.005) else 0.0

    question = BestQuestion(
        ObjectiveScale(-1, np.log(users) - np.log(gpus)[configuration]), (bound,), within, seed=seed
    )
    return Problem(f"{name} {quartile:g}", space, question, measure, quality, np.log(speed))


def search(
    problem: Problem,
    spread: float,
    nodes: int,
    seed: int,
    proposer: type[Proposer] = BestSearch,
    limit: int | None = None,
) -> Searched:
    """Search a problem in simulated time on some nodes, whose launches differ by `spread`."""
    random, space = np.random.default_rng([seed, 2]), problem.space
    configurations = len(space.levels)
    ask = proposer(space, problem.question, (LAUNCH, TRIAL), limit or longest(configurations))
    running: list[tuple[float, int, NextLaunch, list[Result]]] = []
    number, free, now, spent = 0, nodes, 0.0, 0.0
    while True:
        while free and (launch := ask.ask([point for _, _, each, _ in running for point in each.points])):
            slowness = random.normal() * spread
            took = LAUNCH + TRIAL * len(launch.points)
            results = [Result(point, number, problem.measure(point, slowness)) for point in launch.points]
            if all(each.values is None for each in results):
                took = FAILED_LAUNCH
            elif random.random() < CRASHES:
                took += FAILED_LAUNCH  # it is launched again
            heapq.heappush(running, (now + took, number, launch, results))
            free, number, spent = free - 1, number + 1, spent + took
        if not running:
            break
        now, _, _, results = heapq.heappop(running)
        free += 1
        ask.tell(results)
    standing = ask.standing()
    measured = {result.point for result in ask.results}
    grid_seconds = configurations * LAUNCH + space.size * TRIAL
    quality = 0.0 if standing.leader is None else problem.quality(standing.leader)
    unmeasured = [point for point in range(space.size) if point not in measured]
    cover = coverage(ask, problem, unmeasured) if isinstance(ask, BestSearch) else 1.0
    shares = len(measured) / space.size, spent / grid_seconds
    probability = standing.probability or 0.0
    return Searched(problem.name, number, *shares, now, spent, quality, probability, standing.sure, cover)


def coverage(ask: BestSearch, problem: Problem, points: Sequence[int]) -> float:
    """Return the share of these points whose truth is within the model's 90% band."""
    samples = problem.question.objective.offset - ask.samples()[0]
    low, high = np.quantile(samples, [0.05, 0.95], axis=0)
    inside = ((problem.truth >= low) & (problem.truth <= high))[points][~np.isnan(problem.truth[points])]
    return float(inside.mean()) if len(inside) else 1.0


def baseline(rule: str, launches: int, problem: Problem, spread: float) -> float:
    """Return the quality of what a rule finds with so many launches, each of all points of a configuration."""
    space, bounds, seed = problem.space, problem.question.bounds, problem.question.seed
    if rule == "TPE":
        return search(problem, spread, 1, seed, TpeSearch, launches).quality
    random, count = np.random.default_rng([seed, 3]), len(space.levels)
    measured_values: dict[int, tuple[float, ...]] = {}

    def launch(configurations: Iterable[int]) -> None:
        for configuration in configurations:
            slowness = random.normal() * spread
            for point in np.flatnonzero(space.configuration == configuration):
                if values := problem.measure(int(point), slowness):
                    measured_values[int(point)] = values

    order = random.permutation(count)
    if rule == "screening":  # main effects from half of the launches; then what they predict to be best
        launch(order[: launches // 2])
        predicted = main_effects(space, measured_values)
        fits = np.all(predicted[:, 1:] <= np.log(bounds), axis=1)
        best = [predicted[(space.configuration == each) & fits, 0].max(initial=-np.inf) for each in range(count)]
        untried = [each for each in np.argsort(-np.array(best), kind="stable") if each not in order[: launches // 2]]
        launch(untried[: launches - launches // 2])
    else:
        launch(order if rule == "grid" else order[:launches])
    within = {point: values[0] for point, values in measured_values.items() if np.all(np.array(values[1:]) <= bounds)}
    return problem.quality(max(within, key=within.__getitem__)) if within else 0.0


def main_effects(space: Space, measured_values: Mapping[int, tuple[float, ...]]) -> Floats:
    """Return the ln of each quantity at every point, by effects of the settings and the load alone."""
    columns = [np.ones(space.size), np.log(space.load), np.log(space.load) ** 2]
    for levels in space.levels.T:
        columns += [levels[space.configuration] == level for level in range(1, levels.max() + 1)]
    points, design = list(measured_values), np.column_stack(columns)
    values = np.log(np.array(list(measured_values.values())).reshape(len(points), -1))
    ridge = design[points].T @ design[points] + 0.05 * np.eye(design.shape[1])
    return np.asarray(design @ np.linalg.solve(ridge, design[points].T @ values))


class Kept:
    """Results by key, kept in a file if there is one."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path and path.exists() else []
        self.known: dict[str, Any] = dict(map(json.loads, lines))

    def get(self, key: str, compute: Callable[[], Any]) -> Any:
        if key not in self.known:
            self.known[key] = compute()
            if self.path:
                with self.path.open("a") as file:
                    print(json.dumps([key, self.known[key]]), file=file)
        return self.known[key]


def row(label: str, ends: Sequence[Searched]) -> list[str]:
    """Return the line of a table about these searches."""
    columns = {name: np.array([getattr(end, name) for end in ends]) for name in Searched._fields[1:]}
    quality, seconds, points = (columns[name] for name in ("quality", "seconds", "points"))
    sure, right = columns["sure"].astype(bool), quality >= 0.95
    of_sure = f"{sure.mean():.0%}, {right[sure].mean():.1%}" if sure.any() else "0%, –"
    return [
        *(label, str(len(ends)), f"{columns['launches'].mean():.0f} (median {np.median(columns['launches']):.0f})"),
        *(f"{np.median(points):.2f}", f"{np.median(seconds):.2f} ({seconds.mean():.2f})", f"{right.mean():.1%}"),
        *(f"{np.mean(quality >= 0.9):.1%}", f"{np.mean(quality < 0.85):.1%}", f"{quality.min():.2f}", of_sure),
        f"{np.mean(columns['cover']):.0%}",
    ]


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=["flags", "silicon", "baselines"])
    parser.add_argument("--table", type=Path)
    parser.add_argument("--problems", type=int, default=40, help="flag spaces; of silicon, the most problems")
    parser.add_argument("--first", type=int, default=1000, help="the first seed")
    parser.add_argument("--noise", type=float, nargs="+", default=[0.02, 0.05])
    parser.add_argument("--nodes", type=int, nargs="+", default=[1])
    parser.add_argument("--quartiles", type=float, nargs="+", default=QUARTILES)
    parser.add_argument("--within", type=float, default=0.05)
    parser.add_argument("--launches", type=float, nargs="+", default=[60, 120], help="of a baseline; up to 1: a share")
    parser.add_argument("--state", type=Path)
    chosen = parser.parse_args(arguments)
    results, began = Kept(chosen.state), time.process_time()
    rows, figures = (baseline_rows if chosen.study == "baselines" else searched_rows)(chosen, results)
    headings = BASELINE_HEADINGS if chosen.study == "baselines" else SEARCHED_HEADINGS
    publish(markdown_table(headings, rows))
    print(json.dumps([chosen.study, figures, {"cpu_seconds": time.process_time() - began}]))


def baseline_rows(chosen: argparse.Namespace, results: Kept) -> tuple[list[list[str]], list[Any]]:
    """Return the lines of the table about the rules without a model, and their figures."""
    rows, figures = [], []
    rules = [("grid", 1.0)] + [(rule, most) for most in chosen.launches for rule in ("screening", "random")]
    rules += [("TPE", most) for most in chosen.launches] if has_optuna() else []
    for spread, (rule, most) in itertools.product(chosen.noise, rules):
        qualities, numbers = [], []
        for problem in problems_of(chosen):
            number = math.ceil(most * len(problem.space.levels)) if most <= 1 else int(most)
            compute = functools.partial(baseline, rule, number, problem, spread)
            qualities.append(results.get(f"{rule} {number} {spread} {problem.name}", compute))
            numbers.append(number)
        shares = [float(np.mean(np.array(qualities) >= least)) for least in (0.95, 0.9, 0.85)]
        figures.append([rule, most, spread, len(qualities), *shares, min(qualities)])
        cells = [*(f"{share:.1%}" for share in shares[:2]), f"{1 - shares[2]:.1%}", f"{min(qualities):.2f}"]
        rows.append([f"{spread:.0%}", rule, f"{np.mean(numbers):.0f}", str(len(qualities)), *cells])
    return rows, figures


def searched_rows(chosen: argparse.Namespace, results: Kept) -> tuple[list[list[str]], list[Any]]:
    """Return the lines of the table about the searches of a study, and their means."""
    rows, figures = [], []
    for spread, nodes in itertools.product(chosen.noise, chosen.nodes):
        ends = []
        for problem in problems_of(chosen):
            key = f"{chosen.study} {spread} {nodes} {chosen.within} {chosen.first} {problem.name}"
            ends.append(Searched(*results.get(key, functools.partial(search, problem, spread, nodes, chosen.first))))
            print(key, ends[-1], file=sys.stderr, flush=True)
        rows.append(row(f"{spread:.0%}, {nodes}", ends))
        rows[-1].append(
            ", ".join(
                f"{np.mean(seconds):.0f}" for seconds in ([end.spent for end in ends], [end.wall for end in ends])
            )
        )
        figures.append([spread, nodes, *(float(np.mean(column)) for column in list(zip(*ends, strict=True))[1:10])])
    return rows, figures


def problems_of(chosen: argparse.Namespace) -> Iterable[Problem]:
    if chosen.study != "silicon" and chosen.table is None:
        return (flag_problem(seed, chosen.within) for seed in range(chosen.first, chosen.first + chosen.problems))
    questions = itertools.product(read_families(chosen.table).items(), chosen.quartiles)
    of_families = (silicon_problem(*family, quartile, chosen.first, chosen.within) for family, quartile in questions)
    return itertools.islice(of_families, chosen.problems)


if __name__ == "__main__":
    main(sys.argv[1:])
