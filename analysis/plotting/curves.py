"""A quantity against the load: a line per engine, a panel per workload. If no number varies, a row per engine.

Small dots are replicates and whiskers the 95 % interval of their mean. Axes are scaled to the data: a whisker over two
replicates can be very long, and is clipped at the panel's edge. A cross on the axis is a point without a result.
If there are too many lines to distinguish, the rest is grey and shows means only.
"""

from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from analysis.load import Run
from analysis.plotting.layout import Layout
from analysis.plotting.plots import LETTER, MUTED, PANEL, PANELS_IN_A_ROW, legend_entry, panels
from analysis.quantities import LabelledColumn, labelled_column
from analysis.stats import FloatArray
from sweep.numbers.quantity import columns

LOGARITHMIC_FROM = 30.0  # ratio of the largest to the smallest value above which a linear axis hides the small ones
BASE_2_FROM = 4.0  # the same for loads, which are mostly powers of two
GREY = "#b4bac2"
MOST_REPLICATES = 3000  # dots in a figure; beyond that only means and whiskers are drawn


def against_load(run: Run, layout: Layout, column: str, also: str | None = None) -> Figure | None:
    """Draw the means of a quantity along the load, or as rows if no number varies; None if there are no values.

    `also` is another column of the same unit, drawn dashed (hollow).
    """
    shown, points = labelled_column(column), layout.points
    if shown is None or column not in points or not points[column].notna().any():
        return None
    also = also if also in points else None
    replicates = layout.visible(run.ok)
    draw = _curve_figure if layout.x else _row_figure
    dots = replicates if len(replicates) <= MOST_REPLICATES else replicates.head(0)
    return draw(layout, shown, also, dots, _values(run, layout, shown, also))


def _curve_figure(
    layout: Layout, shown: LabelledColumn, also: str | None, replicates: pd.DataFrame, values: FloatArray
) -> Figure:
    lines = _with_results(layout, shown)
    coloured = [line for line in lines if line in layout.coloured]
    handles = [legend_entry(layout, line) for line in coloured]
    if len(coloured) < len(lines):
        handles.append(Line2D([], [], color=GREY, linewidth=1, label=f"{len(lines) - len(coloured)} others"))
    if also:
        handles.append(
            Line2D([], [], color=MUTED, linestyle="--", linewidth=1, label=_difference("dashed", shown, also))
        )
    if (layout.points.loc[layout.points["line"].isin(lines), "n"] == 0).any():
        handles.append(Line2D([], [], color=MUTED, marker="x", linestyle="none", label="no result"))
    heading = f"{shown.label} against {layout.x_label.lower()}{_panels_left_out(layout)}"
    figure, axes = panels(layout.visible_panels, heading, handles)
    for index, (title, (ax,)) in enumerate(zip(layout.visible_panels, axes, strict=True)):
        points = _points_of(layout, title)
        points = points.assign(_at=_at(layout, points)).sort_values("_at")
        if len(coloured) < len(lines):
            _grey_curves(ax, points[points["line"].isin(set(lines) - set(coloured))], shown)
        for line in coloured:
            dots = replicates[(replicates["panel"] == title) & (replicates["line"] == line)]
            _curve(ax, layout, points[points["line"] == line], dots, shown, also)
        _load_axis(ax, layout, title)
        ax.grid(visible=False, axis="x")
        ax.set_xlabel(layout.axis(title))
        _value_axis(ax, "y", values)
        if index % PANELS_IN_A_ROW == 0:
            ax.set_ylabel(shown.axis)
    return figure


