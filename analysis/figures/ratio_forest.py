"""Throughput as a ratio to the baseline, with its 95% interval. If the interval contains 1, it may be a tie."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from analysis.load import Run
from analysis.plotting.chart_style import GAPS, LETTER, MUTED, PANEL, entries_without_interval, line_style, panels
from analysis.plotting.finding import FEWEST_REQUESTS
from analysis.point_names import Layout
from sweep.base.wording import count, number

POSITION = 16
THROUGHPUT_RATIO = "output_throughput_vs_baseline"
MOST_RATIOS = 30  # ratios in a panel
ROW_HEIGHT = 0.2  # inches


def draw(run: Run, layout: Layout) -> Figure | None:
    """Draw a row for each point with a ratio and a panel for each task; None if there is no baseline."""
    points = layout.points
    if THROUGHPUT_RATIO not in points:
        return None
    points = points[points[THROUGHPUT_RATIO].gt(0) & points["line"].isin(layout.coloured)]
    titles = [title for title in layout.visible_panels if (points["panel"] == title).any()]
    if not titles:
        return None
    if layout.x:
        points = points.sort_values(layout.x, kind="stable")
    groups = [points[points["panel"] == title].head(MOST_RATIOS) for title in titles]
    rows = max(map(len, groups))
    size = (PANEL[0], 0.3 + ROW_HEIGHT * rows)
    bare = entries_without_interval(pd.concat(groups), THROUGHPUT_RATIO)
    established, reference = _finding(points), ", ".join(map(str, run.baseline.values())) or "the baseline"
    heading = f"{established} of {reference}" if established else "Throughput against the baseline's"
    figure, axes = panels(titles, heading, bare, size=size, own_rows=True)
    figure.set_label(heading if established else "")
    names = [_name(layout, point) for group in groups for _, point in group.iterrows()]
    figure.subplots_adjust(wspace=(GAPS[0] + LETTER * max(map(len, names))) / size[0])
    for group, (ax,) in zip(groups, axes, strict=True):
        _rows(ax, layout, group, rows)
        ax.set_xlabel(f"times {reference}")
    return figure


def _finding(points: pd.DataFrame) -> str:
    """Describe the line that differs from the baseline at the most points, with its ratios; empty if none differs."""
    low, high = points[f"{THROUGHPUT_RATIO}_ci_low"], points[f"{THROUGHPUT_RATIO}_ci_high"]
    apart = points[(low.gt(1) | high.lt(1)) & (points["requests"] + points["failed"]).ge(FEWEST_REQUESTS)]
    if apart.empty:
        return ""
    line = apart["line"].mode()[0]
    ratios = apart.loc[apart["line"] == line, THROUGHPUT_RATIO]
    total = count(int((points["line"] == line).sum()), "point")
    ends = " to ".join(dict.fromkeys(f"{number(ratio)}×" for ratio in (ratios.min(), ratios.max())))
    return f"{line}: at {len(ratios)} of {total} {ends} the throughput"


def _rows(ax: Axes, layout: Layout, points: pd.DataFrame, rows: int) -> None:
    """Draw the ratios around a line at 1. The axis is logarithmic, so 2x and 0.5x are equally far from the line."""
    ax.axvline(1, color=MUTED, linewidth=1)
    for place, (_, point) in enumerate(points.iterrows()):
        style = line_style(layout, str(point["line"]))
        low, high = float(point[f"{THROUGHPUT_RATIO}_ci_low"]), float(point[f"{THROUGHPUT_RATIO}_ci_high"])
        if np.isfinite([low, high]).all():
            ax.plot([low, high], [place, place], color=style["color"], linewidth=1.4, solid_capstyle="butt")
        ax.plot([point[THROUGHPUT_RATIO]], [place], color=style["color"], marker=style["marker"], linestyle="none")
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_yticks(range(len(points)), [_name(layout, point) for _, point in points.iterrows()])
    ax.set_ylim(rows - 0.5, -0.5)
    ax.grid(visible=False, axis="y")


def _name(layout: Layout, point: "pd.Series[Any]") -> str:
    return ", ".join(filter(None, (str(point["line"]), layout.load(point))))
