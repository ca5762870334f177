"""A quantity against the load: a line per engine, a panel per workload. Where no number varies, a row per engine.

Small dots are replicates and whiskers the 95 % interval of their mean. An axis goes as far as the data do: a whisker
over two replicates may go anywhere, and is cut at the panel's edge. A cross on the axis is a point without a result.
Of more lines than can be told apart the others are grey, and means alone.
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
from analysis.plotting.plots import LETTER, MUTED, PANEL, PANELS_IN_A_ROW, handle, panels
from analysis.quantities import LabelledColumn, quantity
from analysis.stats import FloatArray

LOGARITHMIC_FROM = 30.0  # largest over smallest value from which a linear axis hides the small ones
BASE_2_FROM = 4.0  # the same for loads, which are mostly powers of two
GREY = "#b4bac2"
MOST_REPLICATES = 3000  # dots in a figure: of more, its means and whiskers are left


def against_load(run: Run, layout: Layout, column: str, also: str | None = None) -> Figure | None:
    """Means of a quantity along the load, or one under the other if no number varies; None if there are none.

    `also` is another column of the same unit, drawn dashed (hollow).
    """
    of, points = quantity(column), layout.points
    if of is None or column not in points or not points[column].notna().any():
        return None
    also = also if also in points else None
    replicates = layout.drawn(run.ok)
    draw = _curves if layout.x else _rows
    dots = replicates if len(replicates) <= MOST_REPLICATES else replicates.head(0)
    return draw(layout, of, also, dots, _values(run, layout, of, also))


def _curves(
    layout: Layout, of: LabelledColumn, also: str | None, replicates: pd.DataFrame, values: FloatArray
) -> Figure:
    lines = _with_results(layout, of)
    own = [line for line in lines if line in layout.distinct]
    handles = [handle(layout, line) for line in own]
    if len(own) < len(lines):
        handles.append(Line2D([], [], color=GREY, linewidth=1, label=f"{len(lines) - len(own)} others"))
    if also:
        handles.append(Line2D([], [], color=MUTED, linestyle="--", linewidth=1, label=_difference("dashed", of, also)))
    if (layout.points.loc[layout.points["line"].isin(lines), "n"] == 0).any():
        handles.append(Line2D([], [], color=MUTED, marker="x", linestyle="none", label="no result"))
    heading = f"{of.label} against {layout.x_label.lower()}{_panels_left_out(layout)}"
    figure, axes = panels(layout.drawn_panels, heading, handles)
    for index, (title, (ax,)) in enumerate(zip(layout.drawn_panels, axes, strict=True)):
        here = _points_of(layout, title)
        here = here.assign(_at=_at(layout, here)).sort_values("_at")
        if len(own) < len(lines):
            _others(ax, here[here["line"].isin(set(lines) - set(own))], of)
        for line in own:
            dots = replicates[(replicates["panel"] == title) & (replicates["line"] == line)]
            _curve(ax, layout, here[here["line"] == line], dots, of, also)
        _load_axis(ax, layout, title)
        ax.grid(visible=False, axis="x")
        ax.set_xlabel(layout.axis(title))
        _value_axis(ax, "y", values)
        if index % PANELS_IN_A_ROW == 0:
            ax.set_ylabel(of.axis)
    return figure


def _curve(
    ax: Axes, layout: Layout, here: pd.DataFrame, replicates: pd.DataFrame, of: LabelledColumn, also: str | None
) -> None:
    if here.empty:
        return
    look = handle(layout, here["line"].iloc[0])
    colour = look.get_color()
    x, mean = here["_at"].to_numpy(np.float64), _scaled(here, of.column, of)
    ax.plot(x, mean, color=colour, marker=look.get_marker(), linestyle=look.get_linestyle(), zorder=3)
    half = _scaled(here, f"{of.column}_ci_high", of) - mean
    ax.errorbar(x, mean, half, color=colour, linestyle="none", elinewidth=1, capsize=2.5, alpha=0.7, zorder=2)
    ax.scatter(
        _at(layout, replicates),
        _scaled(replicates, of.column, of),
        color=colour,
        s=9,
        alpha=0.45,
        linewidths=0,
        zorder=4,
    )
    if also:
        ax.plot(x, _scaled(here, also, of), color=colour, linestyle="--", linewidth=1, zorder=2)
    _crosses(ax, here, colour)


def _others(ax: Axes, here: pd.DataFrame, of: LabelledColumn) -> None:
    """The lines without a colour of their own."""
    curves = [
        np.column_stack([line["_at"].to_numpy(np.float64), _scaled(line, of.column, of)])
        for _, line in here.groupby("line", sort=False)
    ]
    ax.add_collection(LineCollection(curves, colors=GREY, linewidths=0.7, zorder=1))
    alone = np.concatenate([_alone(curve) for curve in curves]) if curves else np.empty((0, 2))
    ax.scatter(alone[:, 0], alone[:, 1], color=GREY, s=6, linewidths=0, zorder=1)
    _crosses(ax, here, GREY)


def _alone(curve: FloatArray) -> FloatArray:
    """The points (n, 2) that no segment reaches: a line through one point is not seen."""
    there = np.concatenate([[False], np.isfinite(curve[:, 1]), [False]])
    alone: FloatArray = curve[there[1:-1] & ~there[:-2] & ~there[2:]]
    return alone


def _crosses(ax: Axes, here: pd.DataFrame, colour: Any) -> None:
    lost = here.loc[here["n"] == 0, "_at"].to_numpy(np.float64)
    ax.plot(lost, np.zeros_like(lost), "x", color=colour, transform=ax.get_xaxis_transform(), clip_on=False, zorder=5)


def _rows(layout: Layout, of: LabelledColumn, also: str | None, replicates: pd.DataFrame, values: FloatArray) -> Figure:
    every = _with_results(layout, of)
    lines = [line for line in every if line in layout.distinct]
    handles = [Line2D([], [], color=MUTED, marker="o", linestyle="none", label="mean and replicates")]
    if also:
        hollow = Line2D([], [], color=MUTED, marker="o", linestyle="none", markerfacecolor="none")
        hollow.set_label(_difference("hollow", of, also))
        handles.append(hollow)
    size = (PANEL[0] * 1.3, 0.35 + 0.26 * len(lines))
    left_out = f" ({len(lines)} of {len(every)} rows)" if len(lines) < len(every) else ""
    heading = f"{of.label}{left_out}{_panels_left_out(layout)}"
    left = 0.3 + LETTER * max(map(len, lines), default=0)
    figure, axes = panels(layout.drawn_panels, heading, handles, size=size, left=left)
    for title, (ax,) in zip(layout.drawn_panels, axes, strict=True):
        here = _points_of(layout, title)
        for row, line in enumerate(lines):
            dots = replicates[(replicates["panel"] == title) & (replicates["line"] == line)]
            _row(ax, layout, here[here["line"] == line].assign(_at=float(row)), dots, of, also)
        ax.set_yticks(range(len(lines)), lines)
        ax.set_ylim(len(lines) - 0.5, -0.5)
        ax.grid(visible=False, axis="y")
        ax.set_xlabel(of.axis)
        _value_axis(ax, "x", values)
    return figure


def _panels_left_out(layout: Layout) -> str:
    drawn, all_ = len(layout.drawn_panels), len(layout.panels)
    return f" (the first {drawn} of {all_} panels)" if drawn < all_ else ""


def _row(
    ax: Axes, layout: Layout, here: pd.DataFrame, replicates: pd.DataFrame, of: LabelledColumn, also: str | None
) -> None:
    if here.empty:
        return
    look = handle(layout, here["line"].iloc[0])
    colour, marker = look.get_color(), look.get_marker()
    y, mean = here["_at"].to_numpy(np.float64), _scaled(here, of.column, of)
    ax.plot(mean, y, color=colour, marker=marker, linestyle="none", zorder=3)
    half = _scaled(here, f"{of.column}_ci_high", of) - mean
    ax.errorbar(mean, y, xerr=half, color=colour, linestyle="none", elinewidth=1, capsize=2.5, alpha=0.7, zorder=2)
    value = _scaled(replicates, of.column, of)
    ax.scatter(value, np.full_like(value, y[0]), color=colour, s=9, alpha=0.45, linewidths=0, zorder=4)
    if also:
        ax.plot(_scaled(here, also, of), y, color=colour, marker=marker, linestyle="none", markerfacecolor="none")


def _with_results(layout: Layout, of: LabelledColumn) -> list[str]:
    """The lines that have a value somewhere: an engine that cannot run here is told elsewhere."""
    found = set(layout.points.loc[layout.points[of.column].notna(), "line"])
    return [line for line in layout.lines if line in found]


def _difference(how: str, of: LabelledColumn, also: str) -> str:
    return f"{how}: {also.rpartition('_')[2]} (else {of.column.rpartition('_')[2]})"


def _points_of(layout: Layout, panel: str) -> pd.DataFrame:
    return layout.points[layout.points["panel"] == panel]


def _at(layout: Layout, here: pd.DataFrame) -> "pd.Series[float]":
    """Where points or trials of one panel stand: on its abscissa or, if it has none, one line beside the other."""
    at = here[layout.x].astype("float64")
    if at.notna().any():
        return at
    return here["line"].map({line: float(place) for place, line in enumerate(layout.lines)})


def _scaled(points: pd.DataFrame, column: str, of: LabelledColumn) -> FloatArray:
    scaled: FloatArray = points[column].to_numpy(np.float64) * of.scale
    return scaled


def _values(run: Run, layout: Layout, of: LabelledColumn, also: str | None) -> FloatArray:
    """Everything that is drawn but whiskers."""
    drawn = [_scaled(layout.points, column, of) for column in (of.column, also) if column]
    return np.concatenate([*drawn, _scaled(run.ok, of.column, of)])


def _load_axis(ax: Axes, layout: Layout, panel: str) -> None:
    """As far as the points of all panels with this abscissa go, so that they can be compared."""
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
    """From zero, or logarithmic if small values would vanish."""
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
