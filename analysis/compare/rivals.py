"""Compares the sides together with all points that their runs measured at the same task and load."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from analysis.compare.matching import Match
from analysis.compare.questions import conditions
from analysis.compare.sides import Side
from analysis.load import Run, in_plan
from analysis.quantities import LabelledColumn
from analysis.statistics.comparison import Contest, Positions, contest, fit, trials_of
from analysis.statistics.contests import Contests, joined, run_contests
from analysis.statistics.intervals import FloatArray
from analysis.statistics.pooled import point_figures
from analysis.statistics.survivors import without_lost
from analysis.summary import key_columns

PointNumbers = dict[tuple[str, str], int]  # by the run's place and the trial's id


class Rivals(NamedTuple):
    """The points of all compared runs. A ratio of two points has the same interval as in a run's report."""

    contests: Contests
    numbers: PointNumbers
    figures: dict[str, FloatArray]  # each compared column at all points, as `sweep summary` shows it

    def point(self, place: str, trials: pd.DataFrame) -> int:
        """Return the number of the point that has exactly these trials, or -1."""
        points = {self.numbers.get((place, trial), -1) for trial in trials["trial_id"]}
        point = points.pop() if len(points) == 1 else -1
        return point if (self.contests.trials.point == point).sum() == len(trials) else -1

    def figure(self, place: str, trials: pd.DataFrame, column: str, default: float) -> float:
        """Return the value that the summary shows for these trials; the default if they are only part of a point."""
        point = self.point(place, trials)
        return default if point < 0 else float(self.figures[column][point])

    def contest(self, match: Match, places: tuple[str, str], quantity: LabelledColumn) -> tuple[Contest, int, int]:
        """Return a match's contest and its sides' positions in it; a new contest if the sides' questions differ."""
        first, second = map(self.point, places, (match.first, match.second))
        if -1 in (first, second) or first == second:
            return alone(match, quantity), 0, 1
        if self.contests.question[first] != self.contests.question[second]:
            return alone(match, quantity), 0, 1
        shared, (at_first, at_second) = self.contests.shared(quantity, [first, second])
        return shared, int(at_first), int(at_second)


def rivals(sides: Sequence[Side], columns: Sequence[str]) -> Rivals:
    """Return the contests between the points of all sides' runs, by these columns."""
    runs = dict(_runs(sides))
    numbers: PointNumbers = {}
    frames: list[pd.DataFrame] = []
    points: list[Positions] = []
    for place, run in runs.items():
        keys = key_columns(run)
        point: Positions = np.asarray(run.ok.groupby(keys, dropna=False, sort=False).ngroup(), np.int64)
        begin = sum(map(len, frames))
        frames.append(run.ok[keys].iloc[np.unique(point, return_index=True)[1]].reset_index(drop=True))
        points.append(point)
        numbers |= {(place, trial): begin + int(index) for trial, index in zip(run.ok["trial_id"], point, strict=True)}
    parts = [
        run_contests(run, frame, point, columns)
        for run, frame, point in zip(runs.values(), frames, points, strict=True)
    ]
    shown = [_summarised_figures(run, point, columns) for run, point in zip(runs.values(), points, strict=True)]
    figures = {column: np.concatenate([each[column] for each in shown]) for column in columns}
    if len(parts) == 1:
        return Rivals(parts[0], numbers, figures)
    rows = pd.concat([run.ok for run in runs.values()], ignore_index=True)
    begins = np.cumsum([0, *map(len, frames)])
    point = np.concatenate([each + begin for each, begin in zip(points, begins, strict=False)])
    texts = conditions(rows, point, range(begins[-1]), [frozenset()] * int(begins[-1]))["conditions"]
    question = np.asarray(pd.factorize(np.array(texts, object))[0], np.int64)
    return Rivals(joined(parts, question), numbers, figures)


def _summarised_figures(run: Run, point: Positions, columns: Sequence[str]) -> dict[str, FloatArray]:
    """Return these columns of a run's points, NaN if missing."""
    names = [name for name in {*columns, "output_throughput"} if name in run.ok]  # costs are made from throughputs
    measured = without_lost(run, run.ok[names].astype("float64"), point)
    figures, missing = point_figures(run, measured, point)[0], np.full(int(point.max(initial=-1)) + 1, np.nan)
    return {column: figures[column].value if column in figures else missing for column in columns}


def _runs(sides: Sequence[Side]) -> Iterator[tuple[str, Run]]:
    """Return each run once: its current plan (as in its report) if that has all compared points, else all rows."""
    by_place: dict[str, list[Side]] = {}
    for side in sides:
        by_place.setdefault(str(side.run.place), []).append(side)
    for place, of_run in by_place.items():
        every = max((side.run for side in of_run), key=lambda run: len(run.trials))
        planned = in_plan(every)
        ids = set(planned.trials["trial_id"])
        yield place, planned if all(side.trials["trial_id"].isin(ids).all() for side in of_run) else every


def alone(match: Match, quantity: LabelledColumn) -> Contest:
    """Return the contest between only the two sides of a match."""
    trials = pd.concat([match.first, match.second], ignore_index=True)
    point = np.repeat([0, 1], [len(match.first), len(match.second)])
    figures = trials[quantity.column].to_numpy(np.float64, na_value=np.nan)
    return contest(fit(figures, trials_of(trials, point), 2), quantity.better)
