"""The report's tables of results: of points, of a ladder's steps, of the steady state, and of what fitted in memory."""

from collections.abc import Iterator
from html import escape
from typing import Any

import pandas as pd

from analysis.load import Run
from analysis.plotting.fitting import Fit
from analysis.plotting.layout import Layout
from analysis.quantities import LabelledColumn, number, quantity, setting
from analysis.report.page import table
from analysis.report.terminal import shown_columns, times, with_interval
from analysis.stats import CONFIDENCE
from analysis.summary import HEADLINE, STEADY, estimate
from analysis.tails import tails
from sweep.numbers.quantile import Quantile

LARGEST_TABLE = 400  # rows: the rest is in summary.csv


def results_table(run: Run, layout: Layout) -> Iterator[str]:
    """Every point with a result, a table for each panel."""
    points = layout.points[layout.points["n"] > 0]
    if points.empty:
        yield '<p class="bad">No trial has a result.</p>'
        return
    compared = "output_throughput_vs_baseline" in points
    quantities = [of for column in shown_columns(points) if (of := quantity(column))]
    headings = ["engine", *([escape(layout.x_label.lower())] if layout.x else []), "n", "requests"]
    headings += [f"{escape(of.short)}<br><span>{escape(of.unit)}</span>" for of in quantities]
    headings += ["throughput<br><span>× baseline</span>", "TTFT p50<br><span>× baseline</span>"] if compared else []
    of_requests = tails(run, layout)
    for panel, group in points.head(LARGEST_TABLE).groupby("panel", sort=False):
        yield f"<h3>{escape(str(panel))}</h3>"
        leading = {of.column: _leading(group[of.column], of) for of in quantities}
        rows = [
            [
                *(escape(point["line"]), *_abscissa(layout, point), str(point["n"]), f"{point['requests']:,.0f}"),
                *(_cell(point, of, leading[of.column], of_requests.get(index)) for of in quantities),
                *([_ratio(point, f"{column}_vs_baseline") for column in ("output_throughput", "ttft_p50")] * compared),
            ]
            for index, point in group.iterrows()
        ]
        yield table(headings, rows)
    single = " A TTFT p99 of one replicate has the interval over its requests in brackets." if of_requests else ""
    yield (
        f'<p class="note">Means over n replicates, of so many requests in all; ± is half the {CONFIDENCE:.0%} interval;'
        f" bold is the best of a table.{single} All columns are in summary.csv{_left_out(len(points))}.</p>"
    )


def _left_out(count: int) -> str:
    return f", with {count - LARGEST_TABLE} more points" if count > LARGEST_TABLE else ""


def _leading(values: "pd.Series[Any]", of: LabelledColumn) -> Any:
    if of.better is None:
        return None
    return values.max() if of.better == "higher" else values.min()


def _cell(point: "pd.Series[Any]", of: LabelledColumn, leading: Any, tail: Quantile | None) -> str:
    """A mean with its interval, or where a p99 is of one replicate with that over requests."""
    shown = of.shown(point[of.column])
    told = with_interval(estimate(point, of.column), shown) if of.column in HEADLINE else shown
    interval = told.removeprefix(shown).strip()
    if of.column == "ttft_p99" and tail is not None:
        interval = _brackets(of, tail)
    cell = f"{shown} <span>{escape(interval)}</span>"
    return f"<b>{cell}</b>" if point[of.column] == leading else cell


def _brackets(of: LabelledColumn, tail: Quantile) -> str:
    """`[70.1–98.5]`, or as far as there are samples enough for a bound: `[70.1 or more]`; empty without any."""
    if tail.low is None:
        return ""
    return f"[{of.shown(tail.low)} or more]" if tail.high is None else f"[{of.shown(tail.low)}–{of.shown(tail.high)}]"


def _ratio(point: "pd.Series[Any]", column: str) -> str:
    if pd.isna(point.get(column)):
        return "—"
    interval = f"{number(point[f'{column}_ci_low'])}–{number(point[f'{column}_ci_high'])}"
    return f"{times(point[column])} <span>{interval if '—' not in interval else ''}</span>"


def ladder_table(layout: Layout) -> Iterator[str]:
    """Each step against the one that it is on top of."""
    if "ladder_parent" not in layout.points or layout.points["ladder_parent"].isna().all():
        return
    points = layout.points[layout.points["ladder_parent"].notna()]
    headings = ["step", "on top of", "task", *([escape(layout.x_label.lower())] if layout.x else [])]
    headings += ["throughput<br><span>× parent</span>", "TTFT p50<br><span>× parent</span>"]
    rows = [
        [
            *(escape(point[key]) for key in ("line", "ladder_parent", "panel")),
            *_abscissa(layout, point),
            _bought(point),
            _ratio(point, "ttft_p50_vs_parent"),
        ]
        for _, point in points.head(LARGEST_TABLE).iterrows()
    ]
    yield table(headings, rows, text=3)
    left_out = _left_out(len(points))
    yield f'<p class="note">Ratios to the step below, with their intervals; all are in summary.csv{left_out}.</p>'


def _bought(point: "pd.Series[Any]") -> str:
    if point["n"] == 0:
        return "no result"
    ratio = _ratio(point, "output_throughput_vs_parent")
    return "the parent has no result here" if ratio == "—" else ratio


def steady_table(run: Run, layout: Layout) -> Iterator[str]:
    """The figures without start and drain, of the points with a window."""
    if "steady_share" not in layout.points:
        if len(run.ok):
            why = run.ok["steady_method"].dropna().mode()
            told = f" Most often: {escape(str(why.iloc[0]).removeprefix('none: '))}." if len(why) else ""
            yield f'<p class="note">No trial has a steady-state window: all figures are of whole runs.{told}</p>'
        return
    points = layout.points[layout.points["steady_share"] > 0]
    quantities = [of for column in STEADY if column in points and (of := quantity(column))]
    headings = ["engine", "task", *([escape(layout.x_label.lower())] if layout.x else []), "trials<br>with a window"]
    headings += [f"{escape(of.short)}<br><span>{escape(of.unit)}</span>" for of in quantities]
    rows = [
        [escape(point["line"]), escape(point["panel"]), *_abscissa(layout, point), f"{point['steady_share']:.0%}"]
        + [escape(with_interval(estimate(point, of.column), of.shown(point[of.column]))) for of in quantities]
        for _, point in points.head(LARGEST_TABLE).iterrows()
    ]
    yield table(headings, rows, text=2)
    yield (
        '<p class="note">Without what came before and after the steady state (docs/metrics.md says how that is found);'
        f" means over the trials with such a window. Others are in no row{_left_out(len(points))}.</p>"
    )


def _abscissa(layout: Layout, point: "pd.Series[Any]") -> list[str]:
    """The cell of the column that is the abscissa, where there is one."""
    return [setting(point[layout.x])] if layout.x else []


def fits_table(found: list[Fit]) -> Iterator[str]:
    """The largest batch or concurrency of each engine and task that ran out of memory."""
    if not found:
        return
    rows = [
        [
            escape(fit.line),
            escape(fit.task),
            "none" if fit.largest is None else f"{fit.size} {fit.largest:g}",
            escape(fit.told),
        ]
        for fit in found[:LARGEST_TABLE]
    ]
    yield table(["engine", "task", "fitted", "what did not"], rows, classes=["text", "text", "", "text wide"])
    left_out = f" Of {len(found):,} engines and tasks the first {LARGEST_TABLE} are shown."
    yield (
        '<p class="note">It fitted where a replicate has a result, none ran out of memory and none was left untried.'
        f"{left_out if len(found) > LARGEST_TABLE else ''}</p>"
    )
