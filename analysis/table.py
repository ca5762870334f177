"""The table that the terminal shows at the end of a sweep: results, the best figure per metric, and what failed."""

import math
from collections.abc import Iterator, Sequence
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
from analysis.summary import HEADLINE, best, estimate, failures, summarise

COLUMNS = (*HEADLINE, "kv_cache_usage_max", "memory_peak_bytes")
LARGEST_TABLE = 40  # points: the rest is in summary.csv


class Summary:
    """The results of a run for a rich console: as many metrics as its width has room for."""

    def __init__(self, run: Run) -> None:
        points = summarise(run)
        self.layout = arrange(run, points)
        self.losses = list(losses(run, self.layout))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if (self.layout.points["n"] > 0).any():
            yield _results(self.layout, options.max_width)
            yield _best(self.layout)
        else:
            yield Text("no trial has a result", style="bold red")
        if self.losses:
            yield ""
            yield from _failures(self.losses)


def render_summary(folder: str | Path) -> Summary:
    """The results of the run in a folder, for a rich console.

    Raises:
        RunNotFound: if there is no trials.parquet.
        DamagedFile: if it is not whole.
    """
    return Summary(open_run(folder))


def _results(layout: Layout, width: int) -> Table:
    points = layout.points[layout.points["n"] > 0]
    compared = "output_throughput_vs_baseline" in points
    headings = [_quantity(column) for column in COLUMNS if column in points and points[column].notna().any()]
    x_heading = layout.x_label.lower().replace(" ", "\n", 1)
    words = {"engine": points["line"], "workload": points["panel"]}
    room = width - 4 - (10 if compared else 0) - (max(map(len, x_heading.split("\n"))) + 2 if layout.x else 0)
    room -= sum(max(len(heading), int(values.str.len().max())) + 2 for heading, values in words.items())
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for heading in words:
        table.add_column(heading, overflow="fold")
    if layout.x:
        table.add_column(x_heading, justify="right")
    table.add_column("n", justify="right")
    shown: list[str] = []
    for of in headings:
        room -= max(10 if of.column == "output_throughput" else 8, len(of.short), len(of.unit)) + 2
        if room >= 0 or not shown:
            shown.append(of.column)
            table.add_column(f"{of.short}\n{of.unit}", justify="right", no_wrap=True)
    if compared:
        table.add_column("vs\nbaseline", justify="right", no_wrap=True)
    previous = None
    for _, point in points.head(LARGEST_TABLE).iterrows():
        if previous is not None and point["panel"] != previous:
            table.add_section()
        previous = point["panel"]
        cells = [point["line"], point["panel"], *([f"{point[layout.x]:g}"] if layout.x else []), str(point["n"])]
        cells += [_cell(point, column) for column in shown]
        table.add_row(*cells, *([times(point["output_throughput_vs_baseline"])] if compared else []))
    if len(points) > LARGEST_TABLE:
        table.caption = f"{len(points) - LARGEST_TABLE} more points are in summary.csv"
    return table


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


def losses(run: Run, layout: Layout) -> Iterator[Loss]:
    """The trials that are no result, those alike together."""
    lost = failures(run)
    if lost.empty:
        return
    lost = lost.merge(layout.points[[*layout.keys, "line", "panel"]], on=layout.keys, how="left")
    asked = run.trials.merge(layout.points[[*layout.keys, "line"]], on=layout.keys)["line"].value_counts().to_dict()
    lost["reason"] = lost["reason"].fillna("no reason was noted")
    for (line, outcome, reason), group in lost.groupby(["line", "outcome", "reason"], sort=False):
        logs, tails = group["log"].dropna(), group["log_tail"].dropna()
        yield Loss(
            str(line),
            str(outcome),
            str(reason),
            len(group),
            "all its trials" if len(group) == asked[line] else "; ".join(_where(group, layout)),
            logs.iloc[0] if len(logs) else None,
            tails.iloc[0] if len(tails) else None,
        )


def _where(group: pd.DataFrame, layout: Layout) -> Iterator[str]:
    for panel, trials in group.groupby("panel"):
        if layout.x is None:
            yield str(panel)
        else:
            values = sorted(trials[layout.x].dropna().unique())
            yield f"{panel} ({layout.x_label.lower()} {', '.join(f'{value:g}' for value in values)})"


def _failures(lost: Sequence[Loss]) -> Iterator[Text]:
    count = sum(loss.trials for loss in lost)
    yield Text(f"{count} trial{'s have' if count > 1 else ' has'} no result:", style="bold")
    for loss in lost:
        style = "yellow" if loss.outcome in ("unavailable", "censored", "cancelled") else "red"
        line = Text("  ").append(loss.outcome, style=style).append(f" x{loss.trials} {loss.line}: {loss.reason}")
        yield line.append(f"  [{loss.where}]", style="dim")
        if loss.log:
            yield Text(f"    log: {loss.log}", style="dim")
