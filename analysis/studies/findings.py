"""The findings of a study judged on a run, and its table beside the run's."""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import pandas as pd

from analysis.results import RunResults
from analysis.statistics.pooled import launches
from analysis.studies.tables import PublishedFinding, PublishedTable, Study, study_of
from analysis.studies.uncertain import LAUNCHES, NAMING, matching_points

Judgement = Literal["reproduced", "not reproduced", "not testable here", "contradicted by its own table"]


class Judged(NamedTuple):
    """A finding with what a run says of it."""

    finding: PublishedFinding
    judgement: Judgement
    figures: str


def judge_run(results: RunResults) -> list[Judged]:
    """Return the judgements on the findings of the study that a run's experiment follows; none if it follows none."""
    study = study_of(results.run.name)
    if study is None:
        return []
    points = _points(results)
    return [
        judge_finding(study, finding, results.run.name, points)
        for finding in study.findings
        if results.run.name in finding.experiments
    ]


def judge_finding(study: Study, finding: PublishedFinding, experiment: str, points: pd.DataFrame) -> Judged:
    """Judge one finding: by the study's own table first, then by these points."""
    measured = finding.check.answer(points)
    published = study.tables.get(experiment)
    if published is not None and finding.check.answer(published.exact).holds is False:
        beside = f"; this run: {measured.figures}" if measured.measured else ""
        return Judged(finding, "contradicted by its own table", f"{(finding.note or '').rstrip('.')}{beside}")
    if measured.holds is None:
        return Judged(finding, "not testable here", measured.figures)
    return Judged(finding, "reproduced" if measured.holds else "not reproduced", measured.figures)


def _points(results: RunResults) -> pd.DataFrame:
    """The run's points with their launches; columns of objects that hold numbers as numbers."""
    points = results.points.copy()
    for column in points:
        numbers = pd.to_numeric(points[column], errors="coerce")
        if numbers.notna().any() and (numbers.notna() == points[column].notna()).all():
            points[column] = numbers
    launch = launches(results.run)
    by_point = launch.groupby(results.layout.trials["point"].reindex(launch.index)).agg(frozenset)
    of_points = by_point.reindex(range(len(points))).set_axis(points.index).rename(LAUNCHES)
    return pd.concat([points, of_points], axis="columns")


class Beside(NamedTuple):
    """A published figure and the run's, each also as a ratio to its own baseline; None where there is none."""

    point: str
    column: str
    published: float
    published_ratio: float | None
    measured: float | None
    measured_ratio: float | None


def beside(results: RunResults) -> list[Beside]:
    """Return the study's table beside the run's points."""
    study = study_of(results.run.name)
    table = study.tables.get(results.run.name) if study else None
    return list(published_rows(table, _points(results))) if table else []


def published_rows(table: PublishedTable, points: pd.DataFrame) -> Iterator[Beside]:
    """Return the rows of a published table beside these points; there may be none."""
    published = table.frame
    for row in table.rows:
        where = {key: value for key, value in row.items() if key in KEY_COLUMNS}
        baseline = {**{key: row[key] for key in table.same if key in row}, **table.baseline}
        name = ", ".join(str(value) for value in where.values())
        for column, value in row.items():
            if column not in (*KEY_COLUMNS, "outcomes"):
                reference = _figure(published, baseline, column)
                figures = [_figure(points, place, column) for place in (where, baseline)]
                yield Beside(name, column, value, _over(value, reference), figures[0], _over(figures[0], figures[1]))


KEY_COLUMNS = (*NAMING, "workload.input_tokens")
"""The columns of published tables that say what was asked; all others are figures."""


def _figure(points: pd.DataFrame, where: dict[str, Any], column: str) -> float | None:
    """The figure of the one point with these values; None if there is none, or if there are several."""
    figures = matching_points(points, where)[column].dropna() if column in points else pd.Series(dtype=float)
    return float(figures.iloc[0]) if len(figures) == 1 else None


def _over(figure: float | None, reference: float | None) -> float | None:
    return None if figure is None or reference is None else float(figure) / reference
