"""Decides which points share a task, how any two of them compare by any quantity, and which point is best.

Every ratio of two points is computed here, for the summary, the answers, `sweep compare`, `sweep explain` and the
report. All points at one task and load are compared in one contest.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.headline import ASKED
from analysis.load import IMPORTED, Run
from analysis.quantities import LabelledColumn
from analysis.statistics.comparison import Contest, Positions, Trials, contest, fit, positions, trials_of
from analysis.statistics.intervals import FloatArray
from analysis.statistics.pooled import THROUGHPUTS
from analysis.statistics.survivors import without_lost
from sweep.numbers.warnings import AS_OFFERED, TRIAL_CHECKS, Check, ResultWarning, Severity, trial_warnings

GPUS = "backend.gpus"  # GPUs of one engine; configurations with different numbers are not rivals
UNEQUAL = 1.1  # ratio of most to fewest tokens per answer above which durations are not compared
BY_OUTPUT = ("duration", "request_throughput", "goodput", "e2el")  # quantities that depend on the length of answers
SEVERE_CHECKS = [check for check in TRIAL_CHECKS if check.kind.severity is Severity.SEVERE]

Severe = dict[int, dict[str, tuple[str, ...]]]  # by point: warning code -> the affected columns (empty: all)


class Standing(StrEnum):
    """A point's standing among the points at its task and load."""

    BEST = "best"
    TIED = "tie with the best"
    BEHIND = "behind"


def question_columns(points: pd.DataFrame) -> list[str]:
    """Return the columns that identify a question, with the number of GPUs. Points with equal values are compared."""
    return [str(key) for key in points if str(key).split(".")[0] in ASKED or key == GPUS]


def question_numbers(points: pd.DataFrame) -> Positions:
    return np.asarray(points.groupby(question_columns(points), dropna=False, sort=False).ngroup(), np.int64)


