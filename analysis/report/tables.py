"""The report's tables: of points, of a ladder's steps, and of the steady state."""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import pandas as pd

from analysis.answers.sentences import advantage, caveats, figure, range_text, remedy_text, sentence
from analysis.answers.task_answer import RankedConfiguration, TaskAnswer
from analysis.compare.output import headline, tables
from analysis.compare.verdicts import PointComparison
from analysis.explain.decomposition import explanations
from analysis.explain.design import Unexplained
from analysis.explain.output import PartRow, gain_sentence, interaction_lines, parts_table, remarks
from analysis.headline import HEADLINE, STEADY, shown_column
from analysis.point_names import Layout
from analysis.quantities import LabelledColumn, labelled_column, setting
from analysis.results import RunResults
from analysis.statistics.comparison import MARGIN
from analysis.statistics.contests import Standing
from analysis.statistics.estimates import estimate
from analysis.statistics.pooled import REFERENCE_COLUMNS
from analysis.statistics.survivors import bound, left_out
from analysis.statistics.variance import Components, shares_text
from analysis.table import KEY, NONE, Cell, Column, Table, view
from sweep.base.wording import number
from sweep.numbers.warnings import ResultWarning

WITH_INTERVAL = {*HEADLINE, *STEADY, *REFERENCE_COLUMNS} - {"steady_num_requests", "steady_num_failed"}
PointRow: TypeAlias = "pd.Series[Any]"  # a point's row in the summary
LARGEST_TABLE = 400  # maximum rows of a table; summary.csv has all points
MAYBE = "≈"  # marks a ratio whose interval includes 1
RESERVED = " reserved"  # after memory that is reserved, among memory that is used
OF_STEADY = "°"  # marks a steady-state latency that differs from the whole run's
COLUMNS = (
    *(*HEADLINE, "goodput_share", "longest_gap_p50", "longest_gap_max", "acceptance_rate", "acceptance_length"),
    *("preemptions", "prefix_hit_rate", "kv_cache_usage_max", "kv_cache_full_share"),
    *("memory_mean_bytes", "memory_peak_bytes", *REFERENCE_COLUMNS),
)
BATCH_COLUMNS = (
    *("output_throughput", "batch_latency_mean", "output_length_mean"),
    *("memory_mean_bytes", "memory_peak_bytes", *REFERENCE_COLUMNS, "total_throughput"),
)
DECIDING = (
    *("output_throughput", "output_throughput_vs_parent", "goodput_share", "ttft_p50", "tpot_p50"),
    *("cost_per_million_tokens", "memory_peak_bytes", "batch_latency_mean", "e2el_p50"),
)
"""The columns that usually decide, the most important first."""
MOST_DECIDING = 5


def answers_table(answers: Sequence[TaskAnswer]) -> Table[TaskAnswer] | None:
    """Return the answer to each question, with the runner-up and the remedy for a tie; None if there are no answers."""
    columns = [
        view("task", lambda answer: answer.criterion.title, kind="text"),
        view("answer", _winner, kind="text"),
        view("value", lambda answer: figure(answer, answer.best) if answer.best else NONE),
        view("headroom", best_headroom),
        view("runner-up", _runner_up, kind="text"),
        view("lead", lambda answer: advantage(answer, rival) if (rival := _rival(answer)) else NONE),
        view("how sure", _certainty, kind="text wide"),
    ]
    if not any(answer.criterion.bounds for answer in answers):
        columns = [column for column in columns if column.heading != "headroom"]
    return Table(columns, answers[:LARGEST_TABLE], points=len(answers)) if answers else None


def _rival(answer: TaskAnswer) -> RankedConfiguration | None:
    return (answer.tied or answer.meeting[1:] or (None,))[0]


def _winner(answer: TaskAnswer) -> Cell:
    return Cell(answer.best.full_name, best=answer.decided) if answer.best else Cell("none")


def best_headroom(answer: TaskAnswer) -> Cell:
    if answer.best is None or math.isnan(answer.best.headroom):  # a capacity has none
        return Cell(NONE)
    return Cell(f"{answer.best.headroom:.0%}", "" if answer.best.surely_meets else "not certain")


def _runner_up(answer: TaskAnswer) -> Cell:
    rival = _rival(answer)
    return Cell(rival.full_name, figure(answer, rival)) if rival else Cell(NONE)


def _certainty(answer: TaskAnswer) -> str:
    if answer.best is None:
        return sentence(answer).removeprefix(f"{answer.criterion.title}: ")
    if len(answer.meeting) == 1:
        certainty = f"no other configuration {'meets the SLO' if answer.criterion.bounds else 'can be compared here'}"
    elif answer.decided:
        certainty = "leads"
    else:
        certainty = "a tie" + (f": {remedy_text(answer.suggested)}" if answer.suggested else "")
    return certainty + caveats([answer])


