"""Decides which configuration of a task is best within the bounds, and whether its lead is more than noise.

The best is tested against all other configurations (`comparison.Contest`). If configurations are equal, one is falsely
declared best in about 5% of cases, however many configurations and loads there are to choose from. The remedy for a tie
follows from the spread between launches that remains after pairing.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis.answers.asking import Measured, measured_points, objective, title
from analysis.answers.capacity import capacity_answers, claims_within
from analysis.answers.slo_bounds import bounds, fewest_requests, tells
from analysis.answers.task_answer import RankedConfiguration, Remedy, TaskAnswer, TaskCriterion
from analysis.compare.verdicts import DURATIONS, minutes_a_launch
from analysis.headline import shown_column, shown_requests
from analysis.results import RunResults
from analysis.statistics.comparison import MARGIN, Contest, Positions, comparisons_with_best
from analysis.statistics.contests import Standing
from analysis.statistics.estimates import estimate
from analysis.statistics.intervals import CONFIDENCE
from analysis.statistics.power import POWER, errors_needed

SPREAD_WEIGHT = 4  # highest weight of the other questions' spread, in degrees of freedom
FEWEST_LAUNCHES = 3  # launches to suggest if none were repeated


def answers(runs: Sequence[RunResults], slo: Mapping[str, float] | None = None) -> list[TaskAnswer]:
    """Return the answer for each task of these runs. `slo` replaces the runs' SLO.

    Without an SLO, an answer is for one load. With an SLO, each configuration is compared at its best load within the
    bounds. If a run has searched for the capacity within these bounds, its claims are the answers.
    """
    if slo is None:
        slo = shared_slo(runs)
    searched = [results for results in runs if slo and claims_within([results], slo)]
    measured = [results for results in runs if results not in searched]
    claimed = capacity_answers(claims_within(searched, slo))
    return claimed + (answers_of_points(measured, slo) if measured else [])


def answers_of_points(runs: Sequence[RunResults], slo: Mapping[str, float]) -> list[TaskAnswer]:
    """Return the answer for each task from the runs' points alone."""
    every = measured_points(runs)
    rankings = [ranking for group in every.groups(bool(slo)) if (ranking := _ranked(every, group, slo))]
    spreads = _spreads(rankings)
    return [_answer(every, ranking, spreads) for ranking in rankings]


def shared_slo(runs: Sequence[RunResults]) -> dict[str, float]:
    """Return the SLO that all trials of the runs share; empty if they differ."""
    texts = {text for results in runs for text in results.run.trials["slo"].dropna().unique()}
    return json.loads(texts.pop()) if len(texts) == 1 else {}


class Ranking(NamedTuple):
    """The configurations of a task, the best first, with the contest that compares them."""

    criterion: TaskCriterion
    meeting: list[RankedConfiguration]
    failing: list[RankedConfiguration]
    points: list[int]  # points that meet the bounds
    contest: Contest | None  # None if no point meets the bounds
    places: Positions  # positions of `points` in the contest
    shorter: tuple[str, ...] = ()  # names of configurations excluded because their answers were shorter
    barred: tuple[RankedConfiguration, ...] = ()  # configurations not ranked because of a severe warning


