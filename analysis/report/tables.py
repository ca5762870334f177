"""The report's tables of figures as rows of cells: of points, of a ladder's steps, and of the steady state."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import pandas as pd

from analysis.answers.question import Candidate, TaskAnswer
from analysis.answers.sentences import advantage, caveats, figure, remedy_text, sentence
from analysis.compare.output import headline, tables
from analysis.compare.verdicts import MARGIN, PointComparison
from analysis.explain.decomposition import explanations
from analysis.explain.design import Unexplained
from analysis.explain.output import PartRow, gain_sentence, interaction_lines, parts_table, remarks
from analysis.headline import HEADLINE, STEADY
from analysis.points import Layout
from analysis.quantities import setting
from analysis.report.slowest import SlowRequest, slowest_requests
from analysis.report.terminal import (
    heading,
    label,
    shown_columns,
    times,
    with_ends,
    with_interval,
)
from analysis.results import RunResults
from analysis.statistics.estimates import estimate
from analysis.statistics.pooled import REFERENCE_COLUMNS
from analysis.statistics.standings import Standing
from analysis.statistics.survivors import bound
from analysis.statistics.variance import Components, shares_text
from analysis.table import NONE, Cell, Column, Table, view
from sweep.base.wording import number
from sweep.numbers.warnings import ResultWarning

WITH_INTERVAL = {*HEADLINE, *STEADY} - {"steady_num_requests", "steady_num_failed"}  # shown with an interval
PointRow: TypeAlias = "pd.Series[Any]"  # a row of the summary
LARGEST_TABLE = 400  # rows: the rest is in summary.csv


def answers_table(answers: Sequence[TaskAnswer]) -> Table[TaskAnswer] | None:
    """The answer to each question, with the runner-up and what would decide a tie; None without one."""
    columns = [
        view("question", lambda answer: answer.question.title, kind="text"),
        view("answer", _winner, kind="text"),
        view("its figure", lambda answer: figure(answer, answer.best) if answer.best else NONE),
        view("headroom", _best_headroom),
        view("runner-up", _runner_up, kind="text"),
        view("ahead of it", lambda answer: advantage(answer, rival) if (rival := _rival(answer)) else NONE),
        view("how sure", _certainty, kind="text wide"),
    ]
    if not any(answer.question.bounds for answer in answers):
        columns = [column for column in columns if column.heading != "headroom"]
    return Table(columns, answers[:LARGEST_TABLE], points=len(answers)) if answers else None


def _rival(answer: TaskAnswer) -> Candidate | None:
    return (answer.tied or answer.meeting[1:] or (None,))[0]


def _winner(answer: TaskAnswer) -> Cell:
    return Cell(answer.best.full_name, best=answer.decided) if answer.best else Cell("none")


def _best_headroom(answer: TaskAnswer) -> Cell:
    if answer.best is None:
        return Cell(NONE)
    return Cell(f"{answer.best.headroom:.0%}", "" if answer.best.surely_meets else "not surely")


def _runner_up(answer: TaskAnswer) -> Cell:
    rival = _rival(answer)
    return Cell(rival.full_name, figure(answer, rival)) if rival else Cell(NONE)


def _certainty(answer: TaskAnswer) -> str:
    if answer.best is None:
        return sentence(answer).removeprefix(f"{answer.question.title}: ")
    if len(answer.meeting) == 1:
        certainty = f"no other configuration {'meets the SLO' if answer.question.bounds else 'has a result here'}"
    elif answer.decided:
        certainty = "told apart from all others"
    else:
        certainty = "not told apart" + (f": {remedy_text(answer.remedy)}" if answer.remedy else "")
    return certainty + caveats([answer])


def verdict_tables(comparisons: Sequence[PointComparison]) -> list[Table[PointComparison]]:
    """A table for each quantity of each run that is compared with the first, whose title counts its verdicts."""
    return [
        replace(table, rows=table.rows[:LARGEST_TABLE], points=len(table.rows), title=headline(table.rows, MARGIN)[0])
        for table in tables(comparisons, MARGIN)
    ]


def results_table(results: RunResults) -> Table[PointRow] | None:
    """The points, as far as they fit one table; None without a result. Without scripts it is all there is."""
    layout, points = results.layout, results.points
    if not points["n"].any():
        return None
    compared = [name for name in ("output_throughput", "ttft_p50") if f"{name}_vs_baseline" in points]
    columns = [
        view("engine", lambda point: Cell(point["line"], warnings=_general(results, point)), kind="text"),
        view("task", lambda point: point["panel"], kind="text"),
        *_x_column(layout),
        *(_ratio_column(name, "baseline") for name in compared),  # what decides comes first
        view("n", lambda point: Cell(str(point["n"]), "" if point["n"] else point["outcomes"])),
        view("requests", lambda point: f"{point['requests']:,.0f}"),
        view("failed", _failed),
        *(_column(name, results) for name in shown_columns(points)),
    ]
    return _of_points(columns, points)


def _of_points(columns: Sequence[Column[PointRow]], points: pd.DataFrame) -> Table[PointRow]:
    return Table(columns, [point for _, point in points.head(LARGEST_TABLE).iterrows()], points=len(points))


def _general(results: RunResults, point: PointRow) -> list[ResultWarning]:
    return [warning for warning in results.warnings_at(point) if not warning.kind.quantities]


def _measured(point: PointRow, name: str, warnings: Iterable[ResultWarning]) -> Cell:
    """A figure with its intervals; of a quantile that falls on failed requests, what is known of it."""
    concerned = [warning for warning in warnings if name in warning.kind.quantities]
    known = bound(point, name, label(name).scale)
    if known is not None:
        return Cell(*known, warnings=concerned)
    text = label(name).shown(point[name])
    shown = text
    if name in REFERENCE_COLUMNS:
        shown = with_ends(estimate(point, name), text, label(name))
    elif name in WITH_INTERVAL:
        shown = with_interval(estimate(point, name), text)
    detail = shown.removeprefix(text).strip()
    return Cell(text, detail, point.get(f"{name}_standing") in (Standing.BEST, Standing.TIED), concerned)


def spread_table(results: RunResults) -> Table[Components] | None:
    """The components of variance of the main figures; None without replicates."""
    columns = [
        view("figure", lambda spread: spread.quantity.short, kind="text"),
        view("trials", lambda spread: str(spread.trials)),
        view("launches", lambda spread: str(spread.launches)),
        view("nodes", lambda spread: str(spread.nodes)),
        view("spread", lambda spread: f"{spread.deviation:.1%}", "sd"),
        view("of which", shares_text, kind="text"),
        view("notes", lambda spread: "; ".join(spread.notes), kind="text wide"),
    ]
    return Table(columns, results.components) if results.components else None


def explained_tables(results: RunResults) -> tuple[list[Table[PartRow]], list[str]]:
    """The parts of each task's gain in each quantity, and the notes on them; empty if the run does not show them."""
    try:
        explained = explanations(results.run, results.layout)
    except Unexplained:
        return [], []
    pairs = [f"together × each alone, {each.task}: {'; '.join(interaction_lines(each))}" for each in explained[:1]]
    shown = [parts_table(each, gain_sentence(each)) for each in explained[: LARGEST_TABLE // 10]]
    return shown, remarks(explained) + (pairs if explained[0].interactions else [])


def ladder_table(layout: Layout) -> Table[PointRow] | None:
    """Each step against the one that it is on top of; None without a ladder."""
    if "ladder_parent" not in layout.points or layout.points["ladder_parent"].isna().all():
        return None
    columns = [
        view("step", lambda step: step["line"], kind="text"),
        view("on top of", lambda step: step["ladder_parent"], kind="text"),
        view("task", lambda step: step["panel"], kind="text"),
        *_x_column(layout),
        view("failed", _failed),
        view(label("output_throughput").short, _gain, "× parent"),
        _ratio_column("ttft_p50", "parent"),
    ]
    return _of_points(columns, layout.points[layout.points["ladder_parent"].notna()])


def _gain(step: PointRow) -> Cell:
    if step["n"] == 0:
        return Cell("no result")
    gain = _ratio(step, "output_throughput_vs_parent")
    return gain if gain.text != NONE else Cell("the parent has no result here")


def steady_table(results: RunResults) -> Table[PointRow] | None:
    """The figures without start and drain, of the points with a window, or None."""
    points = results.points
    if "steady_share" not in points:
        return None
    columns = [
        view("engine", lambda point: point["line"], kind="text"),
        view("task", lambda point: point["panel"], kind="text"),
        *_x_column(results.layout),
        view("trials", lambda point: f"{point['steady_share']:.0%}", "with a window"),
        *(_column(name, results) for name in STEADY if name in points),
    ]
    return _of_points(columns, points[points["steady_share"] > 0])


def slowest_table(results: RunResults) -> Table[SlowRequest] | None:
    """The slowest requests, each against the median of its trial; None without requests."""
    slow = slowest_requests(results)
    columns: list[Column[SlowRequest]] = [
        view("point", lambda each: each.point, kind="text"),
        view("request", lambda each: each.request_id, kind="text"),
        view("× median", lambda each: times(each.times_median), "of its trial"),
        view("E2EL", lambda each: number(each.e2el * 1e3), "ms"),
        view("TTFT", lambda each: number(each.ttft * 1e3), "ms"),
        view("sent", lambda each: number(each.sent), "s"),
        view("input", lambda each: _tokens(each.input_tokens), "tokens"),
        view("output", lambda each: _tokens(each.output_tokens), "tokens"),
        *([view("error", lambda each: each.error, kind="text wide")] if any(each.error for each in slow) else []),
    ]
    return Table(columns, slow) if slow else None


def _tokens(count: int | None) -> str:
    return NONE if count is None else f"{count:,}"


def _column(name: str, results: RunResults) -> Column[PointRow]:
    """A measured quantity of a point, with the warnings that concern it."""
    title = heading(results.points, name)
    return view(title, lambda point: _measured(point, name, results.warnings_at(point)), label(name).unit)


def _ratio_column(name: str, reference: str) -> Column[PointRow]:
    return view(label(name).short, lambda point: _ratio(point, f"{name}_vs_{reference}"), f"× {reference}")


def _failed(point: PointRow) -> Cell:
    """The number of requests that failed in trials with a result."""
    return Cell(f"{point['failed']:,.0f}" if point["n"] else NONE)


def _ratio(point: PointRow, column: str) -> Cell:
    if pd.isna(point.get(column)):
        return Cell(NONE)
    low, high = number(point[f"{column}_ci_low"]), number(point[f"{column}_ci_high"])
    return Cell(times(point[column]), f"{low}–{high}" if "—" not in (low, high) else "")


def _x_column(layout: Layout) -> list[Column[PointRow]]:
    """The column of the x axis, if there is one."""
    axis = layout.x
    return [view(layout.x_label.lower(), lambda point: setting(point[axis]))] if axis else []
