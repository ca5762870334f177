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

from analysis.layout import Layout, arrange
from analysis.load import Run, open_run
from analysis.quantities import Quantity, number, quantity
from analysis.stats import Estimate
from analysis.summary import HEADLINE, best, estimate, summarise

COLUMNS = (*HEADLINE, "kv_cache_usage_max", "memory_peak_bytes")
RATIO = "output_throughput_vs_baseline"
LARGEST_TABLE = 40  # points: the rest is in summary.csv
MOST_LOSSES = 40  # ways to fail


class Summary:
    """The results of a run for a rich console: as many metrics as its width has room for."""

    def __init__(self, run: Run) -> None:
        points = summarise(run)
        self.layout = arrange(run, points)
        self.losses = losses(run, self.layout)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if (self.layout.points["n"] > 0).any():
            yield _results(self.layout, options.max_width)
            yield _best(self.layout)
        else:
            yield Text("no trial has a result", style="bold red")
        if self.losses.trials:
            yield ""
            yield from _failures(self.losses)


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

    @property
    def width(self) -> int:
        return max(map(len, [*self.heading.split("\n"), *self.cells]))


def _results(layout: Layout, width: int) -> Table:
    """The points that have a result; metrics that the width has no room for are left out, the last ones first."""
    points = layout.points[layout.points["n"] > 0].head(LARGEST_TABLE)
    words = [Column("engine", list(points["line"])), Column("workload", list(points["panel"]))]
    numbers = [Column("n", [str(n) for n in points["n"]])]
    if layout.x:
        heading = layout.x_label.lower().replace(" ", "\n", 1)
        numbers.insert(0, Column(heading, [f"{value:g}" for value in points[layout.x]]))
    metrics = [_metric(points, column) for column in COLUMNS if column in points and points[column].notna().any()]
    ratio = [Column("vs\nbaseline", [times(value) for value in points[RATIO]])] if RATIO in points else []
    while len(metrics) > 1 and sum(column.width + 2 for column in words + numbers + metrics + ratio) > width:
        metrics.pop()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for column in words:
        table.add_column(column.heading, overflow="fold")
    for column in numbers + metrics + ratio:
        table.add_column(column.heading, justify="right", no_wrap=True)
    panels = list(points["panel"])
    for index, row in enumerate(zip(*(column.cells for column in words + numbers + metrics + ratio), strict=True)):
        table.add_row(*row, end_section=panels[index] != panels[min(index + 1, len(panels) - 1)])
    left_out = int((layout.points["n"] > 0).sum()) - len(points)
    table.caption = f"{left_out} more points are in summary.csv" if left_out else None
    return table


def _metric(points: pd.DataFrame, column: str) -> Column:
    of = _quantity(column)
    return Column(f"{of.short}\n{of.unit}", [_cell(point, column) for _, point in points.iterrows()])


def _quantity(column: str) -> Quantity:
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


def _best(layout: Layout) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    for found in best(layout.points):
        of = found.quantity
        value = f"{of.shown(found.estimate.value)} {of.unit}"
        table.add_row(
            Text(f"best {of.in_sentence}", style="bold"), Text(value, style="green"), layout.describe(found.point)
        )
    return table


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
            *map(str, (line, outcome, reason)),
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
        if layout.x is None:
            yield str(panel)
        else:
            values = sorted(trials[layout.x].dropna().unique())
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
