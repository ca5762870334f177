"""Which points share a task, how any two of them compare by any figure, and who of them is best.

Every ratio of two points is worked out here, for the summary, the answers, `sweep compare`, `sweep explain` and the
report: points of one task and load are compared in one contest of them all.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.headline import ASKED
from analysis.load import Run
from analysis.quantities import LabelledColumn
from analysis.statistics.comparison import Contest, Positions, Trials, contest, fit, positions, trials_of
from analysis.statistics.intervals import FloatArray
from analysis.statistics.pooled import THROUGHPUTS
from analysis.statistics.survivors import without_lost
from sweep.numbers.warnings import AS_OFFERED, TRIAL_CHECKS, Check, ResultWarning, Severity, trial_warnings

GPUS = "backend.gpus"  # of one engine: configurations on several and on one are no rivals
UNEQUAL = 1.1  # most over fewest tokens in an answer, beyond which durations are not compared
BY_OUTPUT = ("duration", "request_throughput", "goodput", "e2el")  # quantities that longer answers change
SEVERE_CHECKS = [check for check in TRIAL_CHECKS if check.kind.severity is Severity.SEVERE]

Severe = dict[int, dict[str, tuple[str, ...]]]  # by point: code -> the columns that it concerns; none: all


class Standing(StrEnum):
    """A point's standing among the points of its task and load."""

    BEST = "best"
    TIED = "tie with the best"
    BEHIND = "behind"


def question_columns(points: pd.DataFrame) -> list[str]:
    """The columns that say what was asked, and of how many GPUs: points that agree in them are compared."""
    return [str(key) for key in points if str(key).split(".")[0] in ASKED or key == GPUS]


def question_numbers(points: pd.DataFrame) -> Positions:
    """The number of each point's question."""
    return np.asarray(points.groupby(question_columns(points), dropna=False, sort=False).ngroup(), np.int64)


@dataclass(frozen=True)
class Contests:
    """The trials of one run or several, by points and questions: any two points compare by any figure, in one way."""

    question: Positions  # of each point
    trials: Trials
    figures: pd.DataFrame  # of the trials; NaN where missing, or the point has lost it to failures
    as_offered: NDArray[np.bool_]  # of each point: its throughput is what an open loop asked for
    answer_tokens: FloatArray  # of each point, in an answer; NaN where unknown
    severe: Severe
    _contests: dict[tuple[str, tuple[int, ...]], Contest] = field(default_factory=dict, repr=False)
    _ranked: dict[str, NDArray[np.bool_]] = field(default_factory=dict, repr=False)
    _rows: list[list[Positions]] = field(default_factory=list, repr=False)

    def barred(self, columns: Collection[str], point: int) -> list[str]:
        """The severe warnings about a point for which it cannot be best by these columns."""
        severe = self.severe.get(point, {}).items()
        return [code for code, concerned in severe if not concerned or not {*concerned}.isdisjoint(columns)]

    def ranked(self, quantity: LabelledColumn, points: Positions, chosen_load: bool = False) -> NDArray[np.bool_]:
        """Which points of a question can be best: not barred, as offered, nor done sooner by shorter answers.

        With a `chosen_load`, the highest rate within an SLO, what was offered is the answer.
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
        """The contest of just these points, in their order; `choices` and `best` as `comparison.contest`."""
        if not self._rows:
            self._rows.append(positions(self.trials.point, len(self.question)))
        rows = np.concatenate([self._rows[0][point] for point in points]) if len(points) else np.zeros(0, np.int64)
        local = {int(point): index for index, point in enumerate(points)}
        trials = self.trials.select(rows)
        trials = trials._replace(point=np.array([local[int(point)] for point in trials.point], np.int64))
        model = fit(self.figures[quantity.column].to_numpy(np.float64)[rows], trials, len(points))
        return contest(model, quantity.better, choices, best)

    def shared(self, quantity: LabelledColumn, points: Sequence[int] | Positions) -> tuple[Contest, Positions]:
        """The contest that has these points' ratios, and their places in it.

        That of all points of one task and load that can be best, or of all of them; of these points
        alone if they were asked different things.
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
        """The ratios of pairs of points, and the ends of their intervals. Shape (3, pairs).

        Pairs across questions have intervals that hold for all of them that have a point in common.
        """
        ratios = np.full((3, len(pairs)), np.nan)
        for chosen in self._together(quantity, pairs):
            above, below = (np.array([pairs[index][side] for index in chosen]) for side in (0, 1))
            contest_of_all, places = self.shared(quantity, np.concatenate([above, below]))
            ratios[:, chosen] = contest_of_all.ratios(places[: len(chosen)], places[len(chosen) :])
        return ratios

    def _together(self, quantity: LabelledColumn, pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
        """The places of the pairs that one contest has: of a question, of its ranked points, or across questions."""
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
        """The standing of each point by its figure, as it is shown; None if it is alone in its task and load."""
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
    """The warnings about each of some trials."""
    names = dict.fromkeys(["trial_id", "outcome", *(column for check in checks for column in check.columns)])
    rows = trials[[name for name in names if name in trials]].astype(object)
    for row in rows.where(rows.notna(), None).to_dict("records"):
        yield trial_warnings({str(name): value for name, value in row.items()}, checks)


def contests_of(
    run: Run, question: Positions, point: Positions, figures: pd.DataFrame, unpooled: Sequence[str] = ()
) -> Contests:
    """The contests of a run's points by their questions, and by figures of the trials that no point has lost.

    `point` is of each trial with a result; `unpooled` the figures of each point whose requests could not be read.
    """
    ok, count = run.ok, len(question)
    offered = ok["below_saturation"].eq(True).fillna(False).to_numpy(np.bool_)
    answered = (ok["num_requests"] - ok["num_failed"]).astype("float64")
    tokens = (ok["output_tokens"].astype("float64") / answered.where(answered > 0)).groupby(point).mean()
    severe: Severe = {}
    for index, warnings in zip(point, warnings_of_trials(ok, SEVERE_CHECKS), strict=True):
        for warning in warnings:
            severe.setdefault(int(index), {})[warning.code] = warning.kind.quantities
    for index in np.unique(point[ok["attempt"].notna()]) if any(unpooled) else ():  # imported rows have no requests
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
    """The contests of a run's points by some columns; `point` is of each trial with a result."""
    figures = run.ok[[name for name in columns if name in run.ok]].astype("float64")
    return contests_of(run, question_numbers(points), point, without_lost(run, figures, point))


def joined(parts: Sequence[Contests], question: Positions) -> Contests:
    """The contests of several runs' points, one run after another, by the question of each."""
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
    """The points of each question, ascending."""
    order = np.argsort(question, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(question[order])) + 1) if len(order) else []


def _families(pairs: Sequence[tuple[int, int]], chosen: Sequence[int]) -> list[list[int]]:
    """The places of the chosen pairs in groups that have no point in common."""
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
