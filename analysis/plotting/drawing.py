"""Draws a quantity against the load: a line per engine, a panel per workload. If no number varies, it draws a row per
engine.

Small dots are replicates, and whiskers are the 95% interval of their mean. Axes are scaled to the data. A whisker over
two replicates can be very long, so it is cut at the panel's edge, with an arrowhead. A cross on the axis is a point
without a result. If there are too many lines to distinguish, only some are drawn.
"""

from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from analysis.load import Run
from analysis.plotting.chart_style import MUTED, PANEL, entries_without_interval, legend_entry, line_style, panels
from analysis.plotting.finding import established
from analysis.point_names import Layout
from analysis.quantities import LabelledColumn, labelled_column
from analysis.statistics.intervals import FloatArray
from analysis.studies.findings import KEY_COLUMNS
from analysis.studies.tables import study_of
from analysis.studies.uncertain import matching_points
from sweep.numbers.quantity import columns

LOGARITHMIC_FROM = 30.0  # largest value / smallest, above which a linear axis hides small ones
BASE_2_FROM = 4.0  # the same ratio for loads, which are mostly powers of two
_ALSO: dict[str, dict[str, Any]] = {  # style of the second quantity; the lines' dashes are thick and have markers
    "thin dashes": {"linestyle": "--", "linewidth": 1, "marker": ""},
    "hollow": {"linestyle": "none", "markerfacecolor": "none"},
}
PUBLISHED: dict[str, Any] = {"color": MUTED, "marker": "D", "linestyle": "none", "markerfacecolor": "none"}
MOST_REPLICATES = 3000  # maximum dots in a chart; with more, only means and whiskers are drawn


def against_load(run: Run, layout: Layout, column: str, also: str | None = None) -> Figure | None:
    """Draw the means of a quantity along the load, or as rows if no number varies; None if there are no values.

    `also` is another column of the same unit, drawn in thin dashes (hollow).
    """
    shown = labelled_column(column)
    if shown is None or column not in layout.points:
        return None
    present = set(layout.points.loc[layout.points[column].notna(), "line"])  # other failures appear outside the charts
    lines = [line for line in layout.coloured if line in present]
    if not lines:
        return None
    also = also if also in layout.points and layout.points[also].notna().any() else None
    replicates = layout.visible(run.ok)
    if len(replicates) > MOST_REPLICATES:
        replicates = replicates.head(0)
    size = PANEL if layout.x else (PANEL[0] * 1.3, 0.35 + 0.26 * len(lines))
    handles = [] if layout.x is None else [legend_entry(layout, line) for line in lines]
    handles += _explanations(layout, shown, also, lines)
    published = _published(run, layout, column) * shown.scale
    if len(published):
        handles.append(Line2D([], [], label="published by the study", **PUBLISHED))
    heading = established(layout, shown)
    ylabels, title = [shown.axis] if layout.x else [], heading or _heading(layout, shown)
    figure, axes = panels(layout.visible_panels, title, handles, size=size, ylabels=ylabels)
    figure.set_label(heading)
    means = [_scaled(layout.points[layout.points["line"].isin(lines)], name, shown) for name in (column, also) if name]
    values = np.concatenate([*means, _scaled(replicates, column, shown)])  # everything except whiskers
    for title, (ax,) in zip(layout.visible_panels, axes, strict=True):
        points, dots = (_in_panel(layout, frame, title, lines) for frame in (layout.points, replicates))
        for line in lines:
            _line(ax, layout, points[points["line"] == line], dots[dots["line"] == line], shown, also)
        if (marked := points[points.index.isin(published.index)]).size:
            ax.plot(marked["_at"], published[marked.index], **PUBLISHED)
        value_axis(ax, "y" if layout.x else "x", np.concatenate([values, published]))
        _mark_cut_whiskers(ax, layout, points, shown)
        if layout.x:
            load_axis(ax, layout, title)
        else:
            ax.set_yticks(range(len(lines)), lines)
            ax.set(ylim=(len(lines) - 0.5, -0.5), xlabel=shown.axis)
            ax.grid(visible=False, axis="y")
    return figure


