"""The table that the terminal shows at the end of a sweep: results, the best figure per metric, and what failed."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import pandas as pd
from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from analysis.answers.deciding import answers
from analysis.answers.output import lines as answer_lines
from analysis.failures import Losses
from analysis.headline import HEADLINE
from analysis.plotting.fitting import Fit
from analysis.points import Layout, listed
from analysis.quantities import LabelledColumn, labelled_column, setting
from analysis.results import RunResults
from analysis.statistics.estimates import estimate
from analysis.statistics.intervals import Estimate
from analysis.statistics.pooled import REFERENCE_COLUMNS
from analysis.statistics.survivors import bound, left_out
from analysis.statistics.variance import shares_text
from analysis.warnings import grouped, scope
from sweep.base.records import UNMEASURED
from sweep.base.wording import count, number
from sweep.numbers.warnings import Severity

COLUMNS = (
    *HEADLINE,
    "goodput_share",
    "longest_gap_p50",
    "longest_gap_max",
    "acceptance_rate",
    "acceptance_length",
    "preemptions",
    "prefix_hit_rate",
    "kv_cache_usage_max",
    "kv_cache_full_share",
    "memory_mean_bytes",
    "memory_peak_bytes",
    *REFERENCE_COLUMNS,
)
BATCH_COLUMNS = (
    "output_throughput",
    "batch_latency_mean",
    "output_length_mean",
    "memory_mean_bytes",
    "memory_peak_bytes",
    *REFERENCE_COLUMNS,
    "total_throughput",
)
RATIO = "output_throughput_vs_baseline"
MAYBE = "≈"  # before a ratio whose interval includes 1
BY_LAUNCHES = "*"  # after an interval
INTERVALS = "± half the 95% interval of these launches; summary.csv and the report also have that of a new launch"
FROM_LAUNCHES = f"{BY_LAUNCHES} from the launches' own figures: the requests are too few, or too dependent"
ANSWER_INTERVALS = "(a to b): the 95% interval of the comparison with the reference"
GAP = 2  # characters between columns
MOST_ANSWERS = 12  # questions: the rest is in `sweep summary`
MOST_POINTS = 40  # points: the rest is in summary.csv
STYLES = {Severity.SEVERE: "red", Severity.WARNING: "yellow", Severity.INFO: "cyan"}


class Summary:
    """The results of a run for a rich console: as many metrics as its width has room for."""

    def __init__(self, results: RunResults) -> None:
        self.results = results

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        results = self.results
        if (results.points["n"] > 0).any():
            yield from _answers(results)
            yield from _results(results.layout, options.max_width)
            yield from _spreads(results)
            yield from _formats(results.formats)
        else:
            yield Text("no trial has a result", style="bold red")
        yield from _fits(results.fits)
        if results.losses.trials:
            yield from _failures(results.losses)
        yield from _warnings(results)


def _answers(results: RunResults) -> Iterator[Text]:
    """The sentence that is true of all questions, then those of the first few."""
    first, *rest = answer_lines(answers([results]))
    yield Text(first, style="bold green")
    for line in rest[:MOST_ANSWERS]:
        yield Text(f"  {line}")
    if len(rest) > MOST_ANSWERS:
        yield Text(f"  {len(rest) - MOST_ANSWERS:,} more: sweep summary {results.run.paths.out}", style="dim")


def _warnings(results: RunResults) -> Iterator[Text | Padding]:
    """Each warning: its code, what happened, where, and below that the remedy."""
    warnings = grouped(results.warnings)
    if warnings:
        yield Text(f"\n{count(len(warnings), 'warning')}:", style="bold")
    for warning in warnings:
        place = scope(warning, results.layout)
        title = Text(warning.code, style=STYLES[warning.kind.severity]).append(f": {warning.message}", style="default")
        yield Padding(title.append(f" [{place}]" if place else "", style="dim"), (0, 0, 0, 2))
        yield Padding(Text(warning.kind.remedy, style="dim"), (0, 0, 0, 4))


class TextColumn(NamedTuple):
    """A column of the table; its heading may have two lines."""

    heading: str
    cells: list[str]
    narrow: bool = False  # as narrow as its longest word

    @property
    def width(self) -> int:
        cells = " ".join(self.cells).split() if self.narrow else self.cells
        return max(map(len, [*self.heading.split("\n"), *cells]))


def shown_columns(points: pd.DataFrame) -> list[str]:
    """The metrics that a table of some points shows, the most telling first: of lockstep batches those of a batch."""
    in_batches = "batch_latency_mean" in points and points["batch_latency_mean"].notna().any()
    columns = dict.fromkeys([*BATCH_COLUMNS, *COLUMNS] if in_batches else COLUMNS)
    return [name for name in columns if name in points and (points[name].notna().any() or _is_bounded(points, name))]


def _results(layout: Layout, width: int) -> Iterator[Table | Text]:
    """The points. Metrics that the width has no room for follow in a table of their own."""
    points = layout.points.head(MOST_POINTS)
    columns = shown_columns(points)
    metrics = [_metric(points, column) for column in columns]
    versus = [_versus(point) for _, point in points.iterrows()] if RATIO in points else []
    if versus:
        place = len({*BATCH_COLUMNS} & {*columns}) if "batch_latency_mean" in columns else 1
        metrics.insert(place, TextColumn("vs\nbaseline", versus))
    texts, numbers, title = _identity(layout, points)
    yield Text(title, style="bold")
    if _width(texts + numbers + metrics) > width:  # names are broken between words, never within one
        texts = [column._replace(narrow=True) for column in texts]
    while metrics:
        fitting = len(metrics)
        while fitting > 1 and _width(texts + numbers + metrics[:fitting]) > width:
            fitting -= 1
        yield _table(texts, numbers + metrics[:fitting], list(points["panel"]))
        metrics = metrics[fitting:]
    if any(cell.startswith(MAYBE) for cell in versus):
        yield Text(f"{MAYBE} the interval includes 1: may be no difference from the baseline", style="dim")
    if points.get("output_throughput_ci_low", points["n"].astype("float64") * float("nan")).notna().any():
        yield Text(INTERVALS, style="dim")
    if points.get("output_throughput_by_launches", points["n"].lt(0)).any():
        yield Text(FROM_LAUNCHES, style="dim")
    if any(f"{name}_ci_low" in points and points[f"{name}_ci_low"].notna().any() for name in REFERENCE_COLUMNS):
        yield Text(ANSWER_INTERVALS, style="dim")
    if left_out := len(layout.points) - len(points):
        yield Text(f"{left_out:,} more points are in summary.csv", style="dim")


def _width(columns: list[TextColumn]) -> int:
    return sum(column.width + GAP for column in columns)


def _identity(layout: Layout, points: pd.DataFrame) -> tuple[list[TextColumn], list[TextColumn], str]:
    """The columns that tell points apart, in words and in numbers, and the title: what all have in common."""
    texts, numbers, common = [TextColumn("engine", list(points["line"]))], [], []
    if points["panel"].nunique() > 1:
        texts.append(TextColumn("workload", list(points["panel"])))
    else:
        common.append(points["panel"].iloc[0])
    if layout.x:
        heading = layout.x_label.lower().replace(" ", "\n", 1)
        numbers.append(TextColumn(heading, [setting(value) for value in points[layout.x]]))
    counts = points.loc[points["n"] > 0, "n"]
    if counts.nunique() > 1:
        numbers.append(TextColumn("n", [str(n) for n in points["n"]]))
    else:
        common.append(f"{counts.iloc[0]} replicates" if counts.iloc[0] > 1 else "one replicate")
    if points["failed"].gt(0).any():
        numbers.append(TextColumn("requests\nfailed", [share_of_failures(point) for _, point in points.iterrows()]))
    else:
        common.append("no request failed")
    return texts, numbers, ", ".join(common)


def share_of_failures(point: "pd.Series[Any]") -> str:
    """`4 of 120`; an em dash without a result."""
    return f"{point['failed']:,.0f} of {point['requests'] + point['failed']:,.0f}" if point["n"] else "—"


def _table(texts: list[TextColumn], numbers: list[TextColumn], panels: list[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for column in texts:
        table.add_column(column.heading, overflow="fold", width=column.width)
    for column in numbers:
        table.add_column(column.heading, justify="right", no_wrap=True)
    for index, row in enumerate(zip(*(column.cells for column in texts + numbers), strict=True)):
        table.add_row(*map(Text, row), end_section=panels[index] != panels[min(index + 1, len(panels) - 1)])
    return table


def _is_bounded(points: pd.DataFrame, column: str) -> bool:
    """Return whether a quantile of some point falls on failed requests."""
    with_failures = points[points["failed"] > 0]
    return any(bound(point, column, 1.0) is not None for _, point in with_failures.iterrows())


def heading(points: pd.DataFrame, column: str) -> str:
    """The short name of a column; of a mean or maximum with failed requests also that it leaves them out."""
    return label(column).short + left_out(column, points)


def _metric(points: pd.DataFrame, column: str) -> TextColumn:
    labelled = label(column)
    lines = [*heading(points, column).split(), labelled.unit]
    return TextColumn("\n".join(lines), [_cell(point, column) for _, point in points.iterrows()])


def label(column: str) -> LabelledColumn:
    """The labels of a measured column."""
    labelled = labelled_column(column)
    assert labelled is not None
    return labelled


def _cell(point: "pd.Series[Any]", column: str) -> str:
    """Throughput with its interval, since that is compared, or why it has none; others by their mean."""
    if column == "output_throughput" and not point["n"]:
        return str(point["outcomes"]).split(",")[0].rpartition(" ")[0]
    known = bound(point, column, label(column).scale)
    if known is not None:
        return known[0] if known[0] != "—" else f"— {known[1].replace('more than ', '>')}"
    shown = label(column).shown(point[column])
    if column in REFERENCE_COLUMNS:
        return with_ends(estimate(point, column), shown, label(column))
    return with_interval(estimate(point, column), shown) if column == "output_throughput" else shown


def with_ends(figure: Estimate, shown: str, labelled: LabelledColumn) -> str:
    """`54.1 (46.0 to 61.9)`; without ends if it has none."""
    if math.isnan(figure.low):
        return shown
    return f"{shown} ({labelled.shown(figure.low)} to {labelled.shown(figure.high)})"


def with_interval(mean: Estimate, shown: str) -> str:
    """`538 ±3%`, of these launches; without the interval if it has none."""
    return f"{shown} {_half_width(mean.relative_half_width, mean.by_launches)}".rstrip()


def _half_width(half: float, by_launches: bool) -> str:
    if math.isnan(half):
        return ""
    return (f"±{half:.0%}" if half >= 0.01 else "±<1%") + BY_LAUNCHES * by_launches


def times(ratio: float) -> str:
    """A ratio to the baseline as text; an em dash without one."""
    return "—" if math.isnan(ratio) else f"{number(ratio)}×"


def _versus(point: "pd.Series[Any]") -> str:
    """The ratio to the baseline, marked if it may be none."""
    uncertain = point[f"{RATIO}_ci_low"] <= 1 <= point[f"{RATIO}_ci_high"]
    return (MAYBE if uncertain else "") + times(point[RATIO])


def _spreads(results: RunResults) -> Iterator[Text]:
    """A line for each figure: the spread between trials at a point, and what it is made of."""
    if results.components:
        yield Text("spread between trials of a point:", style="bold")
    for spread in results.components:
        line = Text("  ").append(spread.quantity.in_sentence, style="green")
        line.append(f" {spread.deviation:.1%}: {shares_text(spread)}")
        yield line.append(f" ({'; '.join(spread.notes)})" if spread.notes else "", style="dim")


def _formats(formats: dict[str, list[str]]) -> Iterator[Text]:
    """A line for each number format."""
    yield Text("number formats:", style="bold")
    for name, lines in formats.items():
        yield Text("  ").append(name, style="green").append(f": {listed(lines)}")


def _fits(fits: list[Fit]) -> Iterator[Text]:
    if fits:
        yield Text("\nlargest that fitted in memory:", style="bold")
    for fit in fits[:MOST_POINTS]:
        largest = "none" if fit.largest is None else f"{fit.size} {fit.largest:g}"
        line = Text("  ").append(f"{fit.line}, {fit.task}: ").append(largest, style="green")
        yield line.append(f" ({fit.detail})", style="dim")
    if len(fits) > MOST_POINTS:
        yield Text(f"  and {len(fits) - MOST_POINTS:,} more: see report.html")


def _failures(lost: Losses) -> Iterator[Text]:
    yield Text(f"\n{lost.trials:,} trial{'s have' if lost.trials > 1 else ' has'} no result:", style="bold")
    for loss in lost.shown:
        style = "yellow" if loss.outcome in UNMEASURED else "red"
        line = Text("  ").append(loss.outcome, style=style).append(f" x{loss.trials} {loss.line}: {loss.reason}")
        yield line.append(f"  [{loss.where}]", style="dim")
        if loss.log:
            yield Text(f"    log: {loss.log}", style="dim")
    if lost.left_out:
        yield Text(f"  {lost.left_out}")
