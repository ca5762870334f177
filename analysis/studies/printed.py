"""The studies in words: the catalogue of their findings, and what a run says of them, for terminal and Markdown."""

from collections.abc import Iterable, Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from analysis.results import RunResults
from analysis.studies.answer import lacking
from analysis.studies.findings import Beside, Judged, beside, judge_run
from analysis.studies.ruling import Ruling
from analysis.studies.smaller_form import FIGURE, REFERENCES, SmallerPoint, ratio_reference, smaller_points
from analysis.studies.tables import PublishedFinding, Study, all_studies, study_of

SMALLER_FORM = "No point of this run stands beside a published row, as in the form without a GPU; its own ratios:"


def catalogue() -> RenderableType:
    """Every study with its findings, and those that its own table contradicts."""
    parts: list[RenderableType] = []
    for study in all_studies():
        parts.append(Text(f"{study.title}\n  {study.asked}\n  {', '.join(study.experiments)}", style="bold"))
        table = Table("finding", "claim", "its own table", box=None, pad_edge=False, header_style="bold")
        for finding in study.findings:
            table.add_row(finding.name, finding.claim, own_table(study, finding))
        parts += [table, Text("")]
    return Group(*parts)


def own_table(study: Study, finding: PublishedFinding) -> str:
    """Return how a study's own table stands to a finding: agrees, contradicts, or does not say; with the note on it."""
    table = study.tables.get(finding.experiments[0])
    answer = finding.check.answer(table.exact) if table else lacking("a table")
    if answer.ruling is Ruling.FAILS:
        return f"contradicts: {finding.note or answer.figures}"
    says = "agrees" if answer.ruling is Ruling.HOLDS else "does not say"
    return f"{says}: {finding.note}" if finding.note else says


def run_findings(results: RunResults) -> RenderableType:
    """A run's judgements, and the study's table beside its points."""
    study = study_of(results.run.name)
    if study is None:
        named = ", ".join(experiment for each in all_studies() for experiment in each.experiments)
        return Text(f"{results.run.name}: follows no published study; those that do: {named}")
    table = Table("finding", "judgement", "figures", box=None, pad_edge=False, header_style="bold")
    for judged in judge_run(results):
        table.add_row(judged.finding.claim, judged.judgement, judged.figures)
    conditions = "; ".join(f"{key}: {value}" for key, value in study.conditions.items())
    parts: list[RenderableType] = [Text(study.title, style="bold"), Text(f"there: {conditions}")]
    parts.append(Text(run_conditions(results)))
    parts.append(Text(repeated(study, results.run.name)) if results.run.name in study.without_figures else table)
    if rows := beside(results):
        figures = Table("point", "figure", "published", "× baseline", "here", "× baseline", box=None, pad_edge=False)
        for row in rows:
            figures.add_row(*beside_cells(row))
        parts += [Text(""), figures]
        if smaller := smaller_form(results, rows):
            ratios = Table(*smaller_headings(results), box=None, pad_edge=False)
            for point in smaller:
                ratios.add_row(*smaller_cells(point))
            parts += [Text(f"\n{SMALLER_FORM}"), ratios]
    return Group(*parts)


def repeated(study: Study, experiment: str) -> str:
    """Say in a sentence what of a study an experiment without published figures repeats."""
    return f"{experiment} repeats {study.without_figures[experiment]}: no figure or finding of it to compare with."


def run_conditions(results: RunResults) -> str:
    """The conditions of a run, in a line."""
    trials = results.run.trials
    names = {"model": "model", "accelerator": "hardware"}
    values = (
        f"{label}: {', '.join(sorted(map(str, trials[column].dropna().unique())))}" for column, label in names.items()
    )
    return f"here: {'; '.join(value for value in values if not value.endswith(': '))}"


def beside_cells(row: Beside) -> list[str]:
    """A row of the table beside, as text; – for what is not there."""
    values = (row.published, row.published_ratio, row.measured, row.measured_ratio)
    shown = ["–" if value is None else f"{value:.4g}" for value in values]
    return [row.point, row.column, shown[0], shown[1], shown[2], shown[3]]


def smaller_form(results: RunResults, rows: Iterable[Beside]) -> list[SmallerPoint]:
    """Return a run's own points where none stands beside a study's rows: it has other batch sizes, steps or tasks."""
    return list(smaller_points(results)) if all(row.measured is None for row in rows) else []


def smaller_headings(results: RunResults) -> list[str]:
    return ["measured here", FIGURE, REFERENCES[ratio_reference(results) or "vs_baseline"]]


def smaller_cells(row: SmallerPoint) -> list[str]:
    """A point of the smaller form as text: its throughput, and its ratio with the interval; – for what is not there."""
    interval = "" if row.low is None or row.high is None else f" ({row.low:.2f} to {row.high:.2f})"
    ratio = "–" if row.ratio is None else f"{row.ratio:.2f}{interval}"
    return [row.point, f"{row.throughput:.4g}{', as offered' if row.as_offered else ''}", ratio]


def markdown_lines(results: RunResults) -> Iterator[str]:
    """The judgements and the tables of a run as Markdown, line by line."""
    study = study_of(results.run.name)
    if study is not None and results.run.name in study.without_figures:
        yield repeated(study, results.run.name)
    judgements: list[Judged] = judge_run(results)
    if judgements:
        yield from ("| published finding | judgement | figures |", "|---|---|---|")
        yield from (f"| {each.finding.claim} | {each.judgement} | {each.figures} |" for each in judgements)
    if rows := beside(results):
        yield ""
        yield from table_lines(rows)
        if smaller := smaller_form(results, rows):
            yield from ("", SMALLER_FORM, "", f"| {' | '.join(smaller_headings(results))} |", "|---|---|---|")
            yield from (f"| {' | '.join(smaller_cells(point))} |" for point in smaller)


def table_lines(rows: Iterable[Beside]) -> Iterator[str]:
    """A study's table beside a run's as Markdown, line by line."""
    yield from ("| point | figure | published | × baseline | here | × baseline |", "|---|---|---|---|---|---|")
    yield from (f"| {' | '.join(beside_cells(row))} |" for row in rows)
