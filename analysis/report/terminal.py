"""The table that the terminal shows at the end of a sweep: results, the best figure per metric, and what failed."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from analysis.formats import number_formats
from analysis.load import Run, open_run
from analysis.plotting.fitting import Fit, fits
from analysis.plotting.layout import Layout, arrange, listed
from analysis.quantities import LabelledColumn, number, quantity, setting
from analysis.stats import Estimate
from analysis.summary import HEADLINE, best, caveats, estimate, planned_trials, summarise
from analysis.warnings import doubts

COLUMNS = (*HEADLINE, "kv_cache_usage_max", "memory_peak_bytes")
BATCH_COLUMNS = ("output_throughput", "batch_latency_mean", "output_tokens", "memory_peak_bytes", "agreement")
RATIO = "output_throughput_vs_baseline"
MAYBE = "≈"  # before a ratio whose interval includes 1
GAP = 2  # characters between columns
FEW_POINTS = 20  # up to which all metrics are shown, one table under the other
LARGEST_TABLE = 40  # points: the rest is in summary.csv
MOST_LOSSES = 40  # ways to fail


class Summary:
    """The results of a run for a rich console: as many metrics as its width has room for."""

    def __init__(self, run: Run) -> None:
        points = summarise(run)
        self.layout = arrange(run, points)
        self.losses = losses(run, self.layout)
        self.fits = fits(run, self.layout)
        self.formats = number_formats(run, self.layout)
        self.doubts = doubts(run, self.layout)
        self.trials, self.planned = len(run.trials), planned_trials(run)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.trials < self.planned:
            yield Text(
                f"{self.planned - self.trials:,} of {self.planned:,} planned trials have not run", style="yellow"
            )
        if (self.layout.points["n"] > 0).any():
            yield from _results(self.layout, options.max_width)
            yield _best(self.layout)
            yield from _formats(self.formats)
        else:
            yield Text("no trial has a result", style="bold red")
        yield from _fits(self.fits)
        if self.losses.trials:
            yield ""
            yield from _failures(self.losses)
        if self.doubts:
            yield ""
            yield Text(f"reasons for doubt, with their remedies in report.html: {len(self.doubts)}", style="yellow")


def render_summary(folder: str | Path) -> Summary:
    """The results of the run in a folder, for a rich console.

    Raises:
        RunNotFound: if there is no trials.parquet.
        DamagedFile: if it is not whole.
    """
    return Summary(open_run(folder))


class Column(NamedTuple):
    """A column of the table; its heading may have two lines."""

    heading: str
    cells: list[str]
    narrow: bool = False  # as narrow as its longest word

    @property
    def width(self) -> int:
        cells = [word for cell in self.cells for word in cell.split()] if self.narrow else self.cells
        return max(map(len, [*self.heading.split("\n"), *cells]))


def shown_columns(points: pd.DataFrame) -> list[str]:
    """The metrics that a table of some points shows, the most telling first: of lockstep batches those of a batch."""
    wanted = dict.fromkeys([*BATCH_COLUMNS, *COLUMNS] if _is_lockstep(points) else COLUMNS)
    return [column for column in wanted if column in points and points[column].notna().any()]


def _is_lockstep(points: pd.DataFrame) -> bool:
    return "batch_latency_mean" in points and bool(points["batch_latency_mean"].notna().any())


def _results(layout: Layout, width: int) -> Iterator[Table | Text]:
    """The points that have a result.

    Metrics that the width has no room for follow in a table of their own, or if there are many points, by their name
    alone; those of a batch are always shown.
    """
    points = layout.points[layout.points["n"] > 0].head(LARGEST_TABLE)
    columns = shown_columns(points)
    needed = sum(column in BATCH_COLUMNS for column in columns) if _is_lockstep(points) else 1
    metrics = [_metric(points, column) for column in columns]
    versus = [_versus(point) for _, point in points.iterrows()] if RATIO in points else []
    if versus:
        metrics.insert(needed, Column("vs\nbaseline", versus))
    words, numbers, title = _identity(layout, points)
    yield Text(title, style="bold")
    if _width(words + numbers + metrics) > width:  # names are broken between words, never within one
        words = [column._replace(narrow=True) for column in words]
    while metrics and (needed > 0 or len(points) <= FEW_POINTS):
        count = 1
        while count < len(metrics) and _width(words + numbers + metrics[: count + 1]) <= width:
            count += 1
        yield _table(words, numbers + metrics[:count], list(points["panel"]))
        metrics, needed = metrics[count:], needed - count
    if any(cell.startswith(MAYBE) for cell in versus):
        yield Text(f"{MAYBE} the interval includes 1: may be no difference from the baseline", style="dim")
    if metrics:
        names = ", ".join(column.heading.replace("\n", " ") for column in metrics)
        yield Text(f"in report.html, or a wider terminal: {names}", style="dim")
    left_out = int((layout.points["n"] > 0).sum()) - len(points)
    if left_out:
        yield Text(f"{left_out:,} more points are in summary.csv", style="dim")


def _width(columns: list[Column]) -> int:
    return sum(column.width + GAP for column in columns)


def _identity(layout: Layout, points: pd.DataFrame) -> tuple[list[Column], list[Column], str]:
    """The columns that tell points apart, in words and in numbers, and the title: what all have in common."""
    words, numbers = [Column("engine", list(points["line"]))], []
    common = []
    if points["panel"].nunique() > 1:
        words.append(Column("workload", list(points["panel"])))
    else:
        common.append(points["panel"].iloc[0])
    if layout.x:
        heading = layout.x_label.lower().replace(" ", "\n", 1)
        numbers.append(Column(heading, [setting(value) for value in points[layout.x]]))
    if points["n"].nunique() > 1:
        numbers.append(Column("n", [str(n) for n in points["n"]]))
    else:
        common.append(f"{points['n'].iloc[0]} replicates" if points["n"].iloc[0] > 1 else "one replicate")
    return words, numbers, ", ".join(common)


def _table(words: list[Column], numbers: list[Column], panels: list[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for column in words:
        table.add_column(column.heading, overflow="fold", width=column.width)
    for column in numbers:
        table.add_column(column.heading, justify="right", no_wrap=True)
    for index, row in enumerate(zip(*(column.cells for column in words + numbers), strict=True)):
        table.add_row(*row, end_section=panels[index] != panels[min(index + 1, len(panels) - 1)])
    return table


def _metric(points: pd.DataFrame, column: str) -> Column:
    of = _quantity(column)
    return Column("\n".join([*of.short.split(), of.unit]), [_cell(point, column) for _, point in points.iterrows()])


def _quantity(column: str) -> LabelledColumn:
    of = quantity(column)
    assert of is not None
    return of


def _cell(point: "pd.Series[Any]", column: str) -> str:
    """Throughput with its interval, since that is what is compared; others by their mean."""
    shown = _quantity(column).shown(point[column])
    return with_interval(estimate(point, column), shown) if column == "output_throughput" else shown


def with_interval(of: Estimate, shown: str) -> str:
    """`538 ±3 %`; without the interval where there is none."""
    half = of.relative_half_width
    if math.isnan(half):
        return shown
    return f"{shown} ±{half:.0%}" if half >= 0.01 else f"{shown} ±<1%"


def times(ratio: float) -> str:
    """How many times the baseline; an em dash if it was not compared."""
    return "—" if math.isnan(ratio) else f"{number(ratio)}×"


def _versus(point: "pd.Series[Any]") -> str:
    """The ratio to the baseline, marked if it may be none."""
    open_to_doubt = point[f"{RATIO}_ci_low"] <= 1 <= point[f"{RATIO}_ci_high"]
    return (MAYBE if open_to_doubt else "") + times(point[RATIO])


def _best(layout: Layout) -> Table:
    table = _listing()
    for found in best(layout.points):
        of = found.quantity
        value = f"{with_interval(found.estimate, of.shown(found.estimate.value))} {of.unit}"
        where = Text(layout.describe(found.point))
        where.append("".join(f", {caveat}" for caveat in caveats(found.point)), style="yellow")
        table.add_row(Text(f"best {of.in_sentence}", style="bold"), Text(value, style="green"), where)
    return table


def _listing() -> Table:
    """Rows without lines: what, how much, and in the rest of the width, which may break between words, where."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for _ in range(2):
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _formats(formats: dict[str, list[str]]) -> Iterator[Text]:
    """A line for each number format."""
    yield Text("number formats:", style="bold")
    for name, lines in formats.items():
        yield Text("  ").append(name, style="green").append(f": {listed(lines)}")


