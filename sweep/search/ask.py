"""Asks for the best point of a grid, within a tolerance, from a part of its launches.

Results give joint samples of all points. The leader is the measured point that is most often within the tolerance of
the best. The search stops when that is sure enough; otherwise the next launch goes where it is most likely to matter
for its seconds.
"""

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sweep.search.model import TRIAL_NOISE, Floats, Observations, Space, Surface

DRAWS = 300
FIRST_FEWEST, FIRST_MOST = 3, 16  # launches before the model chooses
REFIT, MANY, REFIT_MANY = 8, 16, 2  # results between two fits of the model; from so many results, between two fits
LEAST_WEIGHT = 0.01  # of a launch that others may make unnecessary
FAR = 1.2  # a failure's weight falls by e for each 1/FAR settings that differ
FAILURES_BEFORE, WEIGHT_BEFORE = 0.15, 0.1  # share of failures expected before any result, and its weight in results
SHARE_OF_DOUBT = 0.4  # the model is asked to be so many times less unsure than is stated (docs/measurements/ask.md)
LEADER_LAUNCHES = 2  # of the leader, at least: repeated launches show the noise
SIDE_BY_SIDE = 3  # launches of one point at a time, at most
SMALLEST = 1e-12  # values below it, or above its inverse, are cut


class ObjectiveScale(NamedTuple):
    """A quantity as the model sees it: ln(quantity)·sign + offset is the ln of seconds for each unit and user."""

    sign: int
    offset: Floats  # of each point


class BestQuestion(NamedTuple):
    """What is asked. `bounds` are the largest values of the latencies that each result has after the objective."""

    objective: ObjectiveScale
    bounds: tuple[float, ...] = ()  # s
    within: float = 0.05
    sure: float = 0.95
    seed: int = 0


class Result(NamedTuple):
    """What a trial gave: the objective, then the bounded latencies; None if it failed."""

    point: int
    launch: int
    values: tuple[float, ...] | None
    at_launch: bool = False  # whether it failed because its launch did


class NextLaunch(NamedTuple):
    """The next launch: a configuration with the points to measure in it, the most important first."""

    configuration: int
    points: tuple[int, ...]
    weight: float


@dataclass(frozen=True)
class BestStanding:
    """What the results say. A search without a model knows no probability.

    `probability` is the model's that the leader is within the tolerance and the bounds.
    """

    leader: int | None
    done: bool
    sure: bool = False  # of the leader, or that no point is within the bounds
    probability: float | None = None
    open: int | None = None  # points that may be the best, with a probability above LEAST_WEIGHT
    none_fits: float | None = None  # the model's probability that no point is within the bounds


class ModelOpinion(NamedTuple):
    """The standing, and two figures of each point by the model.

    `decisive` is the share of samples in which the leader is not good enough and the point is the best; `variance` is
    that of its ln(value).
    """

    standing: BestStanding
    decisive: Floats
    variance: Floats


def longest(configurations: int) -> int:
    """Return the most launches of a search."""
    return 2 * configurations + 16


def every_configuration(configuration: int) -> bool:
    return True


class Proposer(ABC):
    """A search for the best point. It depends only on the results that it is told, in their order."""

    def __init__(self, space: Space, question: BestQuestion, seconds: tuple[float, float], limit: int) -> None:
        """`seconds` of a launch and of a trial, which weigh the choice; at most `limit` launches."""
        self.space, self.question, self.seconds, self.limit = space, question, seconds, limit
        self.results: list[Result] = []
        self.excluded: set[int] = set()  # points without another launch
        configurations = len(space.levels)
        self.first = min(FIRST_MOST, max(FIRST_FEWEST, math.ceil(configurations / 4)), configurations)

    @abstractmethod
    def ask(self, pending: Collection[int], fits: Callable[[int], bool] = every_configuration) -> NextLaunch | None:
        """Return the next launch of a configuration that `fits`, given the points of launches that have not ended.

        A point is pending as often as it is measured. None: the search is done, or it waits for pending results.
        """

    @abstractmethod
    def standing(self) -> BestStanding: ...

    def tell(self, results: Sequence[Result]) -> None:
        """Add results. A later success at a point replaces its failure; a success in a launch, the launch's failure."""
        worked = {each.launch for each in results if each.values is not None}
        self.results = [each for each in self.results if not (each.at_launch and each.launch in worked)] + [*results]

    def bands(self, most: int) -> list[tuple[int, Floats]]:
        """Return the points predicted to be best, without those that fail or surely exceed a bound, best first.

        Each has the 5%, 50% and 95% quantiles of the predicted quantity. A search without a model predicts nothing.
        """
        return []

    @property
    def launches(self) -> int:
        return len({result.launch for result in self.results})

    @property
    def launch_noise(self) -> float | None:
        """The standard deviation between launches, of logarithms, from points measured in several; None without any."""
        measured: dict[int, list[float]] = {}
        for result in self.results:
            if result.values is not None:
                measured.setdefault(result.point, []).append(math.log(result.values[0]))
        repeated = [logs for logs in measured.values() if len(logs) > 1]
        freedom = sum(len(logs) - 1 for logs in repeated)
        return math.sqrt(sum(np.var(logs) * len(logs) for logs in repeated) / freedom) if freedom else None

    def begun(self, pending: Collection[int]) -> int:
        """Return the number of launches, with those that have not ended."""
        at_once = Counter[int]()
        for point, times in Counter(pending).items():
            at_once |= Counter({int(self.space.configuration[point]): times})
        return self.launches + at_once.total()

    def usable(self, fits: Callable[[int], bool]) -> NDArray[np.bool_]:
        """Return which points may be launched now."""
        able = np.array([fits(configuration) for configuration in range(len(self.space.levels))])
        points = able[self.space.configuration]
        points[list(self.excluded)] = False
        return points