def verdict_tables(comparisons: Sequence[PointComparison]) -> list[Table[PointComparison]]:
    """Return a table per quantity and compared run. Its title counts the verdicts against the first run."""
    return [
        replace(table, rows=table.rows[:LARGEST_TABLE], points=len(table.rows), title=headline(table.rows, MARGIN)[0])
        for table in tables(comparisons, MARGIN)
    ]


def results_table(results: RunResults) -> Table[PointRow] | None:
    """Return the points that fit one table, for readers without scripts; None if there is no result."""
    layout, points = results.layout, results.points
    if not points["n"].any():
        return None

    def engine(point: PointRow) -> Cell:
        return Cell(point["line"], warnings=[each for each in results.warnings_at(point) if not each.kind.quantities])

    compared = [name for name in ("output_throughput", "ttft_p50") if f"{name}_vs_baseline" in points]
    columns = [
        view("engine", engine, kind="text"),
        view("task", lambda point: point["panel"], kind="text"),
        *_x_column(layout),
        *(_ratio_column(name, "baseline") for name in compared),  # the columns that usually decide come first
        view("n", lambda point: Cell(str(point["n"]), "" if point["n"] else point["outcomes"])),
        view("requests", lambda point: f"{point['requests']:,.0f}"),
        view("failed", _failed),
        *(_column(name, results) for name in shown_columns(points)),
    ]
    return _of_points(columns, points)


def deciding_table(results: RunResults, most: int | None = LARGEST_TABLE) -> Table[PointRow]:
    """Return the points with the columns that usually decide. `most` limits the points (default: a table's limit)."""
    layout, points = results.layout, results.points
    names = [name for name in DECIDING if name in points and points[name].notna().any()][:MOST_DECIDING]
    columns: list[Column[PointRow]] = [
        view("configuration", lambda point: point["line"], **KEY),
        view("task", lambda point: point["panel"], **KEY),
        *(replace(column, key=True) for column in _x_column(layout)),
        *([view("failed", share_of_failures)] if points["failed"].gt(0).any() else []),
        *(_brief_column(name, results.reserving) for name in names),
    ]
    return _of_points(columns, points, most)


def everything_table(results: RunResults) -> Table[PointRow]:
    """Return the points with a column for every quantity measured at any point, as compact cells."""
    versus = [name for name in ("output_throughput_vs_baseline",) if name in results.points]
    columns = [*deciding_table(results).columns, view("n", lambda point: str(point["n"]))]
    present = {column.title for column in columns}
    more = [_brief_column(name) for name in [*versus, *shown_columns(results.points)]]
    return _of_points([*columns, *(column for column in more if column.title not in present)], results.points)


def _brief_column(name: str, reserving: Collection[int] = ()) -> Column[PointRow]:
    """Return a column with compact cells. Throughput has its interval, or the reason why it has none."""
    base, _, reference = name.partition("_vs_")
    if reference:
        return view(f"{label(base).short} × {reference}", lambda point: _brief_ratio(point, name))
    marked = reserving if name.startswith("memory_") else ()
    title, unit = label(name).short, label(name).unit

    def cell(point: PointRow) -> Cell:
        shown = _brief(point, name)
        return shown._replace(text=shown.text + RESERVED * (point.name in marked))

    return view(title, cell, unit)


def _brief_ratio(point: PointRow, name: str) -> str:
    """Return a ratio as text, marked unless its interval excludes 1."""
    sure = point[f"{name}_ci_low"] > 1 or point[f"{name}_ci_high"] < 1 or pd.isna(point[name])
    return ("" if sure else MAYBE) + times(point[name])


def _brief(point: PointRow, name: str) -> Cell:
    if name == "output_throughput" and not point["n"]:
        return Cell(str(point["outcomes"]).split(",")[0].rpartition(" ")[0])
    known = bound(point, name, label(name).scale)
    if known is not None:
        return Cell(known[0] if known[0] != NONE else f"{NONE} {known[1].replace('more than ', '>')}")
    if steady := _steady_figure(point, name):
        return Cell(steady)
    shown, ends = label(name).shown(point[name]), range_text(estimate(point, name), label(name))
    return Cell(shown, f"({ends})" if ends and name in ("output_throughput", *REFERENCE_COLUMNS) else "")


def _of_points(
    columns: Sequence[Column[PointRow]], points: pd.DataFrame, most: int | None = LARGEST_TABLE
) -> Table[PointRow]:
    return Table(columns, [point for _, point in points[:most].iterrows()], points=len(points))


def _measured(point: PointRow, name: str, warnings: Iterable[ResultWarning]) -> Cell:
    """Return a value with its intervals, or the lower bound of a quantile that is a failed request."""
    concerned = [warning for warning in warnings if name in warning.kind.quantities]
    known = bound(point, name, label(name).scale)
    if known is not None:
        return Cell(*known, warnings=concerned)
    if steady := _steady_figure(point, name):
        return Cell(steady, f"whole run {label(name).shown(point[name])}", warnings=concerned)
    detail = range_text(estimate(point, name), label(name)) if name in WITH_INTERVAL else ""
    best = point.get(f"{name}_standing") in (Standing.BEST, Standing.TIED)
    return Cell(label(name).shown(point[name]), detail, best, concerned)