def _published(run: Run, layout: Layout, column: str) -> "pd.Series[float]":
    """Return the study's value at each point along x; empty for the form without a GPU, which cannot be compared."""
    study = study_of(run.name) if layout.x and not run.experiment.get("replaced") else None
    table = study.tables.get(run.name) if study else None
    figures: dict[Any, float] = {}
    for row in table.rows if table else ():
        chosen = matching_points(layout.points, {key: row[key] for key in KEY_COLUMNS if key in row})
        if len(chosen) == 1 and column in row:
            figures[chosen.index[0]] = float(row[column])
    return pd.Series(figures, dtype="float64")


def curve(column: str, also: str | None = None, of_ladder: bool = False) -> Callable[[Run, Layout], Figure | None]:
    """Return a chart's `draw`: `against_load`, or with `of_ladder` only for a run whose steps share task and load."""
    return lambda run, layout: (
        against_load(run, layout, column, also) if not of_ladder or "ladder" in run.axes else None
    )


def _heading(layout: Layout, shown: LabelledColumn) -> str:
    heading = f"{shown.label} against {layout.x_label.lower()}" if layout.x else shown.label
    if len(layout.coloured) < len(layout.lines):
        heading += f" ({len(layout.coloured)} of {len(layout.lines)} lines)"
    if len(layout.visible_panels) < len(layout.panels):
        heading += f" (the first {len(layout.visible_panels)} of {len(layout.panels)} panels)"
    return heading


def _explanations(layout: Layout, shown: LabelledColumn, also: str | None, lines: list[str]) -> Iterator[Line2D]:
    """Return the legend entries that apply to all lines."""
    if layout.x is None:
        yield Line2D([], [], color=MUTED, marker="o", linestyle="none", label="mean and replicates")
    if also:
        look = "thin dashes" if layout.x else "hollow"
        names = [columns()[name].name or columns()[name].quantity.label or name for name in (also, shown.column)]
        label = f"{look}: {names[0]} (else {names[1]})"
        yield Line2D([], [], **{"color": MUTED, "marker": "o", **_ALSO[look], "label": label})
    points = layout.points[layout.points["line"].isin(lines) & layout.points["panel"].isin(layout.visible_panels)]
    yield from entries_without_interval(points, shown.column)
    if layout.x and (layout.points.loc[layout.points["line"].isin(lines), "n"] == 0).any():
        yield Line2D([], [], color=MUTED, marker="x", linestyle="none", label="no result")


def _in_panel(layout: Layout, frame: pd.DataFrame, panel: str, lines: list[str]) -> pd.DataFrame:
    """Return a panel's points or trials, sorted by position (`_at`) along x or, without x, by line."""
    frame = frame[(frame["panel"] == panel) & frame["line"].isin(lines)]
    at = frame[layout.x].astype("float64") if layout.x else None
    if at is None or not at.notna().any():
        at = frame["line"].map({line: float(index) for index, line in enumerate(lines)})
    return frame.assign(_at=at).sort_values("_at", kind="stable")


