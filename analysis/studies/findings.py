"""Judges a study's findings on a run, and puts the study's table next to the run's table."""

from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

import pandas as pd

from analysis.results import RunResults
from analysis.statistics.estimates import merits
from analysis.studies.answer import CheckAnswer, choice_text, lacking
from analysis.studies.ruling import Ruling
from analysis.studies.run_points import HARDWARE, run_points
from analysis.studies.tables import PublishedFinding, PublishedTable, Study, study_of
from analysis.studies.uncertain import NAMING, matching_points, points_with, ratio, uncertain
from sweep.numbers.warnings import AS_OFFERED

Judgement = Literal["reproduced", "not reproduced", "not decided", "not testable here", "contradicted by its own table"]
JUDGEMENTS: dict[Ruling, Judgement] = {
    Ruling.HOLDS: "reproduced",
    Ruling.FAILS: "not reproduced",
    Ruling.OPEN: "not decided",
    Ruling.UNKNOWN: "not testable here",
}


class Judged(NamedTuple):
    """A finding with a run's judgement on it."""

    finding: PublishedFinding
    judgement: Judgement
    figures: str


def judge_run(results: RunResults) -> list[Judged]:
    """Judge the findings of the study that a run's experiment follows; an empty list if it follows no study.

    Values determined by an open loop do not depend on the engine, so they are excluded, as in the summary's standings.
    """
    study = study_of(results.run.name)
    if study is None:
        return []
    points = merits(run_points(results))
    return [
        judge_finding(study, finding, results.run.name, points)
        for finding in study.findings
        if results.run.name in finding.experiments
    ]


def judge_finding(study: Study, finding: PublishedFinding, experiment: str, points: pd.DataFrame) -> Judged:
    """Judge one finding, first by the study's table, then by these points."""
    measured = points_answer(finding, points)
    published = study.tables.get(experiment)
    if published is not None and finding.check.answer(published.exact).ruling is Ruling.FAILS:
        this_run = [f"this run: {measured.figures}"] if measured.measured else []
        return Judged(finding, "contradicted by its own table", _joined([finding.note, *this_run]))
    return Judged(finding, JUDGEMENTS[measured.ruling], _joined([measured.figures, finding.note]))


def points_answer(finding: PublishedFinding, points: pd.DataFrame) -> CheckAnswer:
    """Return the points' answer; unknown for hardware that the finding does not cover, or if its premise fails."""
    if finding.hardware:
        profiles = points.get(HARDWARE, pd.Series(dtype=object))
        if not profiles.isin(finding.hardware).any():
            present = ", ".join(sorted(profiles.dropna().unique())) or "unknown hardware"
            return lacking(f"hardware {' or '.join(finding.hardware)}, but the run has {present}")
        points = points[profiles.isin(finding.hardware) | profiles.isna()]  # points that did not run have no profile
    if finding.premise and (premise := finding.premise.answer(points)).ruling is not Ruling.HOLDS:
        if not premise.measured:
            return premise
        where = choice_text(finding.premise.where)
        return lacking(f"its premise, {finding.premise.column} of {where}: {premise.figures}")
    answer = finding.check.answer(points)
    as_offered = "as_offered" in points and points["as_offered"].eq(True).any()
    if as_offered and not answer.measured and finding.check.column in AS_OFFERED:
        return answer._replace(figures=f"{answer.figures} that is not as offered")
    return answer


def _joined(parts: Iterable[str | None]) -> str:
    return "; ".join(part.rstrip(".") for part in parts if part)


class Beside(NamedTuple):
    """A published value and the run's value, each also as a ratio to its baseline. A missing value is None."""

    point: str
    column: str
    published: float
    published_ratio: float | None
    measured: float | None
    measured_ratio: float | None


def beside(results: RunResults) -> list[Beside]:
    """Return the study's values, each next to the run's value."""
    study = study_of(results.run.name)
    table = study.tables.get(results.run.name) if study else None
    return list(published_rows(table, run_points(results))) if table else []


def published_rows(table: PublishedTable, points: pd.DataFrame) -> Iterator[Beside]:
    """Yield the values of a published table with the values of these points."""
    published = table.frame
    for row in table.rows:
        where = {key: value for key, value in row.items() if key in KEY_COLUMNS}
        baseline = {**{key: row[key] for key in table.same if key in row}, **table.baseline}
        name = ", ".join(str(value) for value in where.values())
        for column, value in row.items():
            if column not in (*KEY_COLUMNS, "outcomes"):
                reference = _point(published, baseline, column)
                measured, ours = (_point(points, place, column) for place in (where, baseline))
                of_reference = None if reference is None else value / float(reference[column])
                figure, of_ours = None if measured is None else float(measured[column]), None
                if measured is not None and ours is not None:
                    of_ours = ratio(uncertain(measured, column), uncertain(ours, column)).value
                yield Beside(name, column, value, of_reference, figure, of_ours)


KEY_COLUMNS = (*NAMING, "workload.input_tokens")
"""The columns of published tables that describe the task; all others are measured values."""


def _point(points: pd.DataFrame, where: dict[str, Any], column: str) -> "pd.Series[Any] | None":
    """Return the point with these settings and a value in `column`; None if there is not exactly one."""
    figures = points_with(matching_points(points, where), column)
    return figures.iloc[0] if len(figures) == 1 else None
