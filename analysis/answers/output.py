"""Presents answers as text and files: sentences, and a table of all configurations."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from analysis.answers.sentences import advantage, figure, lead, measured_text, sentence
from analysis.answers.task_answer import RankedConfiguration, TaskAnswer
from analysis.table import KEY, NONE, Column, Line, Output, Table, view

NEW = "new_launch"
WITHOUT_REQUESTS = "true if the intervals come from the launches' values, because there are too few requests"
MEAN_OR_CLAIM = "mean over the replicates; of a capacity search, the load that it claims"
BEST_OVER_IT = "the best value / this configuration's value, as a plain ratio; for a cost 0.8 means 20% less"


class AnswerRow(NamedTuple):
    """A configuration as a row of the table, with its task's answer; `rank` 1 is the best."""

    answer: TaskAnswer
    rank: int | None  # None if a severe warning bars the configuration
    configuration: RankedConfiguration

    @property
    def standing(self) -> str:
        """`best`, `tie with the best`, `behind`, `misses the SLO`, `too few requests` or `not ranked`."""
        if self.rank is None:
            return "not ranked"
        if not self.configuration.judged:
            return "too few requests"
        return str(self.configuration.standing) if self.configuration.meets else "misses the SLO"

    @property
    def remedy(self) -> tuple[float | None, int | None]:
        """The minutes and launches that would decide a tie; only for the best configuration."""
        remedy = self.answer.remedy if self.rank == 1 else None
        return (remedy.minutes, remedy.launches or None) if remedy else (None, None)

    @property
    def ends(self) -> tuple[float, ...]:
        """The ends of the intervals: for these launches, then for a new launch."""
        figure = self.configuration.figure
        return figure.low, figure.high, figure.new_low, figure.new_high


def _headroom_cell(row: AnswerRow) -> str:
    return f"{row.configuration.headroom:.0%}" if math.isfinite(row.configuration.headroom) else NONE


def _best_over_it(row: AnswerRow) -> str:
    is_rival = row.configuration is not row.answer.best and not math.isnan(row.configuration.ratio)
    return advantage(row.answer, row.configuration) if is_rival else NONE


ANSWER_COLUMNS: tuple[Column[AnswerRow], ...] = (
    Column("task", "the task, and the load if the answer has one", lambda row: row.answer.criterion.title, **KEY),
    Column("run", "name of the configuration's run", lambda row: row.configuration.run),
    Column("rank", "rank among the configurations of its task; 1 is the best", lambda row: row.rank),
    Column("configuration", "the engine, with the settings that vary", lambda row: row.configuration.name, **KEY),
    Column("load", "the load chosen within an SLO", lambda row: row.configuration.load or None, kind="text"),
    Column("column", "the deciding column of trials.parquet", lambda row: row.answer.criterion.quantity.column),
    Column("value", MEAN_OR_CLAIM, lambda row: row.configuration.figure.value, of_value="of `column`"),
    view("value", lambda row: figure(row.answer, row.configuration)),
    Column("ci_low, ci_high", "95% interval for these launches", lambda row: row.ends[:2], of_value="of `column`"),
    Column(f"{NEW}_low, {NEW}_high", "95% interval for a new launch", lambda row: row.ends[2:], of_value="of `column`"),
    Column(
        "headroom",
        "unused share of the SLO's tightest bound; negative if exceeded",
        lambda row: row.configuration.headroom,
        _headroom_cell,
        "share",
    ),
    Column("best_over_it", BEST_OVER_IT, lambda row: row.configuration.ratio, _best_over_it, heading="best / this"),
    Column(
        "best_over_it_ci_low, best_over_it_ci_high",
        "95% interval of that ratio, for all rivals at once",
        lambda row: (row.configuration.low, row.configuration.high),
    ),
    Column("more_minutes", "time for `more_launches`; best only", lambda row: row.remedy[0], of_value="min"),
    Column("bound", "the SLO's tightest bound", lambda row: getattr(row.configuration.tightest, "text", None)),
    Column("n", "replicates", lambda row: row.configuration.figure.n),
    Column("by_launches", WITHOUT_REQUESTS, lambda row: row.configuration.figure.by_launches),
    Column(
        "measured_from, measured_to",
        "start of its first and last trial, UTC",
        lambda row: row.configuration.measured or (None, None),
    ),
    Column("verdict", "best, behind, not ranked, …", lambda row: row.standing, kind="text"),
    Column("dropped", "why the race dropped its later trials", lambda row: row.configuration.dropped, kind="text"),
    Column("warnings", "codes, the most serious first", lambda row: ";".join(row.configuration.codes) or None),
    Column("more_launches", "further launches to decide a tie 9 times in 10; best only", lambda row: row.remedy[1]),
    Column("sentence", "the answer; best only", lambda row: sentence(row.answer) if row.rank == 1 else None),
)
"""The columns of `sweep summary`, and of the configurations in its JSON."""


def ranking_table(answers: Sequence[TaskAnswer]) -> Table[AnswerRow]:
    """Return a table of all configurations, grouped by task."""
    ranks = [[*enumerate(task.configurations, 1), *((None, barred) for barred in task.barred)] for task in answers]
    rows = [AnswerRow(task, *pair) for task, pairs in zip(answers, ranks, strict=True) for pair in pairs]
    return Table(ANSWER_COLUMNS, rows)


def lines(answers: Sequence[TaskAnswer]) -> list[str]:
    """Return the lead, a sentence per question (unless it repeats the lead), and the trials' time range."""
    every = [lead(answers), *map(sentence, answers), measured_text(answers)]
    return list(dict.fromkeys(filter(None, every))) or ["no configuration has a result"]


def answers_output(answers: Sequence[TaskAnswer]) -> Output:
    """Return the output of `sweep summary`: the sentences, then the table."""
    first, *sentences = lines(answers)
    table = ranking_table(answers)
    questions = [
        {"task": each.criterion.title, "sentence": sentence(each), "configurations": ranking_table([each]).records()}
        for each in answers
    ]
    parts: list[Line | Table[AnswerRow]] = [Line(first, "bold green"), *map(Line, sentences), table]
    return Output(parts, table, {"lead": lead(answers), "answers": questions})