def _line(
    ax: Axes, layout: Layout, points: pd.DataFrame, replicates: pd.DataFrame, shown: LabelledColumn, also: str | None
) -> None:
    """Draw a line's means, intervals, replicates, and crosses for points without a result. Without x, draw a row."""
    if points.empty:
        return
    style: dict[str, Any] = line_style(layout, points["line"].iloc[0])

    def along(frame: pd.DataFrame, column: str) -> tuple[FloatArray, FloatArray]:
        at, value = frame["_at"].to_numpy(np.float64), _scaled(frame, column, shown)
        return (at, value) if layout.x else (value, at)

    value, low, high = (_scaled(points, f"{shown.column}{end}", shown) for end in ("", "_ci_low", "_ci_high"))
    whiskers = np.abs([value - low, high - value])
    look = {**style, "yerr": whiskers} if layout.x else {**style, "xerr": whiskers, "linestyle": "none"}
    ax.errorbar(*along(points, shown.column), **look, elinewidth=1, capsize=2.5, zorder=3)
    ax.scatter(*along(replicates, shown.column), color=style["color"], s=9, alpha=0.45, linewidths=0, zorder=4)
    if also:
        ax.plot(*along(points, also), **{**style, **_ALSO["thin dashes" if layout.x else "hollow"], "zorder": 2})
    if layout.x:
        missing = points.loc[points["n"] == 0, "_at"].to_numpy(np.float64)
        at_bottom: dict[str, Any] = {"transform": ax.get_xaxis_transform(), "clip_on": False, "zorder": 5}
        ax.plot(missing, np.zeros_like(missing), "x", color=style["color"], **at_bottom)


def _mark_cut_whiskers(ax: Axes, layout: Layout, points: pd.DataFrame, shown: LabelledColumn) -> None:
    """Draw an arrowhead wherever a whisker continues beyond the panel's edge."""
    least, most = ax.get_ylim() if layout.x else ax.get_xlim()
    low, high = (_scaled(points, f"{shown.column}_ci_{end}", shown) for end in ("low", "high"))
    colours = np.array([line_style(layout, line)["color"] for line in points["line"]], dtype=object)
    for edge, cut, marker in ((0, low < least, "v" if layout.x else "<"), (1, high > most, "^" if layout.x else ">")):
        if not cut.any():
            continue
        at = points.loc[cut, "_at"].to_numpy(np.float64)
        x, y = (at, np.full_like(at, edge)) if layout.x else (np.full_like(at, edge), at)
        transform = ax.get_xaxis_transform() if layout.x else ax.get_yaxis_transform()
        ax.scatter(x, y, s=14, c=list(colours[cut]), marker=marker, transform=transform, clip_on=False, zorder=5)


def _scaled(points: pd.DataFrame, column: str, shown: LabelledColumn) -> FloatArray:
    return points[column].to_numpy(np.float64) * shown.scale


def load_axis(ax: Axes, layout: Layout, panel: str) -> None:
    """Label x and scale it to the panel's points."""
    ax.grid(visible=False, axis="x")
    ax.set_xlabel(layout.axis(panel))
    if panel not in layout.x_labels:
        ax.set_xticks([])
        return
    values = np.unique(layout.points.loc[layout.points["panel"] == panel, layout.x].dropna().to_numpy(np.float64))
    if values[0] > 0 and values[-1] / values[0] >= BASE_2_FROM:
        ax.set_xscale("log", base=2)
        ax.set_xlim(values[0] / 1.25, values[-1] * 1.25)
    ax.xaxis.set_minor_locator(NullLocator())
    if len(values) <= 9:
        ax.xaxis.set_major_locator(FixedLocator(values.tolist()))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def value_axis(ax: Axes, direction: Literal["x", "y"], values: FloatArray) -> None:
    """Scale values from zero, or logarithmically if small values would be invisible."""
    values = values[np.isfinite(values) & (values > 0)]
    if values.size == 0:
        return
    axis = ax.yaxis if direction == "y" else ax.xaxis
    if values.max() / values.min() > LOGARITHMIC_FROM:
        ax.set(**{f"{direction}scale": "log", f"{direction}lim": (values.min() / 1.6, values.max() * 1.6)})
        logarithmic_ticks(axis)
    else:
        ax.set(**{f"{direction}lim": (0, values.max() * 1.08)})
        ax.locator_params(axis=direction, nbins=5)
        axis.set_major_formatter(FuncFormatter(_tick_text))


def logarithmic_ticks(axis: Axis) -> None:
    """Label a logarithmic axis with a few plain numbers that do not overlap."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(_tick_text))


def _tick_text(value: float, _: int | None) -> str:
    return f"{value:,.0f}" if abs(value) >= 10 else f"{value:g}"
