"""Throughput over two settings, with a panel for each combination of further settings. A dash means no result."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.load import Run
from analysis.plotting.chart_style import GRID, INK, PANEL, panels
from analysis.point_names import Layout
from analysis.summary import key_columns
from sweep.base.wording import number

POSITION = 14
MOST_MAPS = 8
MOST_VALUES = 12  # values of a setting
CELL = (0.62, 0.34)  # inches


def draw(run: Run, layout: Layout) -> Figure | None:
    """Draw the two engine settings with the most values, or one setting and the load; None if neither pair exists."""
    points = layout.points
    if "output_throughput" not in points or "ladder" in points:
        return None
    settings = [key for key in key_columns(run) if points[key].nunique() > 1]
    knobs = _knobs(points, settings, layout.x)
    if len(knobs) < 2:
        return None
    same = {knob.rpartition(".")[2] for knob in knobs}  # load.rate equals rate
    others = [key for key in settings if key.rpartition(".")[2] not in same]
    groups = list(points.groupby(others, dropna=False, sort=False)) if others else [((), points)]
    maps = [(_title(key), group) for key, group in groups if group["output_throughput"].gt(0).sum() >= 3][:MOST_MAPS]
    if not maps:
        return None
    down, across = (sorted(points[knob].dropna().unique()) for knob in knobs)
    size = max(PANEL[0], CELL[0] * len(across)), max(1.0, CELL[1] * len(down))
    figure, axes = panels([title for title, _ in maps], "Output throughput (tokens/s) over two settings", [], size=size)
    for (_, group), (ax,) in zip(maps, axes, strict=True):
        _map(ax, group, knobs, down, across)
    return figure


def _knobs(points: pd.DataFrame, settings: list[str], x: str | None) -> list[str]:
    """Return the two engine settings with the most values that fit a map, or one setting and the x axis."""
    few = [key for key in settings if points[key].nunique() <= MOST_VALUES]
    knobs = [key for key in few if key.startswith("backend.")]
    knobs = sorted(knobs, key=lambda key: -points[key].nunique())[:2]
    return [*knobs, x] if len(knobs) == 1 and x and x not in knobs and points[x].nunique() <= MOST_VALUES else knobs


def _title(key: Any) -> str:
    return ", ".join(_shown(value) for value in key if pd.notna(value))


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _map(ax: Axes, points: pd.DataFrame, knobs: list[str], down: list[Any], across: list[Any]) -> None:
    """Draw the cells in shades of one colour, labelled with their values."""
    table = points.pivot_table(index=knobs[0], columns=knobs[1], values="output_throughput", aggfunc="max")
    values = table.reindex(index=down, columns=across).to_numpy(np.float64)
    # A mesh is drawn as shapes, since the report's policy forbids images within the SVG.
    edges = np.arange(len(across) + 1) - 0.5, np.arange(len(down) + 1) - 0.5
    ax.pcolormesh(*edges, np.ma.masked_invalid(values), cmap="Blues", vmin=0, vmax=np.nanmax(values) * 1.15)
    ax.set_ylim(len(down) - 0.5, -0.5)
    for row, of_row in enumerate(values):
        for column, value in enumerate(of_row):
            dark = np.isfinite(value) and value > 0.62 * np.nanmax(values)
            on_shade = "#ffffff" if dark else "#10141a"  # equal shades in dark mode
            ink = on_shade if np.isfinite(value) else INK
            ax.text(column, row, number(value), ha="center", va="center", fontsize=7.5, color=ink)
    ax.set_facecolor(GRID)
    for axis, names, values_of in ((ax.xaxis, knobs[1], across), (ax.yaxis, knobs[0], down)):
        axis.set_ticks(range(len(values_of)), [_shown(value) for value in values_of])
        axis.set_label_text(names.rpartition(".")[2].replace("_", " "))
    ax.tick_params(axis="y", labelleft=True)
    ax.grid(visible=False)
