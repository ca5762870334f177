"""The decision of each question: who is best of those that meet the bounds, and whether that is more than noise.

The best is tested against all others as winners are (`comparison.indistinguishable`): about 5 % of equal
configurations are named, whatever their number, and whatever the number of loads of which each is taken at its best.
What would decide a tie follows from the spread between launches that is left after pairing.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis.answers.asking import Measured, measured_points, objective, title
from analysis.answers.question import Candidate, Remedy, TaskAnswer, TaskQuestion, bounds
from analysis.compare.matching import BY_OUTPUT, have_shorter_answers
from analysis.compare.ratio import Ratio, smallest_change
from analysis.compare.verdicts import DURATIONS, MARGIN, minutes_a_launch
from analysis.quantities import LabelledColumn
from analysis.results import RunResults
from analysis.statistics.comparison import BlockModel, comparisons_with_best, differences, fit, indistinguishable
from analysis.statistics.estimates import estimate
from analysis.statistics.intervals import CONFIDENCE
from analysis.statistics.standings import Standing

SPREAD_WEIGHT = 4  # degrees of freedom with which the spread in all questions counts in that of one
ANSWERED = ("output_tokens", "num_requests", "num_failed")  # columns behind the tokens of an answer
FEWEST_LAUNCHES = 3  # that are advised where none were repeated


def answers(runs: Sequence[RunResults], slo: Mapping[str, float] | None = None) -> list[TaskAnswer]:
    """The answer to each question of these runs; `slo` replaces the one that the runs had.

    Without an SLO a question is asked at one load; with one, each configuration is taken at the load at which it does
    best within the bounds.
    """
    if slo is None:
        slo = shared_slo(runs)
    every = measured_points(runs)
    contests = [contest for group in every.groups(bool(slo)) if (contest := _contest(every, group, slo))]
    spreads = _spreads(contests)
    return [_answer(every, contest, spreads) for contest in contests]


def shared_slo(runs: Sequence[RunResults]) -> dict[str, float]:
    """The SLO that all trials of the runs have; none if they have several."""
    texts = {text for results in runs for text in results.run.trials["slo"].dropna().unique()}
    return json.loads(texts.pop()) if len(texts) == 1 else {}


class Contest(NamedTuple):
    """The candidates of a question, the best first, with the model of their figures."""

    question: TaskQuestion
    meeting: list[Candidate]
    failing: list[Candidate]
    points: list[int]  # of those that meet the bounds
    choices: int  # the loads of all of these among which chance has chosen
    model: BlockModel | None  # None if none does
    shorter: tuple[str, ...] = ()  # names of configurations left out, whose shorter answers took less time


def _contest(every: Measured, group: pd.DataFrame, slo: Mapping[str, float]) -> Contest | None:
    """The candidates of a question by their standing; None if they have no figure."""
    quantity = objective(group, bool(slo))
    if quantity is None:
        return None
    group, shorter = _equally_long(every, group, quantity)
    limits = bounds(slo, int((group["requests"] + group["failed"]).min()), every.percentiles) if slo else ()
    question = TaskQuestion(title(group, bool(slo)), quantity, limits)
    candidates = [(_candidate(point, question), int(str(index))) for index, point in group.iterrows()]
    candidates = [pair for pair in candidates if not math.isnan(pair[0].figure.value)]
    if not candidates:
        return None
    sign = 1 if quantity.better == "higher" else -1
    candidates.sort(key=lambda pair: -sign * pair[0].figure.value if pair[0].meets else -pair[0].headroom)
    candidates.sort(key=lambda pair: not pair[0].meets)
    by_name: dict[str, list[tuple[Candidate, int]]] = {}
    for candidate, point in candidates:
        by_name.setdefault(candidate.name, []).append((candidate, point))
    meeting = [[pair for pair in pairs if pair[0].meets] for pairs in by_name.values() if pairs[0][0].meets]
    points = [pairs[0][1] for pairs in meeting]
    model = _model(every, points, quantity) if points else None
    failing = [pairs[0][0] for pairs in by_name.values() if not pairs[0][0].meets]
    choices = sum(best_choices(_model(every, [point for _, point in pairs], quantity), quantity) for pairs in meeting)
    placed = _standings([pairs[0][0] for pairs in meeting], model, quantity, choices) if model else []
    return Contest(question, placed, failing, points, choices, model, shorter)


def _equally_long(
    every: Measured, group: pd.DataFrame, quantity: LabelledColumn
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The points whose answers are about as long as the longest, and the names of the others.

    Of a quantity that longer answers do not change, all points. `sweep compare` refuses the same pairs.
    """
    if quantity.quantity not in BY_OUTPUT or any(column not in every.rows for column in ANSWERED):
        return group, ()
    short = np.array(have_shorter_answers([every.rows_of(int(str(point)), ANSWERED) for point in group.index]))
    return group[~short], tuple(group["name"][short].unique())


def best_choices(model: BlockModel, quantity: LabelledColumn) -> int:
    """The points of one configuration, the best first, among which chance has chosen: those not told apart from it."""
    return 1 + int(indistinguishable(model, 0, quantity.better or "higher").sum()) if len(model.n) > 1 else 1


