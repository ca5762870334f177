"""Answers as text and files: the sentences, and a table of all candidates."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from analysis.answers.question import Candidate, TaskAnswer
from analysis.answers.sentences import advantage, figure, lead, sentence
from analysis.table import KEY, NONE, Column, Line, Output, Table, view

NEW = "new_launch"
WITHOUT_REQUESTS = "true if the intervals are from the launches' own figures, since the requests give none"
BEST_OVER_IT = "the best's figure over its own, as a plain ratio: for a cost, 0.8 is 20 % less"


class AnswerRow(NamedTuple):
    """A candidate, and the answer that it stands in; `rank` 1 is the best."""

    answer: TaskAnswer
    rank: int | None  # None of one that a severe warning bars
    candidate: Candidate

    @property
    def standing(self) -> str:
        """`best`, `tie with the best`, `behind`, `misses the SLO`, `too few requests` or `not ranked`."""
        if self.rank is None:
            return "not ranked"
        if not self.candidate.judged:
            return "too few requests"
        return str(self.candidate.standing) if self.candidate.meets else "misses the SLO"

    @property
    def remedy(self) -> tuple[float | None, int | None]:
        """The minutes and the launches that would decide a tie, beside the best alone."""
        remedy = self.answer.remedy if self.rank == 1 else None
        return (remedy.minutes, remedy.launches or None) if remedy else (None, None)

    @property
    def ends(self) -> tuple[float, ...]:
        """The interval of its figure for these launches, then for a fresh one."""
        figure = self.candidate.figure
        return figure.low, figure.high, figure.new_low, figure.new_high


def _headroom_cell(row: AnswerRow) -> str:
    return f"{row.candidate.headroom:.0%}" if math.isfinite(row.candidate.headroom) else NONE


def _best_over_it(row: AnswerRow) -> str:
    is_rival = row.candidate is not row.answer.best and not math.isnan(row.candidate.ratio)
    return advantage(row.answer, row.candidate) if is_rival else NONE


ANSWER_COLUMNS: tuple[Column[AnswerRow], ...] = (
    Column("question", "the task, and the load if it is asked for", lambda row: row.answer.question.title, **KEY),
    Column("run", "name of the configuration's run", lambda row: row.candidate.run),
    Column("rank", "place among the configurations of its task; 1 is the best", lambda row: row.rank),
    Column("configuration", "the engine, with the settings that vary", lambda row: row.candidate.name, **KEY),
    Column("load", "the load that an SLO lets it choose", lambda row: row.candidate.load or None, kind="text"),
    Column("column", "the deciding column of trials.parquet", lambda row: row.answer.question.quantity.column),
    Column("value", "mean over the replicates", lambda row: row.candidate.figure.value, of_value="of `column`"),
    view("figure", lambda row: figure(row.answer, row.candidate)),
    Column("ci_low, ci_high", "95 % interval for these launches", lambda row: row.ends[:2], of_value="of `column`"),
    Column(
        f"{NEW}_low, {NEW}_high", "95 % interval for a fresh launch", lambda row: row.ends[2:], of_value="of `column`"
    ),
    Column(
        "headroom",
        "unused share of the SLO's tightest bound; below 0 beyond it",
        lambda row: row.candidate.headroom,
        _headroom_cell,
        "share",
    ),
    Column("best_over_it", BEST_OVER_IT, lambda row: row.candidate.ratio, _best_over_it, heading="best over it"),
    Column(
        "best_over_it_ci_low, best_over_it_ci_high",
        "95 % interval of that ratio, for all rivals at once",
        lambda row: (row.candidate.low, row.candidate.high),
    ),
    Column("more_minutes", "time of those launches; best only", lambda row: row.remedy[0], of_value="min"),
    Column("bound", "the SLO's tightest bound", lambda row: getattr(row.candidate.tightest, "text", None)),
    Column("n", "replicates", lambda row: row.candidate.figure.n),
    Column("by_launches", WITHOUT_REQUESTS, lambda row: row.candidate.figure.by_launches),
    Column("verdict", "best, behind, not ranked, …", lambda row: row.standing, kind="text"),
    Column("warnings", "codes, the most serious first", lambda row: ";".join(row.candidate.codes) or None),
    Column("more_launches", "launches of each to decide a tie 9 times in 10; best only", lambda row: row.remedy[1]),
    Column("sentence", "the answer; best only", lambda row: sentence(row.answer) if row.rank == 1 else None),
)
"""The columns of `sweep summary`, and of the candidates in its JSON."""


def candidates_table(answers: Sequence[TaskAnswer]) -> Table[AnswerRow]:
    """All candidates, question by question."""
    ranks = [[*enumerate(task.candidates, 1), *((None, barred) for barred in task.barred)] for task in answers]
    rows = [AnswerRow(task, *pair) for task, pairs in zip(answers, ranks, strict=True) for pair in pairs]
    return Table(ANSWER_COLUMNS, rows)


def lines(answers: Sequence[TaskAnswer]) -> list[str]:
    """The lead, then a sentence for each question, unless that is the lead."""
    every = [lead(answers), *map(sentence, answers)]
    return list(dict.fromkeys(filter(None, every))) or ["no configuration has a result"]


def answers_output(answers: Sequence[TaskAnswer]) -> Output:
    """Return what `sweep summary` prints: the sentences, then the table."""
    first, *sentences = lines(answers)
    table = candidates_table(answers)
    questions = [
        {"question": each.question.title, "sentence": sentence(each), "candidates": candidates_table([each]).records()}
        for each in answers
    ]
    parts: list[Line | Table[AnswerRow]] = [Line(first, "bold green"), *map(Line, sentences), table]
    return Output(parts, table, {"lead": lead(answers), "answers": questions})