@dataclass(frozen=True)
class Contests:
    """The trials of one or several runs, by points and questions. Compares any two points by any quantity."""

    question: Positions  # of each point
    trials: Trials
    figures: pd.DataFrame  # values of the trials; NaN if missing, or if lost to failed requests at the point
    as_offered: NDArray[np.bool_]  # of each point: whether an open loop determined its throughput
    answer_tokens: FloatArray  # mean output tokens per answer at each point; NaN if unknown
    severe: Severe
    _contests: dict[tuple[str, tuple[int, ...]], Contest] = field(default_factory=dict, repr=False)
    _ranked: dict[str, NDArray[np.bool_]] = field(default_factory=dict, repr=False)
    _rows: list[list[Positions]] = field(default_factory=list, repr=False)

    def barred(self, columns: Collection[str], point: int) -> list[str]:
        """Return the severe warnings that keep a point from being best by these columns."""
        severe = self.severe.get(point, {}).items()
        return [code for code, concerned in severe if not concerned or not {*concerned}.isdisjoint(columns)]

    def ranked(self, quantity: LabelledColumn, points: Positions, chosen_load: bool = False) -> NDArray[np.bool_]:
        """Return which points can be best: not barred, not held to the offered load, not faster due to shorter answers.

        With `chosen_load` (the highest rate within an SLO), points held to the offered load can be best, too.
        """
        ranked = np.array([not self.barred([quantity.column], int(point)) for point in points], np.bool_)
        ranked &= ~(self.as_offered[points] & (quantity.column in AS_OFFERED and not chosen_load))
        if quantity.quantity in BY_OUTPUT and len(points):
            tokens = np.nan_to_num(self.answer_tokens[points])
            ranked &= ~((tokens > 0) & (tokens * UNEQUAL < tokens.max(initial=0, where=ranked)))
        return np.asarray(ranked, np.bool_)

    def of_points(
        self, quantity: LabelledColumn, points: Sequence[int] | Positions, choices: int = 0, best: int | None = None
    ) -> Contest:
        """Return the contest of only these points, in order. `choices` and `best`: see `comparison.contest`."""
        if not self._rows:
            self._rows.append(positions(self.trials.point, len(self.question)))
        rows = np.concatenate([self._rows[0][point] for point in points]) if len(points) else np.zeros(0, np.int64)
        local = {int(point): index for index, point in enumerate(points)}
        trials = self.trials.select(rows)
        trials = trials._replace(point=np.array([local[int(point)] for point in trials.point], np.int64))
        model = fit(self.figures[quantity.column].to_numpy(np.float64)[rows], trials, len(points))
        return contest(model, quantity.better, choices, best)

    def shared(self, quantity: LabelledColumn, points: Sequence[int] | Positions) -> tuple[Contest, Positions]:
        """Return the contest that contains these points, and their positions in it.

        It covers all points at one task and load that can be best, or else all points. Points with different questions
        get a new contest.
        """
        points = np.asarray(points, np.int64)
        members, better = np.unique(points), quantity.better
        if len(np.unique(self.question[points])) == 1:
            members = np.flatnonzero(self.question == self.question[points[0]])
            ranked = self.ranked(quantity, members)
            better = better if ranked[np.searchsorted(members, points)].all() else None
            members = members[ranked] if better else members
        else:
            better = None
        key = (quantity.column, tuple(map(int, members)))
        if key not in self._contests:
            found = self.of_points(quantity, members)
            self._contests[key] = found if better else Contest(found.model)
        return self._contests[key], np.asarray(np.searchsorted(members, points), np.int64)

    def ratios(self, quantity: LabelledColumn, pairs: Sequence[tuple[int, int]]) -> FloatArray:
        """Return the ratios of pairs of points and the ends of their intervals. Shape (3, pairs).

        The intervals of pairs across questions hold jointly for all such pairs with a common point.
        """
        ratios = np.full((3, len(pairs)), np.nan)
        for chosen in self._together(quantity, pairs):
            above, below = (np.array([pairs[index][side] for index in chosen]) for side in (0, 1))
            contest_of_all, places = self.shared(quantity, np.concatenate([above, below]))
            ratios[:, chosen] = contest_of_all.ratios(places[: len(chosen)], places[len(chosen) :])
        return ratios

    def _together(self, quantity: LabelledColumn, pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
        """Group the indices of pairs by contest: of a question's points, of its ranked points, or across questions."""
        groups: dict[tuple[int, bool], list[int]] = {}
        across: list[int] = []
        ranked = self._ranked_of_all(quantity)
        for index, (above, below) in enumerate(pairs):
            if self.question[above] == self.question[below]:
                key = int(self.question[above]), bool(ranked[above] and ranked[below])
                groups.setdefault(key, []).append(index)
            else:
                across.append(index)
        return [*groups.values(), *_families(pairs, across)]

    def _ranked_of_all(self, quantity: LabelledColumn) -> NDArray[np.bool_]:
        if quantity.column not in self._ranked:
            ranked = self._ranked[quantity.column] = np.ones(len(self.question), np.bool_)
            for members in by_question(self.question):
                ranked[members] = self.ranked(quantity, members)
        return self._ranked[quantity.column]

    def standings(self, quantity: LabelledColumn, shown: FloatArray) -> list[str | None]:
        """Return each point's standing by its displayed value; None if it is alone at its task and load."""
        column: list[str | None] = [None] * len(self.question)
        for members in by_question(self.question):
            members = members[self.ranked(quantity, members) & np.isfinite(shown[members])]
            if len(members) < 2:
                continue
            whole, places = self.shared(quantity, members)
            figures = shown[members] * (-1 if quantity.better == "lower" else 1)
            best = int(np.argmax(figures))
            if whole.won and whole.best in places:
                best = int(np.flatnonzero(places == whole.best)[0])
            tied = whole.tied(int(places[best]))[places] | ~(whole.model.n[places] > 0)
            for index, point in enumerate(members):
                column[point] = Standing.BEST if index == best else Standing.TIED if tied[index] else Standing.BEHIND
        return column


def warnings_of_trials(trials: pd.DataFrame, checks: Sequence[Check] = TRIAL_CHECKS) -> Iterator[list[ResultWarning]]:
    """Yield the warnings about each trial."""
    names = dict.fromkeys(["trial_id", "outcome", *(column for check in checks for column in check.columns)])
    rows = trials[[name for name in names if name in trials]].astype(object)
    for row in rows.where(rows.notna(), None).to_dict("records"):
        yield trial_warnings({str(name): value for name, value in row.items()}, checks)


def contests_of(
    run: Run, question: Positions, point: Positions, figures: pd.DataFrame, unpooled: Sequence[str] = ()
) -> Contests:
    """Return the contests of a run's points, by their questions and the trials' values, without lost values.

    `point` is the point of each trial with a result. `unpooled` lists each point's columns without readable requests.
    """
    ok, count = run.ok, len(question)
    offered = ok["below_saturation"].eq(True).fillna(False).to_numpy(np.bool_)
    answered = (ok["num_requests"] - ok["num_failed"]).astype("float64")
    tokens = (ok["output_tokens"].astype("float64") / answered.where(answered > 0)).groupby(point).mean()
    severe: Severe = {}
    for index, warnings in zip(point, warnings_of_trials(ok, SEVERE_CHECKS), strict=True):
        for warning in warnings:
            severe.setdefault(int(index), {})[warning.code] = warning.kind.quantities
    imported = ok["trial_id"].str.startswith(IMPORTED).to_numpy(np.bool_)
    for index in np.unique(point[imported]):  # without protocol, machine and requests, it cannot be compared
        severe.setdefault(int(index), {})["imported"] = ()
    for index in np.unique(point[ok["attempt"].notna()]) if any(unpooled) else ():
        if percentiles := tuple(name for name in unpooled[index].split(", ") if name and name not in THROUGHPUTS):
            severe.setdefault(int(index), {})["unpooled-statistics"] = percentiles
    return Contests(
        question,
        trials_of(ok, point),
        figures.astype("float64"),
        np.bincount(point[offered], minlength=count) > 0,
        np.asarray(tokens.reindex(range(count)), np.float64),
        severe,
    )


def run_contests(run: Run, points: pd.DataFrame, point: Positions, columns: Sequence[str]) -> Contests:
    """Return the contests of a run's points by these columns. `point` is the point of each trial with a result."""
    figures = run.ok[[name for name in columns if name in run.ok]].astype("float64")
    return contests_of(run, question_numbers(points), point, without_lost(run, figures, point))


def joined(parts: Sequence[Contests], question: Positions) -> Contests:
    """Return the contests of several runs' points, one run after another, by each point's question."""
    begins = np.cumsum([0, *(len(part.question) for part in parts)])
    points = [part.trials.point + begin for part, begin in zip(parts, begins, strict=False)]
    return Contests(
        question,
        Trials(
            np.concatenate(points),
            np.concatenate([part.trials.replicate for part in parts]),
            np.concatenate([part.trials.launch for part in parts]),
        ),
        pd.concat([part.figures for part in parts], ignore_index=True),
        np.concatenate([part.as_offered for part in parts]),
        np.concatenate([part.answer_tokens for part in parts]),
        {
            int(at) + point: codes
            for part, at in zip(parts, begins, strict=False)
            for point, codes in part.severe.items()
        },
    )


def by_question(question: Positions) -> list[Positions]:
    """Return the points of each question, in ascending order."""
    order = np.argsort(question, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(question[order])) + 1) if len(order) else []


def _families(pairs: Sequence[tuple[int, int]], chosen: Sequence[int]) -> list[list[int]]:
    """Return the indices of the chosen pairs, in groups that share no point."""
    root: dict[int, int] = {}

    def find(point: int) -> int:
        while root.setdefault(point, point) != point:
            root[point] = root[root[point]]
            point = root[point]
        return point

    for index in chosen:
        root[find(pairs[index][0])] = find(pairs[index][1])
    families: dict[int, list[int]] = {}
    for index in chosen:
        families.setdefault(find(pairs[index][0]), []).append(index)
    return list(families.values())