def _candidate(point: "pd.Series[Any]", question: TaskQuestion) -> Candidate:
    figure = estimate(point, question.quantity.column)
    any_load = bool(question.bounds) and bool(point["by_load"])
    candidate = Candidate(str(point["name"]), str(point["at"]) if any_load else "", str(point["run"]), figure)
    if not question.bounds:
        return candidate
    latencies = [(bound, estimate(point, bound.quantity.column)) for bound in question.bounds]
    bound, latency = min(latencies, key=lambda pair: pair[0].headroom(pair[1].value))
    return replace(candidate, headroom=bound.headroom(latency.value), tightest=bound, latency=latency)


def _model(every: Measured, points: Sequence[int], quantity: LabelledColumn) -> BlockModel:
    rows = np.concatenate([every.rows_at[point] for point in points])
    trials = every.trials.select(rows)
    local = {point: index for index, point in enumerate(points)}
    trials = trials._replace(point=np.array([local[point] for point in trials.point], np.int64))
    values = every.rows[quantity.column].iloc[rows].to_numpy(np.float64, na_value=np.nan)
    return fit(values, trials, len(points))


def _standings(
    candidates: Sequence[Candidate], model: BlockModel, quantity: LabelledColumn, choices: int
) -> list[Candidate]:
    """The candidates, of which the first is best, with their standing and the best's ratio to them.

    `choices` are the loads of all of them among which chance has chosen.
    """
    tied = indistinguishable(model, 0, quantity.better or "higher", choices)
    rest = list(range(1, len(candidates)))
    comparisons = comparisons_with_best(len(candidates), choices)
    difference, _, half = differences(model, [0] * len(rest), rest, comparisons) if rest else [np.zeros(0)] * 3
    ends = np.exp([difference, difference - half, difference + half])
    placed = [replace(candidates[0], standing=Standing.BEST, ratio=1.0)]
    for index in rest:
        ratio, low, high = map(float, ends[:, index - 1])
        standing = Standing.TIED if tied[index] else Standing.BEHIND
        placed.append(replace(candidates[index], standing=standing, ratio=ratio, low=low, high=high))
    return placed


class Spread(NamedTuple):
    """The variance of a logarithm between launches, after pairing, and its degrees of freedom."""

    squares: float
    freedom: int


def _spreads(contests: Sequence[Contest]) -> dict[str, Spread]:
    """By quantity, over all questions."""
    spreads: dict[str, Spread] = {}
    for contest in contests:
        if contest.model is not None and contest.model.freedom > 0:
            column = contest.question.quantity.column
            squares, freedom = spreads.get(column, Spread(0.0, 0))
            added = contest.model.variance * contest.model.freedom
            spreads[column] = Spread(squares + added, freedom + contest.model.freedom)
    return spreads


def _answer(every: Measured, contest: Contest, spreads: Mapping[str, Spread]) -> TaskAnswer:
    answer = TaskAnswer(contest.question, (*contest.meeting, *contest.failing), shorter=contest.shorter)
    if not answer.tied or contest.model is None:
        return answer
    place = next(index for index, each in enumerate(contest.meeting) if each.standing is Standing.TIED)
    pair = [every.rows_of(contest.points[index], DURATIONS) for index in (0, place)]
    spread = spreads.get(contest.question.quantity.column, Spread(0.0, 0))
    advised = remedy(contest.model, place, spread, minutes_a_launch(*pair), contest.choices)
    return replace(answer, remedy=advised)


def remedy(model: BlockModel, place: int, spread: Spread, minutes: float, choices: int = 0) -> Remedy:
    """The launches that tell the first point from the one at `place` nine times in ten, if they do differ so much.

    A difference within the margin counts as the margin: nobody needs to know who is ahead by less.
    """
    difference = max(abs(math.expm1(model.effects[0] - model.effects[place])), MARGIN)
    units, rivals = int(min(model.n[0], model.n[place])), len(model.n) - 1
    squares = model.variance * model.freedom if model.freedom > 0 else 0.0
    weight = SPREAD_WEIGHT if spread.freedom > 0 else 0
    freedom = max(model.freedom, 0) + weight
    if not freedom:
        return Remedy(difference, 0, max(FEWEST_LAUNCHES, units), math.nan)
    variance = (squares + (weight * spread.squares / spread.freedom if weight else 0.0)) / freedom
    total = units + 1
    level = CONFIDENCE ** (1 / comparisons_with_best(len(model.n), choices))
    while _smallest_difference(variance, total, rivals, level) > difference:
        total += max(1, total // 50)
    return Remedy(difference, total - units, total, (total - units) * minutes if minutes else math.nan)


def _smallest_difference(variance: float, launches: int, rivals: int, level: float) -> float:
    """The smallest difference from the best that so many launches of each configuration tell, at that level."""
    paired = Ratio(0.0, math.sqrt(2 * variance / launches), (launches - 1) * rivals, launches, True)
    return smallest_change(paired, launches, level)