def _curve(
    ax: Axes, layout: Layout, points: pd.DataFrame, replicates: pd.DataFrame, shown: LabelledColumn, also: str | None
) -> None:
    if points.empty:
        return
    style = legend_entry(layout, points["line"].iloc[0])
    colour = style.get_color()
    x, mean = points["_at"].to_numpy(np.float64), _scaled(points, shown.column, shown)
    ax.plot(x, mean, color=colour, marker=style.get_marker(), linestyle=style.get_linestyle(), zorder=3)
    half = _scaled(points, f"{shown.column}_ci_high", shown) - mean
    ax.errorbar(x, mean, half, color=colour, linestyle="none", elinewidth=1, capsize=2.5, alpha=0.7, zorder=2)
    ax.scatter(
        _at(layout, replicates),
        _scaled(replicates, shown.column, shown),
        color=colour,
        s=9,
        alpha=0.45,
        linewidths=0,
        zorder=4,
    )
    if also:
        ax.plot(x, _scaled(points, also, shown), color=colour, linestyle="--", linewidth=1, zorder=2)
    _crosses(ax, points, colour)


def _grey_curves(ax: Axes, points: pd.DataFrame, shown: LabelledColumn) -> None:
    """Draw the lines without a colour of their own in grey."""
    curves = [
        np.column_stack([line["_at"].to_numpy(np.float64), _scaled(line, shown.column, shown)])
        for _, line in points.groupby("line", sort=False)
    ]
    ax.add_collection(LineCollection(curves, colors=GREY, linewidths=0.7, zorder=1))
    isolated = np.concatenate([_isolated_points(curve) for curve in curves]) if curves else np.empty((0, 2))
    ax.scatter(isolated[:, 0], isolated[:, 1], color=GREY, s=6, linewidths=0, zorder=1)
    _crosses(ax, points, GREY)


def _isolated_points(curve: FloatArray) -> FloatArray:
    """The points (n, 2) without a neighbour: a line through a single point would be invisible."""
    present = np.concatenate([[False], np.isfinite(curve[:, 1]), [False]])
    isolated: FloatArray = curve[present[1:-1] & ~present[:-2] & ~present[2:]]
    return isolated


def _crosses(ax: Axes, points: pd.DataFrame, colour: Any) -> None:
    missing = points.loc[points["n"] == 0, "_at"].to_numpy(np.float64)
    ax.plot(
        missing, np.zeros_like(missing), "x", color=colour, transform=ax.get_xaxis_transform(), clip_on=False, zorder=5
    )


def _row_figure(
    layout: Layout, shown: LabelledColumn, also: str | None, replicates: pd.DataFrame, values: FloatArray
) -> Figure:
    every = _with_results(layout, shown)
    lines = [line for line in every if line in layout.coloured]
    handles = [Line2D([], [], color=MUTED, marker="o", linestyle="none", label="mean and replicates")]
    if also:
        hollow = Line2D([], [], color=MUTED, marker="o", linestyle="none", markerfacecolor="none")
        hollow.set_label(_difference("hollow", shown, also))
        handles.append(hollow)
    size = (PANEL[0] * 1.3, 0.35 + 0.26 * len(lines))
    shown_rows = f" ({len(lines)} of {len(every)} rows)" if len(lines) < len(every) else ""
    heading = f"{shown.label}{shown_rows}{_panels_left_out(layout)}"
    margin = 0.3 + LETTER * max(map(len, lines), default=0)
    figure, axes = panels(layout.visible_panels, heading, handles, size=size, left=margin)
    for title, (ax,) in zip(layout.visible_panels, axes, strict=True):
        points = _points_of(layout, title)
        for row, line in enumerate(lines):
            dots = replicates[(replicates["panel"] == title) & (replicates["line"] == line)]
            _row(ax, layout, points[points["line"] == line].assign(_at=float(row)), dots, shown, also)
        ax.set_yticks(range(len(lines)), lines)
        ax.set_ylim(len(lines) - 0.5, -0.5)
        ax.grid(visible=False, axis="y")
        ax.set_xlabel(shown.axis)
        _value_axis(ax, "x", values)
    return figure


def _panels_left_out(layout: Layout) -> str:
    count, all_ = len(layout.visible_panels), len(layout.panels)
    return f" (the first {count} of {all_} panels)" if count < all_ else ""