def _ranked(every: Measured, group: pd.DataFrame, slo: Mapping[str, float]) -> Ranking | None:
    """Rank the configurations of a task; None if they lack the quantity that decides."""
    quantity = objective(group, bool(slo))
    if quantity is None:
        return None
    limits = bounds(slo, fewest_requests(group, slo, every.percentiles), every.percentiles) if slo else ()
    criterion = TaskCriterion(title(group, bool(slo)), quantity, limits)
    columns = [each.column for each in criterion.quantities]
    severe = np.array([bool(every.contests.barred(columns, point)) for point in group.index], np.bool_)
    ranked = every.contests.ranked(quantity, group.index.to_numpy(np.int64), bool(slo)) & ~severe
    shorter = tuple(group["name"][~ranked & ~severe].unique())
    configurations = [
        (_ranked_configuration(every, point, criterion), int(str(index))) for index, point in group[ranked].iterrows()
    ]
    configurations = [pair for pair in configurations if not math.isnan(pair[0].figure.value)]
    names = {configuration.name for configuration, _ in configurations}
    barred_points = group[severe & ~group["name"].isin(names)].drop_duplicates("name")
    barred = tuple(_ranked_configuration(every, point, criterion) for _, point in barred_points.iterrows())
    if not configurations:
        return Ranking(criterion, [], [], [], None, np.zeros(0, np.int64), shorter, barred) if barred else None
    sign = 1 if quantity.better == "higher" else -1
    configurations.sort(key=lambda pair: -sign * pair[0].figure.value if pair[0].meets else -pair[0].headroom)
    configurations.sort(key=lambda pair: not pair[0].meets)
    by_name: dict[str, list[tuple[RankedConfiguration, int]]] = {}
    for configuration, point in configurations:
        by_name.setdefault(configuration.name, []).append((configuration, point))
    meeting = [[pair for pair in pairs if pair[0].meets] for pairs in by_name.values() if pairs[0][0].meets]
    failing = [pairs[0][0] for pairs in by_name.values() if not pairs[0][0].meets]
    if not meeting:
        return Ranking(criterion, [], failing, [], None, np.zeros(0, np.int64), shorter, barred)
    points = [pairs[0][1] for pairs in meeting]
    if slo:  # each is its configuration's best load: a separate comparison from points at equal loads
        of_loads = [every.contests.of_points(quantity, [point for _, point in pairs], best=0) for pairs in meeting]
        choices = sum(map(best_choices, of_loads))
        contest, places = every.contests.of_points(quantity, points, choices, best=0), np.arange(len(points))
    else:
        contest, places = every.contests.shared(quantity, points)
    order = np.argsort(places != contest.best, kind="stable") if contest.won else np.arange(len(points))
    placed = _standings([meeting[index][0][0] for index in order], contest, places[order])
    return Ranking(criterion, placed, failing, [points[at] for at in order], contest, places[order], shorter, barred)


def best_choices(of_loads: Contest) -> int:
    """Return how many of a configuration's points tie with its best, including the best."""
    return 1 + int(of_loads.tied(0).sum())


def _ranked_configuration(every: Measured, point: "pd.Series[Any]", criterion: TaskCriterion) -> RankedConfiguration:
    figure = estimate(point, criterion.quantity.column)
    any_load = bool(criterion.bounds) and bool(point["by_load"])
    load = str(point["at"]) if any_load else ""
    place, columns = int(str(point.name)), [each.column for each in criterion.quantities]
    codes = tuple(dict.fromkeys([*every.contests.barred(columns, place), *every.codes(place, columns)]))
    begins = every.rows_of(place, ["started_at"])["started_at"].dropna()
    measured = (str(begins.min()), str(begins.max())) if len(begins) else None
    name, run = str(point["name"]), str(point["run"])
    dropped = str(point["dropped"]) if pd.notna(point["dropped"]) else None
    configuration = RankedConfiguration(
        name, load, run, figure, point=place, codes=codes, measured=measured, dropped=dropped
    )
    if not criterion.bounds:
        return configuration
    shown = [bound.on(shown_column(point, bound.quantity.column)) for bound in criterion.bounds]
    latencies = [(bound, estimate(point, bound.quantity.column)) for bound in shown]
    if not all(tells(shown_requests(point, bound.quantity.column), bound.percentile) for bound in shown):
        return replace(configuration, headroom=-math.inf, judged=False)
    bound, latency = min(latencies, key=lambda pair: pair[0].headroom(pair[1].value))
    return replace(configuration, headroom=bound.headroom(latency.value), tightest=bound, latency=latency)


