"""Optuna's TPE as the search of a question. It learns from ranks alone, and knows no probability.

Each launch measures all points of its configuration. After a number of launches the leader is repeated.
"""

import math
from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from sweep.search.ask import (
    LEADER_LAUNCHES,
    BestQuestion,
    BestStanding,
    NextLaunch,
    Proposer,
    Result,
    every_configuration,
)
from sweep.search.model import Floats, Space

LAUNCHES_PER_ROOT = 5.0  # launches / √configurations after which only the leader is repeated
OVER_BOUND = 1e3  # of ln(value): what a bound exceeded by 1 in ln costs, so that no value makes up for it
FAILED_SCORE = -1e9


def has_optuna() -> bool:
    try:
        import optuna  # noqa: F401
    except ImportError:
        return False
    return True


def usual_launches(configurations: int) -> int:
    """Return the launches of a search, without the repeated ones of its leader."""
    return min(configurations, math.ceil(LAUNCHES_PER_ROOT * math.sqrt(configurations)))


class TpeSearch(Proposer):
    """A search by a tree-structured Parzen estimator, built anew from the results before each launch."""

    def __init__(self, space: Space, question: BestQuestion, seconds: tuple[float, float], limit: int) -> None:
        super().__init__(space, question, seconds, limit)
        self.usual = min(limit, usual_launches(len(space.levels)))

    def standing(self) -> BestStanding:
        scores = self._scores(self.results)
        leader = max(scores, key=lambda point: scores[point], default=None)
        tolerance = math.log(1 + self.question.within)
        best = None if leader is None or self._over(self._means(self.results)[leader]) > tolerance else leader
        repeated = {result.launch for result in self.results if result.point == best}
        enough = best is None or len(repeated) >= LEADER_LAUNCHES or best in self.excluded
        return BestStanding(best, self.launches >= self.limit or (self.launches >= self.usual and enough))

    def ask(self, pending: Collection[int], fits: Callable[[int], bool] = every_configuration) -> NextLaunch | None:
        begun, standing = self.begun(pending), self.standing()
        if standing.done or begun >= self.limit or (pending and begun >= self.usual):
            return None
        usable = np.unique(self.space.configuration[self.usable(fits)])
        if begun >= self.usual:
            assert standing.leader is not None
            configuration = int(self.space.configuration[standing.leader])
            return NextLaunch(configuration, (standing.leader,), 1.0) if configuration in usable else None
        begun_points = [*pending, *(result.point for result in self.results)]
        fresh = np.setdiff1d(usable, self.space.configuration[begun_points])
        if not len(fresh):
            return None
        configuration = int(fresh[self._distance(self._suggested(pending), fresh).argmin()])
        return NextLaunch(
            configuration, tuple(map(int, np.flatnonzero(self.space.configuration == configuration))), 1.0
        )

    def _suggested(self, pending: Collection[int]) -> Floats:
        """Return the levels that TPE suggests, after the launches that ended and beside those that run."""
        import optuna
        from optuna.trial import TrialState, create_trial

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        counts = self.space.levels.max(0, initial=0) + 1
        settings: dict[str, Any] = {
            str(setting): optuna.distributions.IntDistribution(0, int(count) - 1)
            if self.space.ordered[setting]
            else optuna.distributions.CategoricalDistribution(range(int(count)))
            for setting, count in enumerate(counts)
            if count > 1
        }

        def trial(point: int, state: TrialState, score: float | None = None) -> optuna.trial.FrozenTrial:
            levels = self.space.levels[self.space.configuration[point]]
            chosen = {name: int(levels[int(name)]) for name in settings}
            return create_trial(state=state, value=score, params=chosen, distributions=settings)

        launched: dict[int, list[Result]] = {}
        for result in self.results:
            launched.setdefault(result.launch, []).append(result)
        known = [
            trial(results[0].point, TrialState.COMPLETE, max(self._scores(results).values(), default=FAILED_SCORE))
            for results in launched.values()
        ]
        places = {int(self.space.configuration[point]): point for point in pending}
        seed = int(np.random.default_rng([self.question.seed, len(known) + len(places)]).integers(2**31))
        sampler = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=self.first, multivariate=len(settings) > 1, constant_liar=True
        )
        study = optuna.create_study(direction="maximize", sampler=sampler)
        study.add_trials([*known, *(trial(point, TrialState.RUNNING) for point in places.values())])
        wanted = study.ask(settings).params
        return np.array([float(wanted.get(str(setting), 0)) for setting in range(len(counts))])

    def _distance(self, levels: Floats, configurations: np.ndarray) -> Floats:
        """Return how many settings differ from these levels; neighbours of an ordered setting differ a little less."""
        apart = np.abs(self.space.levels[configurations] - levels)
        return np.asarray((1 - 0.5**apart).sum(1))

    def _scores(self, results: Collection[Result]) -> dict[int, float]:
        """Return the mean of ln(value), larger is better, of each point that worked; less if it exceeds a bound."""
        return {
            point: -self.question.objective.sign * float(means[0]) - OVER_BOUND * max(0.0, self._over(means))
            for point, means in self._means(results).items()
        }

    def _means(self, results: Collection[Result]) -> dict[int, Floats]:
        """Return each measured point's means over its launches: of ln(objective), then of each bounded latency's ln."""
        measured: dict[int, list[tuple[float, ...]]] = {}
        for result in results:
            if result.values is not None:
                measured.setdefault(result.point, []).append(result.values)
        return {point: np.log(values).mean(0) for point, values in measured.items()}

    def _over(self, means: Floats) -> float:
        """Return the ln of the largest latency over its bound; below 0 if all are within their bounds."""
        return float(np.max(means[1:] - np.log(self.question.bounds), initial=-np.inf))