class BestSearch(Proposer):
    """A search by a model of the space, which ends when the model is sure enough."""

    def __init__(self, space: Space, question: BestQuestion, seconds: tuple[float, float], limit: int) -> None:
        super().__init__(space, question, seconds, limit)
        self.surfaces = [Surface(space) for _ in range(1 + len(question.bounds))]
        self.fitted = 0  # results that the parameters were fitted to
        self._judged: ModelOpinion | None = None

    @property
    def enough(self) -> float:
        """The model's probability at which the search stops."""
        return 1 - SHARE_OF_DOUBT * (1 - self.question.sure)

    def tell(self, results: Sequence[Result]) -> None:
        super().tell(results)
        self._judged = None if results else self._judged

    def ask(self, pending: Collection[int], fits: Callable[[int], bool] = every_configuration) -> NextLaunch | None:
        begun = self.begun(pending)
        if self.standing().done or begun >= self.limit:
            return None
        usable = self.usable(fits)
        if begun < self.first:
            return self._first(pending, usable)
        weights = np.where(usable, self._weights(Counter(pending)), 0.0)
        if not weights.any() or (pending and weights.max() < LEAST_WEIGHT):
            return None
        able = np.unique(self.space.configuration[usable])
        return max((self._bundle(int(configuration), weights) for configuration in able), key=self._worth)

    def standing(self) -> BestStanding:
        if self._judged is None:
            self._judged = self._judge()
        return self._judged.standing

    def _weights(self, pending: Mapping[int, int]) -> Floats:
        """Return how likely another launch of each point matters, beside the launches that have not ended.

        Those count as if they had ended, with values that change nothing but the variance.
        """
        standing, size = self.standing(), self.space.size
        if not self._successes():
            return np.zeros(size) if pending else 1 - self._failing()
        assert self._judged is not None
        _, decisive, variance = self._judged
        leader = standing.leader if standing.leader is not None else 0
        weights, times = np.zeros(size), np.zeros(size)
        times[list(pending)] = list(pending.values())
        measured = np.isin(np.arange(size), [result.point for result in self._successes()])
        if standing.probability is not None and standing.probability >= self.enough:
            # What is missing is a repeated launch of the leader.
            weights[leader] = self._repeated(leader) + times[leader] < LEADER_LAUNCHES
            return weights
        variance = 1 / (1 / variance + times / (self.surfaces[0].launch_noise ** 2 + TRIAL_NOISE**2))
        weights = decisive * variance / (variance + variance[leader])
        weights[leader] = np.sum(decisive * variance[leader] / (variance + variance[leader]))
        return np.where((times < SIDE_BY_SIDE) & (measured | (times == 0)), weights, 0.0)

    def _repeated(self, point: int) -> int:
        """Return the number of launches that measured a point."""
        return len({result.launch for result in self._successes() if result.point == point})

    def _worth(self, launch: NextLaunch) -> float:
        return launch.weight / (self.seconds[0] + len(launch.points) * self.seconds[1])

    def _bundle(self, configuration: int, weights: Floats) -> NextLaunch:
        """Return the points of a configuration that are together the most likely to matter for their seconds."""
        points = np.flatnonzero(self.space.configuration == configuration)
        points = points[np.argsort(-weights[points], kind="stable")]
        sums = np.cumsum(weights[points])
        number = int(np.argmax(sums / (self.seconds[0] + self.seconds[1] * np.arange(1, len(points) + 1)))) + 1
        return NextLaunch(configuration, tuple(map(int, points[:number])), float(sums[number - 1]))

    def _first(self, pending: Collection[int], usable: np.ndarray) -> NextLaunch | None:
        """Return the point that tells most beside those begun, of a configuration not launched yet."""
        begun = np.array(sorted({*pending, *(result.point for result in self.results)}), np.int64)
        random = np.random.default_rng([self.question.seed, len(begun)])
        left = usable & ~np.isin(self.space.configuration, self.space.configuration[begun])
        if not left.any():
            return None
        variance = self.surfaces[0].variance(begun) + 1e-6 * random.random(self.space.size)
        point = int(np.where(left, variance, -1.0).argmax())
        return NextLaunch(int(self.space.configuration[point]), (point,), 1.0)

    def _successes(self) -> list[Result]:
        return [result for result in self.results if result.values is not None]

    def _failing(self) -> Floats:
        """Return each point's probability to fail: 0 or 1 if it was measured, else from points like it."""
        worked = {result.point for result in self._successes()}
        failed = {result.point for result in self.results} - worked
        chance = np.full(self.space.size, FAILURES_BEFORE * WEIGHT_BEFORE)
        total = np.full(self.space.size, WEIGHT_BEFORE)
        of_points = self.space.levels[self.space.configuration]
        for point in sorted(worked | failed):
            differ = (of_points != of_points[point]).sum(1) + abs(np.log(self.space.load / self.space.load[point]))
            alike = np.exp(-FAR * differ)
            total += alike
            chance += alike * (point in failed)
        chance /= total
        chance[list(worked)], chance[list(failed)] = 0, 1
        return chance

    def samples(self) -> list[Floats]:
        """Return joint samples of the objective's ln(seconds) at every point, then of each bounded latency's ln."""
        random = np.random.default_rng([self.question.seed, len(self.results)])
        return self._draws(self._successes(), random, unmeasured=True)

    def bands(self, most: int) -> list[tuple[int, Floats]]:
        if not self._successes():
            return []
        objective, *latencies = self.samples()
        target, fits = self.question.objective, np.ones_like(objective, bool)
        for latency, bound in zip(latencies, self.question.bounds, strict=True):
            fits &= latency <= math.log(bound * (1 + self.question.within))
        ends = np.exp(target.sign * (np.quantile(objective, [0.05, 0.5, 0.95], axis=0) - target.offset)).T
        eligible = np.flatnonzero((fits.mean(0) >= 1 - self.enough) & (self._failing() < 1))
        ranked = eligible[np.argsort(target.sign * ends[eligible, 1], kind="stable")][:most]
        return [(int(point), np.sort(ends[point])) for point in ranked]

    def _draws(
        self, successes: Sequence[Result], random: np.random.Generator, unmeasured: bool = False
    ) -> list[Floats]:
        while (due := self.fitted + (REFIT if self.fitted < MANY else REFIT_MANY)) <= len(successes):  # as if new
            for surface, part in zip(self.surfaces, self._parts(successes[:due])[0], strict=True):
                surface.fit(part)
            self.fitted = due
        parts, follows = self._parts(successes)
        surfaces = zip(self.surfaces, parts, strict=True)
        draws = [surface.draws(part, random, DRAWS, unmeasured) for surface, part in surfaces]
        return [each + draws[0] * follow for each, follow in zip(draws, follows, strict=True)]

    def _parts(self, successes: Sequence[Result]) -> tuple[list[Observations], list[bool]]:
        """Return what is modelled: ln(seconds) of the objective, then each latency's ln.

        A latency that follows the objective is modelled by what it differs; for each part, whether it does.
        """
        point, launch = np.array([result[:2] for result in successes], np.int64).T
        values = np.log(np.clip(np.array([result.values for result in successes]), SMALLEST, 1 / SMALLEST))
        target = self.question.objective
        first = target.sign * values[:, 0] + target.offset[point]
        follows = [False, *(bool(np.var(column - first) < np.var(column)) for column in values[:, 1:].T)]
        columns = [first, *values[:, 1:].T]
        parts = [
            Observations(point, launch, each - first * follow) for each, follow in zip(columns, follows, strict=True)
        ]
        return parts, follows

    def _judge(self) -> ModelOpinion:
        successes, size = self._successes(), self.space.size
        if not successes:
            standing = BestStanding(None, self.launches >= self.limit, False, 0.0, size, 0.0)
            return ModelOpinion(standing, np.zeros(size), np.ones(size))
        random = np.random.default_rng([self.question.seed, len(self.results)])
        objective, *latencies = self._draws(successes, random)
        value = self.question.objective.offset - objective  # ln, larger is better
        within, tolerance = self.question.within, -math.log(1 - self.question.within)
        fits, nearly = np.ones_like(value, bool), np.ones_like(value, bool)
        for latency, bound in zip(latencies, self.question.bounds, strict=True):
            fits &= latency <= math.log(bound)
            nearly &= latency <= math.log(bound * (1 + within))
        alive = random.random(value.shape) >= self._failing()
        strict = np.where(fits & alive, value, -np.inf)
        most, place = strict.max(1), strict.argmax(1)
        good = nearly & (value >= (most - tolerance)[:, None]) & np.isfinite(most)[:, None]
        measured = sorted({result.point for result in successes})
        shares = good[:, measured].mean(0)
        leader = measured[int(shares.argmax())]
        probability, none_fits = float(shares.max()), float(np.mean(~np.isfinite(most)))
        decisive = np.bincount(place[~good[:, leader] & np.isfinite(most)], minlength=size) / len(value)
        hopeless, likely = none_fits >= self.enough, probability >= self.enough
        ended = hopeless or (likely and (self._repeated(leader) >= LEADER_LAUNCHES or leader in self.excluded))
        contenders = int((np.bincount(place, minlength=size) / len(value) >= LEAST_WEIGHT).sum())
        done = bool(ended or self.launches >= self.limit)
        best = None if hopeless else leader
        standing = BestStanding(best, done, hopeless or likely, probability, contenders, none_fits)
        return ModelOpinion(standing, decisive, np.var(value, axis=0) + 1e-12)