def _steady_figure(point: PointRow, name: str) -> str:
    """The steady state's quantile, marked, if the whole run's differs from it by more than 10%; else empty."""
    steady = shown_column(point, name)
    return "" if steady == name else f"{label(steady).shown(point[steady])}{OF_STEADY}"


def spread_table(results: RunResults) -> Table[Components] | None:
    """Return the main quantities' components of variance; None if there are no replicates."""
    columns = [
        view("quantity", lambda spread: spread.quantity.short, kind="text"),
        view("trials", lambda spread: str(spread.trials)),
        view("launches", lambda spread: str(spread.launches)),
        view("nodes", lambda spread: str(spread.nodes)),
        view("spread", lambda spread: f"{spread.deviation:.1%}", "sd"),
        view("of which", shares_text, kind="text"),
        view("notes", lambda spread: "; ".join(spread.notes), kind="text wide"),
    ]
    return Table(columns, results.components) if results.components else None


def explained_tables(results: RunResults) -> tuple[list[Table[PartRow]], list[str]]:
    """Return the parts of each task's gain by quantity, with their notes; empty if the design does not reveal them."""
    try:
        explained = explanations(results.run, results.layout)
    except Unexplained:
        return [], []
    pairs = [f"together × each alone, {each.task}: {'; '.join(interaction_lines(each))}" for each in explained[:1]]
    shown = [parts_table(each, gain_sentence(each)) for each in explained[: LARGEST_TABLE // 10]]
    return shown, remarks(explained) + (pairs if explained[0].interactions else [])


def ladder_table(layout: Layout) -> Table[PointRow] | None:
    """Compare each step with the step below it; None if there is no ladder."""
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
    return gain if gain.text != NONE else Cell("the parent step has no result")


def steady_table(results: RunResults) -> Table[PointRow] | None:
    """Return the steady-state values (without start-up and drain) of points with a window; None if no point has one."""
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


def _column(name: str, results: RunResults) -> Column[PointRow]:
    """Return the column of a measured quantity, with the warnings that concern it."""
    title = heading(results.points, name)
    return view(title, lambda point: _measured(point, name, results.warnings_at(point)), label(name).unit)


def _ratio_column(name: str, reference: str) -> Column[PointRow]:
    return view(label(name).short, lambda point: _ratio(point, f"{name}_vs_{reference}"), f"× {reference}")


def _failed(point: PointRow) -> Cell:
    """Return the number of failed requests in trials with a result."""
    return Cell(f"{point['failed']:,.0f}" if point["n"] else NONE)


def _ratio(point: PointRow, column: str) -> Cell:
    if pd.isna(point.get(column)):
        return Cell(NONE)
    low, high = number(point[f"{column}_ci_low"]), number(point[f"{column}_ci_high"])
    return Cell(times(point[column]), f"{low}–{high}" if "—" not in (low, high) else "")


def _x_column(layout: Layout) -> list[Column[PointRow]]:
    """Yield the column of the x axis, if there is one."""
    axis = layout.x
    return [view(layout.x_label.lower(), lambda point: setting(point[axis]))] if axis else []


def shown_columns(points: pd.DataFrame) -> list[str]:
    """Return the metrics for a table of these points, the most important first; for lockstep, batch metrics."""
    in_batches = "batch_latency_mean" in points and points["batch_latency_mean"].notna().any()
    columns = dict.fromkeys([*BATCH_COLUMNS, *COLUMNS] if in_batches else COLUMNS)
    return [name for name in columns if name in points and (points[name].notna().any() or _is_bounded(points, name))]


def share_of_failures(point: "pd.Series[Any]") -> str:
    """Return the share of failed requests, e.g. `4 of 120`, or an em dash if the point has no result."""
    return f"{point['failed']:,.0f} of {point['requests'] + point['failed']:,.0f}" if point["n"] else "—"


def _is_bounded(points: pd.DataFrame, column: str) -> bool:
    """Return whether a point's quantile is a failed request, so that only a bound is known."""
    with_failures = points[points["failed"] > 0]
    return any(bound(point, column, 1.0) is not None for _, point in with_failures.iterrows())


def heading(points: pd.DataFrame, column: str) -> str:
    """Return a column's short name. A mean or maximum is marked if it excludes failed requests."""
    return label(column).short + left_out(column, points)


def label(column: str) -> LabelledColumn:
    labelled = labelled_column(column)
    assert labelled is not None
    return labelled


def times(ratio: float) -> str:
    """Return a ratio to the baseline as text, or an em dash if it is missing."""
    return "—" if math.isnan(ratio) else f"{number(ratio)}×"