def _row(
    ax: Axes, layout: Layout, points: pd.DataFrame, replicates: pd.DataFrame, shown: LabelledColumn, also: str | None
) -> None:
    if points.empty:
        return
    style = legend_entry(layout, points["line"].iloc[0])
    colour, marker = style.get_color(), style.get_marker()
    y, mean = points["_at"].to_numpy(np.float64), _scaled(points, shown.column, shown)
    ax.plot(mean, y, color=colour, marker=marker, linestyle="none", zorder=3)
    half = _scaled(points, f"{shown.column}_ci_high", shown) - mean
    ax.errorbar(mean, y, xerr=half, color=colour, linestyle="none", elinewidth=1, capsize=2.5, alpha=0.7, zorder=2)
    value = _scaled(replicates, shown.column, shown)
    ax.scatter(value, np.full_like(value, y[0]), color=colour, s=9, alpha=0.45, linewidths=0, zorder=4)
    if also:
        ax.plot(_scaled(points, also, shown), y, color=colour, marker=marker, linestyle="none", markerfacecolor="none")


def _with_results(layout: Layout, shown: LabelledColumn) -> list[str]:
    """The lines with a value at any point; engines that could not run are reported elsewhere."""
    present = set(layout.points.loc[layout.points[shown.column].notna(), "line"])
    return [line for line in layout.lines if line in present]


def _difference(how: str, shown: LabelledColumn, also: str) -> str:
    statistics = columns()
    return f"{how}: {statistics[also].name} (else {statistics[shown.column].name})"


def _points_of(layout: Layout, panel: str) -> pd.DataFrame:
    return layout.points[layout.points["panel"] == panel]


def _at(layout: Layout, points: pd.DataFrame) -> "pd.Series[float]":
    """The x coordinates of points or trials of one panel; if it has no x, one position per line."""
    at = points[layout.x].astype("float64")
    if at.notna().any():
        return at
    return points["line"].map({line: float(place) for place, line in enumerate(layout.lines)})


def _scaled(points: pd.DataFrame, column: str, shown: LabelledColumn) -> FloatArray:
    scaled: FloatArray = points[column].to_numpy(np.float64) * shown.scale
    return scaled


def _values(run: Run, layout: Layout, shown: LabelledColumn, also: str | None) -> FloatArray:
    """All values in the figure except whiskers."""
    columns = [_scaled(layout.points, column, shown) for column in (shown.column, also) if column]
    return np.concatenate([*columns, _scaled(run.ok, shown.column, shown)])


def _load_axis(ax: Axes, layout: Layout, panel: str) -> None:
    """Scale x to the points of all panels with the same x, so that panels can be compared."""
    if panel not in layout.x_labels:
        ax.set_xticks([])
        return
    same = layout.points["panel"].map(layout.x_labels) == layout.x_labels[panel]
    values = np.unique(layout.points.loc[same, layout.x].dropna().to_numpy(np.float64))
    if values[0] > 0 and values[-1] / values[0] >= BASE_2_FROM:
        ax.set_xscale("log", base=2)
        ax.set_xlim(values[0] / 1.25, values[-1] * 1.25)
    ax.xaxis.set_minor_locator(NullLocator())
    if len(values) <= 9:
        ax.xaxis.set_major_locator(FixedLocator(values.tolist()))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _value_axis(ax: Axes, direction: Literal["x", "y"], values: FloatArray) -> None:
    """Scale values from zero, or logarithmically if small ones would be invisible."""
    values = values[np.isfinite(values) & (values > 0)]
    if values.size == 0:
        return
    axis = ax.yaxis if direction == "y" else ax.xaxis
    if values.max() / values.min() > LOGARITHMIC_FROM:
        ax.set(**{f"{direction}scale": "log", f"{direction}lim": (values.min() / 1.6, values.max() * 1.6)})
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_minor_locator(NullLocator())
    else:
        ax.set(**{f"{direction}lim": (0, values.max() * 1.08)})
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if abs(value) >= 10 else f"{value:g}"))
