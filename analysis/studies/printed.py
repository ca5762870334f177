"""Presents the studies: the catalogue of their findings, and judgements of the findings on a run."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from analysis.point_names import listed
from analysis.results import RunResults
from analysis.studies.answer import lacking
from analysis.studies.findings import Beside, Judged, beside, judge_run
from analysis.studies.ruling import Ruling
from analysis.studies.smaller_form import FIGURE, REFERENCES, SmallerPoint, ratio_reference, smaller_points
from analysis.studies.tables import PublishedFinding, Study, all_studies, study_of
from analysis.table import KEY, Column, Line, Output, Table, view

SMALLER_FORM = "No point of this run matches a published row, as in the smaller form without a GPU. Its own ratios:"
JUDGED: tuple[Column[Judged], ...] = (
    Column("finding", "its name", lambda row: row.finding.name),
    Column(
        "claim", "what the study says", lambda row: row.finding.claim, heading="published finding", kind="text wide"
    ),
    Column("judgement", "what this run says", lambda row: row.judgement, kind="text"),
    Column("figures", "why", lambda row: row.figures, heading="values", kind="text wide"),
)
BESIDE: tuple[Column[Beside], ...] = (
    view("point", lambda figure: figure.point, **KEY),
    view("quantity", lambda figure: figure.column, **KEY),
    view("published", lambda figure: _digits(figure.published)),
    view("× baseline", lambda figure: _digits(figure.published_ratio)),
    view("here", lambda figure: _digits(figure.measured)),
    view("× baseline", lambda figure: _digits(figure.measured_ratio)),
)


class CatalogueRow(NamedTuple):
    study: Study
    finding: PublishedFinding


CATALOGUE: tuple[Column[CatalogueRow], ...] = (
    Column("study", "", lambda row: row.study.name),
    Column("finding", "", lambda row: row.finding.name, **KEY),
    Column("claim", "", lambda row: row.finding.claim, kind="text"),
    Column("its_own_table", "", lambda row: own_table(*row), heading="its own table", kind="text"),
)


def catalogue() -> Output:
    """List every study with its findings, and mark the findings that the study's table contradicts."""
    parts: list[Line | Table[CatalogueRow]] = []
    rows: list[CatalogueRow] = []
    for study in all_studies():
        parts += [Line(study.title, "bold"), Line(study.asked), Line(f"experiments: {', '.join(study.experiments)}")]
        of_study = [CatalogueRow(study, finding) for finding in study.findings]
        parts.append(Table(CATALOGUE, of_study))
        rows += of_study
    return Output(parts, Table(CATALOGUE, rows))


def own_table(study: Study, finding: PublishedFinding) -> str:
    """Return whether a study's table agrees with or contradicts its finding, with the finding's note."""
    table = study.tables.get(finding.experiments[0])
    answer = finding.check.answer(table.exact) if table else lacking("a table")
    if answer.ruling is Ruling.FAILS:
        return f"contradicts: {finding.note or answer.figures}"
    says = "agrees" if answer.ruling is Ruling.HOLDS else "does not say"
    return f"{says}: {finding.note}" if finding.note else says


def run_findings(results: RunResults) -> Output:
    """Return the judgements on a run, and the study's table next to the run's points."""
    study, judged = study_of(results.run.name), Table(JUDGED, judge_run(results))
    if study is None:
        named = ", ".join(experiment for published in all_studies() for experiment in published.experiments)
        return Output([Line(f"{results.run.name}: follows no published study; these experiments do: {named}")], judged)
    conditions = "; ".join(f"{key}: {condition}" for key, condition in study.conditions.items())
    parts = [Line(study.title, "bold"), Line(f"there: {conditions}"), Line(run_conditions(results))]
    differences = [Line(f"not as published: {text}") for text in study_differences(results)]
    return Output([*parts, *run_parts(results), *differences], judged)


def study_differences(results: RunResults) -> list[str]:
    """Return the run's differences from its published study, each once: `vllm, tgi: …`, or `all engines: …`."""
    differences, engines = results.run.experiment.get("study_differences") or {}, dict[str, list[str]]()
    for backend, reasons in differences.items():
        for reason in reasons:
            engines.setdefault(reason, []).append(backend)
    backends = {*differences, *results.run.trials["backend"]}  # an engine of the plan may have no rows yet
    total = max(2, len(backends))  # a single engine is named
    return [f"{'all engines' if len(each) == total else listed(each)}: {reason}" for reason, each in engines.items()]


def run_parts(results: RunResults) -> list[Line | Table[Any]]:
    """Return the judgements on a run and the tables of its points."""
    study, rows, parts = study_of(results.run.name), beside(results), list[Line | Table[Any]]()
    if study is not None and results.run.name in study.without_figures:
        parts.append(Line(repeated(study, results.run.name)))
    elif judgements := judge_run(results):
        parts.append(Table(JUDGED, judgements))
    if rows:
        parts.append(Table(BESIDE, rows))
        if smaller := smaller_form(results, rows):
            parts += [Line(SMALLER_FORM), Table(smaller_columns(results), smaller)]
    return parts


def repeated(study: Study, experiment: str) -> str:
    """Describe which part of a study an experiment repeats if the study published no values for it."""
    return f"{experiment} repeats {study.without_figures[experiment]}. The study gives no value or finding to compare."


def run_conditions(results: RunResults) -> str:
    trials = results.run.trials
    names = {"model": "model", "accelerator": "hardware"}
    conditions = (
        f"{label}: {', '.join(sorted(map(str, trials[column].dropna().unique())))}" for column, label in names.items()
    )
    return f"here: {'; '.join(condition for condition in conditions if not condition.endswith(': '))}"


def _digits(figure: float | None) -> str:
    return "–" if figure is None else f"{figure:.4g}"


def smaller_form(results: RunResults, rows: Iterable[Beside]) -> list[SmallerPoint]:
    """Return the run's points if none matches a row of the study, because batch sizes, steps or tasks differ."""
    return list(smaller_points(results)) if all(row.measured is None for row in rows) else []


def smaller_columns(results: RunResults) -> Sequence[Column[SmallerPoint]]:
    """Return the columns of the smaller form: throughput, and the ratio with its interval."""
    return (
        view("measured here", lambda row: row.point, **KEY),
        view(FIGURE, lambda row: f"{row.throughput:.4g}{', as offered' if row.as_offered else ''}"),
        view(REFERENCES[ratio_reference(results) or "vs_baseline"], _smaller_ratio),
    )


def _smaller_ratio(point: SmallerPoint) -> str:
    interval = "" if point.low is None or point.high is None else f" ({point.low:.2f} to {point.high:.2f})"
    return "–" if point.ratio is None else f"{point.ratio:.2f}{interval}"
