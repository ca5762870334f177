"""Finds the points of an unfinished run that are surely not the best, by the test that names winners."""

from collections.abc import Collection, Iterator
from typing import NamedTuple

import numpy as np

from analysis.load import Run
from analysis.quantities import LabelledColumn
from analysis.statistics.comparison import Contest, Positions, leads
from analysis.statistics.contests import by_question, run_contests
from analysis.summary import key_columns


class Retired(NamedTuple):
    """A point that needs no more trials: beaten by the best point of its task and load, or the only point left."""

    point: int
    best: int
    figures: tuple[float, float, float] | None  # its value / the best's, and the interval's ends; None: it won


def retired(contest: Contest, racing: Collection[int], looks: int) -> Iterator[Retired]:
    """Yield the points still `racing` (positions in the contest) that need no more trials.

    A point is beaten if its difference from the best exceeds the interval of the winners' test, with as many
    comparisons for each of the `looks`. So the contest's best point is dropped at most once in 20 races.
    """
    if contest.best is None:
        return
    count = int((contest.model.n > 0).sum())
    test = leads(contest.model, contest.sign, contest.best, looks * count)
    beaten = {int(rival): index for index, rival in enumerate(test.rivals) if test.certain[index] and rival in racing}
    for point, index in beaten.items():
        low, high = test.ratios[1:, index]
        yield Retired(point, contest.best, (float(test.ratios[0, index]), float(low), float(high)))
    if {*racing} - {*beaten} == {contest.best}:
        yield Retired(contest.best, contest.best, None)


def retired_trials(
    run: Run, quantity: LabelledColumn, racing: Collection[str], looks: int
) -> Iterator[tuple[str, str, Retired]]:
    """Yield each point that needs no more trials: one of its trials, a trial of the best point, and why.

    `racing` has the trials of the points that still race.
    """
    keys = key_columns(run)
    point: Positions = np.asarray(run.trials.groupby(keys, dropna=False, sort=False).ngroup(), np.int64)
    first = np.unique(point, return_index=True)[1]
    points, trial_ids = run.trials[keys].iloc[first], run.trials["trial_id"].iloc[first].tolist()
    contests = run_contests(run, points.reset_index(drop=True), point[run.ok.index], [quantity.column])
    if quantity.column not in contests.figures:
        return
    open_points = {int(index) for index, trial in zip(point, run.trials["trial_id"], strict=True) if trial in racing}
    for members in by_question(contests.question):
        ranked = [int(member) for member in members[contests.ranked(quantity, members)]]
        unranked = len(open_points.intersection(members) - {*ranked})  # may yet be best, so nobody has won
        still = [place for place, member in enumerate(ranked) if member in open_points] + [-1] * (unranked > 0)
        for each in retired(contests.of_points(quantity, ranked), still, looks):
            yield trial_ids[ranked[each.point]], trial_ids[ranked[each.best]], each