def _fits(found: list[Fit]) -> Iterator[Text | str]:
    if found:
        yield ""
        yield Text("largest that fitted in memory:", style="bold")
    for fit in found[:LARGEST_TABLE]:
        largest = "none" if fit.largest is None else f"{fit.size} {fit.largest:g}"
        line = Text("  ").append(f"{fit.line}, {fit.task}: ").append(largest, style="green")
        yield line.append(f" ({fit.told})", style="dim")
    if len(found) > LARGEST_TABLE:
        yield Text(f"  and {len(found) - LARGEST_TABLE:,} more: see report.html")


class Loss(NamedTuple):
    """Trials of one engine that failed in the same way."""

    line: str
    outcome: str
    reason: str
    trials: int
    where: str  # which workloads and loads
    log: str | None
    log_tail: str | None


class Losses(NamedTuple):
    """The trials that are no result, those alike together; of more kinds than anyone reads the most frequent."""

    shown: list[Loss]
    other_kinds: int
    other_trials: int

    @property
    def trials(self) -> int:
        return sum(loss.trials for loss in self.shown) + self.other_trials

    @property
    def left_out(self) -> str:
        """What is not shown, in a sentence; empty if nothing is."""
        if not self.other_kinds:
            return ""
        return f"and {self.other_trials:,} trials more, in {self.other_kinds:,} other ways: see trials.parquet"


