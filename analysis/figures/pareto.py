"""Throughput per GPU against the speed that a user sees. The grey line joins the Pareto-optimal points."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.load import Run
from analysis.plotting.chart_style import MUTED, entries_without_interval, legend_entry, line_style, panels
from analysis.plotting.drawing import value_axis
from analysis.point_names import Layout
from analysis.statistics.intervals import FloatArray

POSITION = 5
THROUGHPUT, TPOT = "output_throughput", "tpot_p50"
OF_AN_INTERVAL = ("", "_ci_low", "_ci_high")


def draw(run: Run, layout: Layout) -> Figure | None:
    """Draw the points with both quantities, with a panel for each task; None if there are fewer than two."""
    points = layout.points
    if THROUGHPUT not in points or TPOT not in points:
        return None
    points = points[points[THROUGHPUT].gt(0) & points[TPOT].gt(0)]
    points = points[points["line"].isin(layout.coloured) & points["panel"].isin(layout.visible_panels)]
    if len(points) < 2:
        return None
    points, with_gpus = _per_gpu(run, layout, points)
    lines = [line for line in layout.coloured if (points["line"] == line).any()]
    titles = [title for title in layout.visible_panels if (points["panel"] == title).any()]
    handles = [legend_entry(layout, line) for line in lines]
    handles.append(Line2D([], [], color=MUTED, linewidth=4, alpha=0.4, label="not dominated"))
    handles += entries_without_interval(points, THROUGHPUT, TPOT)
    per_gpu = " per GPU" if with_gpus else ""
    figure, axes = panels(titles, f"Throughput{per_gpu} against speed", handles, ylabels=[f"tokens/s{per_gpu}"])
    for title, (ax,) in zip(titles, axes, strict=True):
        _panel(ax, layout, points[points["panel"] == title])
        value_axis(ax, "x", points["x"].to_numpy(np.float64))
        value_axis(ax, "y", points["y"].to_numpy(np.float64))
        ax.set_xlabel("tokens/s per user (1 / TPOT p50)")
    return figure


def _per_gpu(run: Run, layout: Layout, points: pd.DataFrame) -> tuple[pd.DataFrame, bool]:
    """Return the points with `x`, `y` and the ends of their intervals, and whether throughput is per GPU."""
    gpus = layout.placed(run.ok).groupby("point")["gpu_count"].first().reindex(points.index).fillna(0)
    count = gpus.clip(lower=1).to_numpy(np.float64)
    places = {f"y{end}": points[f"{THROUGHPUT}{end}"] / count for end in OF_AN_INTERVAL}
    places |= {"x": 1 / points[TPOT], "x_ci_low": 1 / points[f"{TPOT}_ci_high"]}
    places |= {"x_ci_high": 1 / points[f"{TPOT}_ci_low"]}
    return points.assign(**places), bool(gpus.gt(0).any())


def _panel(ax: Axes, layout: Layout, points: pd.DataFrame) -> None:
    """Draw each line along its loads, with intervals in both directions, over the Pareto front."""
    front = points[on_front(points["x"].to_numpy(np.float64), points["y"].to_numpy(np.float64))].sort_values("x")
    ax.plot(front["x"], front["y"], color=MUTED, linewidth=4, alpha=0.4, zorder=1)
    for line, curve in points.groupby("line", sort=False):
        if layout.x:
            curve = curve.sort_values(layout.x)
        x, y = curve["x"].to_numpy(np.float64), curve["y"].to_numpy(np.float64)
        whiskers: dict[str, Any] = {
            f"{name}err": np.abs([value - curve[f"{name}_ci_low"], curve[f"{name}_ci_high"] - value])
            for name, value in (("x", x), ("y", y))
        }
        ax.errorbar(x, y, **line_style(layout, str(line)), **whiskers, elinewidth=1, capsize=2.5, zorder=3)


def on_front(x: FloatArray, y: FloatArray) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    """Return which points are Pareto-optimal: no other point is at least as good in both values and better in one."""
    better = (x[:, None] >= x) & (y[:, None] >= y) & ((x[:, None] > x) | (y[:, None] > y))
    return np.asarray(~better.any(axis=0), np.bool_)
