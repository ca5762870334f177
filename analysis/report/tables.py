"""The report's tables of figures as rows of cells: of points, of a ladder's steps, and of the steady state."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import pandas as pd

from analysis.answers.question import TaskAnswer
from analysis.answers.sentences import advantage, figure, remedy_text, sentence
from analysis.compare.output import HEADINGS, by_table, cells, headline
from analysis.compare.verdicts import MARGIN, PointComparison
from analysis.explain.decomposition import explanations
from analysis.explain.design import Unexplained
from analysis.explain.output import gain_sentence, interaction_lines, remarks, rows
from analysis.headline import HEADLINE, STEADY
from analysis.points import Layout
from analysis.quantities import setting
from analysis.report.slowest import slowest_requests
from analysis.report.terminal import (
    heading,
    label,
    shown_columns,
    times,
    with_both_intervals,
    with_ends,
)
from analysis.results import RunResults
from analysis.statistics.estimates import estimate
from analysis.statistics.pooled import REFERENCE_COLUMNS
from analysis.statistics.standings import Standing
from analysis.statistics.survivors import bound
from analysis.statistics.variance import shares_text
from analysis.statistics.winners import best, tied_text
from sweep.base.wording import number
from sweep.numbers.warnings import ResultWarning

WITH_INTERVAL = {*HEADLINE, *STEADY} - {"steady_num_requests", "steady_num_failed"}  # shown with an interval
LARGEST_TABLE = 400  # rows: the rest is in summary.csv


class Heading(NamedTuple):
    heading: str
    unit: str = ""
    kind: str = ""  # its classes in the style sheet: `text`, `wide`; none for numbers


class Cell(NamedTuple):
    text: str
    detail: str = ""  # beside it, muted: an interval
    best: bool = False
    warnings: Sequence[ResultWarning] = ()


class Table(NamedTuple):
    columns: Sequence[Heading]
    rows: Sequence[Sequence[Cell]]
    points: int = 0  # of which the rows are the first
    title: str = ""


def answers_table(answers: Sequence[TaskAnswer]) -> Table | None:
    """The answer to each question, with the runner-up and what would decide a tie; None without one."""
    in_bounds = any(answer.question.bounds for answer in answers)
    columns = [Heading("question", kind="text"), Heading("answer", kind="text"), Heading("its figure")]
    columns += [Heading("headroom")] if in_bounds else []
    columns += [Heading("runner-up", kind="text"), Heading("ahead of it"), Heading("how sure", kind="text wide")]
    rows = [_answer_row(answer, in_bounds) for answer in answers[:LARGEST_TABLE]]
    return Table(columns, rows, len(answers)) if rows else None


def _answer_row(answer: TaskAnswer, in_bounds: bool) -> list[Cell]:
    best = answer.best
    if best is None:
        text = sentence(answer).removeprefix(f"{answer.question.title}: ")
        return [Cell(answer.question.title), Cell("none"), *(Cell("—"),) * (3 + in_bounds), Cell(text)]
    row = [Cell(answer.question.title), Cell(best.full_name, best=answer.decided), Cell(figure(answer, best))]
    if in_bounds:
        row.append(Cell(f"{best.headroom:.0%}", "" if best.surely_meets else "not surely"))
    if len(answer.meeting) == 1:
        alone = "no other configuration meets the SLO" if in_bounds else "no other configuration has a result here"
        return [*row, Cell("—"), Cell("—"), Cell(alone)]
    rival = answer.tied[0] if answer.tied else answer.meeting[1]
    sure = "told apart from all others" if answer.decided else "not told apart"
    sure += f": {remedy_text(answer.remedy)}" if answer.remedy else ""
    return [*row, Cell(rival.full_name, figure(answer, rival)), Cell(advantage(answer, rival)), Cell(sure)]


def verdict_tables(comparisons: Sequence[PointComparison]) -> list[Table]:
    """A table for each quantity of each run that is compared with the first, whose title counts its verdicts."""
    tables = []
    for group in by_table(comparisons).values():
        unit = group[0].quantity.unit
        kinds = {HEADINGS[0]: "text", HEADINGS[-1]: "text"}
        columns = [Heading(name, unit if name in HEADINGS[1:3] else "", kinds.get(name, "")) for name in HEADINGS]
        rows = [[Cell(text) for text in cells(each, MARGIN)] for each in group[:LARGEST_TABLE]]
        tables.append(Table(columns, rows, len(group), headline(group, MARGIN)[0]))
    return tables


def results_tables(results: RunResults) -> list[Table]:
    """A table for each panel, of its points."""
    layout, points = results.layout, results.points
    if not points["n"].any():
        return []
    quantities = shown_columns(points)
    compared = [name for name in ("output_throughput", "ttft_p50") if f"{name}_vs_baseline" in points]
    columns = [Heading("engine", kind="text"), *_x_column(layout)]
    columns += [Heading(label(name).short, "× baseline") for name in compared]  # what decides comes first
    columns += [Heading("n"), Heading("requests"), Heading("failed"), *(_column(name, points) for name in quantities)]

    def row(point: "pd.Series[Any]") -> list[Cell]:
        warnings = results.warnings_at(point)
        general = [warning for warning in warnings if not warning.kind.quantities]
        return [
            *(Cell(point["line"], warnings=general), *_x_cell(layout, point)),
            *(_ratio(point, f"{name}_vs_baseline") for name in compared),
            *(Cell(str(point["n"]), "" if point["n"] else point["outcomes"]), Cell(f"{point['requests']:,.0f}")),
            _failed(point),
            *(_measured(point, name, warnings) for name in quantities),
        ]

    tables = []
    for panel, group in points.head(LARGEST_TABLE).groupby("panel", sort=False):
        tables.append(Table(columns, [row(point) for _, point in group.iterrows()], title=str(panel)))
    return tables


def _measured(point: "pd.Series[Any]", name: str, warnings: Iterable[ResultWarning]) -> Cell:
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
        shown = with_both_intervals(estimate(point, name), text)
    detail = shown.removeprefix(text).strip()
    return Cell(text, detail, point.get(f"{name}_standing") in (Standing.BEST, Standing.TIED), concerned)


def winners_table(results: RunResults) -> Table | None:
    """A row for each comparison: the best of each quantity, with those not told apart from it."""
    winners = best(results.points)
    if not winners:
        return None
    quantities = list(dict.fromkeys(winner.quantity.column for winner in winners))
    rows: dict[tuple[str, str], dict[str, Cell]] = {}
    for winner in winners:
        task = str(winner.point["panel"]), results.layout.load(winner.point)
        detail = f"{tied_text(winner)} ({winner.compared} compared)" if len(winner.tied) else ""
        rows.setdefault(task, {})[winner.quantity.column] = Cell(winner.point["line"], detail, best=not detail)
    columns = [Heading(text, kind="text") for text in ("task", "load", *(label(name).short for name in quantities))]
    cells = [
        [Cell(panel), Cell(load), *(row.get(name, Cell("—")) for name in quantities)]
        for (panel, load), row in rows.items()
    ]
    return Table(columns, cells[:LARGEST_TABLE], len(cells))


def spread_table(results: RunResults) -> Table | None:
    """The components of variance of the main figures; None without replicates."""
    spreads = results.components
    columns = [Heading("figure", kind="text"), Heading("trials"), Heading("launches"), Heading("nodes")]
    columns += [Heading("spread", "sd"), Heading("of which", kind="text"), Heading("notes", kind="text wide")]
    rows = [
        [
            *(Cell(text) for text in (spread.quantity.short, str(spread.trials), str(spread.launches))),
            *(Cell(text) for text in (str(spread.nodes), f"{spread.deviation:.1%}", shares_text(spread))),
            Cell("; ".join(spread.notes)),
        ]
        for spread in spreads
    ]
    return Table(columns, rows, len(rows)) if rows else None


def explained_tables(results: RunResults) -> tuple[list[Table], list[str]]:
    """The parts of each task's gain in each quantity, and the notes on them; empty if the run does not show them."""
    try:
        explained = explanations(results.run, results.layout)
    except Unexplained:
        return [], []
    tables = []
    for each in explained[: LARGEST_TABLE // 10]:
        headings, parts = rows(each)
        columns = [Heading(heading, kind="text" if index == 0 else "") for index, heading in enumerate(headings)]
        tables.append(Table(columns, [[Cell(text) for text in row] for row in parts], title=gain_sentence(each)))
    pairs = [f"together × each alone, {each.task}: {'; '.join(interaction_lines(each))}" for each in explained[:1]]
    return tables, remarks(explained) + (pairs if explained[0].interactions else [])


def ladder_table(layout: Layout) -> Table | None:
    """Each step against the one that it is on top of; None without a ladder."""
    if "ladder_parent" not in layout.points or layout.points["ladder_parent"].isna().all():
        return None
    columns = [*(Heading(name, kind="text") for name in ("step", "on top of", "task")), *_x_column(layout)]
    columns.append(Heading("failed"))
    columns += [Heading(label(name).short, "× parent") for name in ("output_throughput", "ttft_p50")]
    steps = layout.points[layout.points["ladder_parent"].notna()]
    rows = [
        [
            *(Cell(step[key]) for key in ("line", "ladder_parent", "panel")),
            *_x_cell(layout, step),
            _failed(step),
            _gain(step),
            _ratio(step, "ttft_p50_vs_parent"),
        ]
        for _, step in steps.head(LARGEST_TABLE).iterrows()
    ]
    return Table(columns, rows, len(steps))


def _gain(step: "pd.Series[Any]") -> Cell:
    if step["n"] == 0:
        return Cell("no result")
    gain = _ratio(step, "output_throughput_vs_parent")
    return gain if gain.text != "—" else Cell("the parent has no result here")


def steady_table(results: RunResults) -> Table | None:
    """The figures without start and drain, of the points with a window; None if there is none."""
    layout = results.layout
    if "steady_share" not in layout.points:
        return None
    quantities = [name for name in STEADY if name in layout.points]
    columns = [Heading("engine", kind="text"), Heading("task", kind="text"), *_x_column(layout)]
    columns += [Heading("trials", "with a window"), *(_column(name, layout.points) for name in quantities)]
    steady = layout.points[layout.points["steady_share"] > 0]
    rows = [
        [Cell(point["line"]), Cell(point["panel"]), *_x_cell(layout, point), Cell(f"{point['steady_share']:.0%}")]
        + [_measured(point, name, results.warnings_at(point)) for name in quantities]
        for _, point in steady.head(LARGEST_TABLE).iterrows()
    ]
    return Table(columns, rows, len(steady))


def slowest_table(results: RunResults) -> Table | None:
    """The slowest requests, each against the median of its trial; None without requests."""
    slow = slowest_requests(results)
    columns = [Heading("point", kind="text"), Heading("request", kind="text"), Heading("× median", "of its trial")]
    columns += [Heading("E2EL", "ms"), Heading("TTFT", "ms"), Heading("sent", "s"), Heading("input", "tokens")]
    columns += [Heading("output", "tokens")]
    failures = any(each.error for each in slow)
    columns += [Heading("error", kind="text wide")] if failures else []
    rows = [
        [
            *(Cell(text) for text in (each.point, each.request_id, times(each.times_median))),
            *(Cell(number(seconds * 1e3)) for seconds in (each.e2el, each.ttft)),
            Cell(number(each.sent)),
            *(Cell("—" if count is None else f"{count:,}") for count in (each.input_tokens, each.output_tokens)),
            *([Cell(each.error)] if failures else []),
        ]
        for each in slow
    ]
    return Table(columns, rows, len(rows)) if rows else None


def _column(name: str, points: pd.DataFrame) -> Heading:
    return Heading(heading(points, name), label(name).unit)


def _failed(point: "pd.Series[Any]") -> Cell:
    """The number of requests that failed in trials with a result."""
    return Cell(f"{point['failed']:,.0f}" if point["n"] else "—")


def _ratio(point: "pd.Series[Any]", column: str) -> Cell:
    if pd.isna(point.get(column)):
        return Cell("—")
    low, high = number(point[f"{column}_ci_low"]), number(point[f"{column}_ci_high"])
    return Cell(times(point[column]), f"{low}–{high}" if "—" not in (low, high) else "")


def _x_column(layout: Layout) -> list[Heading]:
    """The column of the x axis, where there is one."""
    return [Heading(layout.x_label.lower())] if layout.x else []


def _x_cell(layout: Layout, point: "pd.Series[Any]") -> list[Cell]:
    return [Cell(setting(point[layout.x]))] if layout.x else []