def _standings(
    configurations: Sequence[RankedConfiguration], contest: Contest, places: Positions
) -> list[RankedConfiguration]:
    """Return the configurations, the best first, with their standing and their ratio to the best."""
    placed, tied = [replace(configurations[0], standing=Standing.BEST, ratio=1.0)], contest.tied(int(places[0]))
    for configuration, place in zip(configurations[1:], places[1:], strict=True):
        ratio, low, high = map(float, contest.ratios([places[0]], [place])[:, 0])
        standing = Standing.TIED if tied[place] else Standing.BEHIND
        placed.append(replace(configuration, standing=standing, ratio=ratio, low=low, high=high))
    return placed


class Spread(NamedTuple):
    """The variance of logarithms between launches after pairing, with its degrees of freedom."""

    squares: float
    freedom: int


def _spreads(rankings: Sequence[Ranking]) -> dict[str, Spread]:
    """Return the spread by quantity over all questions."""
    spreads: dict[str, Spread] = {}
    for ranking in rankings:
        if ranking.contest is not None and (model := ranking.contest.model).freedom > 0:
            column = ranking.criterion.quantity.column
            squares, freedom = spreads.get(column, Spread(0.0, 0))
            spreads[column] = Spread(squares + model.variance * model.freedom, freedom + model.freedom)
    return spreads


def _answer(every: Measured, ranking: Ranking, spreads: Mapping[str, Spread]) -> TaskAnswer:
    configurations = (*ranking.meeting, *ranking.failing)
    answer = TaskAnswer(ranking.criterion, configurations, shorter=ranking.shorter, barred=ranking.barred)
    if not answer.tied or ranking.contest is None:
        return answer
    rival = next(index for index, each in enumerate(ranking.meeting) if each.standing is Standing.TIED)
    pair = [every.rows_of(ranking.points[index], DURATIONS) for index in (0, rival)]
    spread = spreads.get(ranking.criterion.quantity.column, Spread(0.0, 0))
    places = int(ranking.places[0]), int(ranking.places[rival])
    advice = remedy(ranking.contest, places, spread, minutes_a_launch(*pair))
    planned = max(int(results.run.experiment.get("replicates") or 0) for results in every.runs)
    is_planned = advice.launches and advice.replicates <= planned  # a warning says how to measure what is missing
    return answer if is_planned else replace(answer, remedy=advice)


def remedy(contest: Contest, pair: tuple[int, int], spread: Spread, minutes: float) -> Remedy:
    """Return the launches that would decide between two points nine times in ten, if they differ as measured.

    A difference smaller than the margin is replaced by the margin, since a smaller lead does not matter.
    """
    model, (best, rival) = contest.model, pair
    difference = max(abs(math.expm1(model.effects[best] - model.effects[rival])), MARGIN)
    launches, count = int(min(model.n[best], model.n[rival])), int((model.n > 0).sum())
    contest_freedom = max(model.freedom, 0)
    squares = model.variance * contest_freedom if contest_freedom else 0.0
    other_freedom = max(spread.freedom - contest_freedom, 0)
    weight = min(SPREAD_WEIGHT, other_freedom)
    freedom = contest_freedom + weight
    if not freedom:
        return Remedy(difference, 0, max(FEWEST_LAUNCHES, launches), math.nan)
    variance = (squares + (weight * (spread.squares - squares) / other_freedom if weight else 0.0)) / freedom
    total = launches + 1
    level = CONFIDENCE ** (1 / comparisons_with_best(count, contest.choices))
    power = 1 - (1 - POWER) / max(1, int(contest.tied(best).sum()))  # to get ahead of all that tie
    while _smallest_difference(variance, freedom, total, count - 1, level, power) > difference:
        total += max(1, total // 50)
    return Remedy(difference, total - launches, total, (total - launches) * minutes if minutes else math.nan)


def _smallest_difference(
    variance: float, freedom: int, launches: int, rivals: int, level: float, power: float
) -> float:
    """Return the smallest difference from the best that this many launches per configuration detect at this level.

    The variance was estimated with `freedom` degrees of freedom.
    """
    errors = errors_needed(freedom, (launches - 1) * rivals, level, power)
    return math.expm1(errors * math.sqrt(2 * variance / launches))