def losses(run: Run, layout: Layout) -> Losses:
    """How trials failed, in the order of the plan."""
    kind = ["line", "outcome", "reason"]
    lost = layout.placed(run.not_ok)
    lost["reason"] = lost["reason"].fillna("no reason was noted")
    sizes = lost.value_counts(kind, sort=False)
    most = sizes.nlargest(MOST_LOSSES)
    lost = lost.merge(most.index.to_frame(index=False), on=kind)
    asked = layout.trials["line"].value_counts().to_dict()
    shown = [
        Loss(
            line=str(line),
            outcome=str(outcome),
            reason=str(reason),
            trials=len(group),
            where="all its trials" if len(group) == asked[line] else "; ".join(_where(group, layout)),
            log=next(_logs(run, group), None),
            log_tail=next(iter(group["log_tail"].dropna()), None),
        )
        for (line, outcome, reason), group in lost.groupby(kind, sort=False)
    ]
    return Losses(shown, len(sizes) - len(most), int(sizes.sum() - most.sum()))


def _logs(run: Run, trials: pd.DataFrame) -> Iterator[str]:
    """The engines' logs of some trials, as far as there are any."""
    tried = trials.dropna(subset="attempt")
    for deployment_id, attempt in zip(tried["deployment_id"], tried["attempt"], strict=True):
        path = run.paths.engine_log(deployment_id, attempt)
        if path.is_file():
            yield path.as_posix()


def _where(group: pd.DataFrame, layout: Layout) -> Iterator[str]:
    for panel, trials in group.groupby("panel"):
        values = [] if layout.x is None else sorted(trials[layout.x].dropna().unique())
        if not values:
            yield str(panel)
        else:
            yield f"{panel} ({layout.x_label.lower()} {', '.join(f'{value:g}' for value in values)})"


def _failures(lost: Losses) -> Iterator[Text]:
    yield Text(f"{lost.trials:,} trial{'s have' if lost.trials > 1 else ' has'} no result:", style="bold")
    for loss in lost.shown:
        style = "yellow" if loss.outcome in ("unavailable", "censored", "cancelled") else "red"
        line = Text("  ").append(loss.outcome, style=style).append(f" x{loss.trials} {loss.line}: {loss.reason}")
        yield line.append(f"  [{loss.where}]", style="dim")
        if loss.log:
            yield Text(f"    log: {loss.log}", style="dim")
    if lost.left_out:
        yield Text(f"  {lost.left_out}")
