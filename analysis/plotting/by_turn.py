"""Draws figures of sessions by turn: a panel per task with a line per engine, from a trial at its largest load."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis.load import Run
from analysis.plotting.chart_style import MUTED, legend_entry, line_style, panels
from analysis.plotting.chosen_trials import chosen_records
from analysis.point_names import Layout
from sweep.base.records import Records
from sweep.numbers.chunks import Mask
from sweep.numbers.selection import measured, succeeded

FEWEST = 5  # answered turns with a number, to draw it
Curves = Mapping[str, Callable[[Records, Mask], float]]
DASHINGS: tuple[dict[str, Any], ...] = ({}, {"linestyle": "--", "linewidth": 1, "marker": ""})
DOTTED: dict[str, Any] = {"linestyle": ":", "linewidth": 1}  # for a value of all turns together


def by_turn(run: Run, layout: Layout, title: str, axis: str, curves: Curves, level: str = "") -> Figure | None:
    """Draw the curves, by name, against the number of the turn; None if no trial has later turns.

    The second curve has thin dashes. `level` is a column with one value for all turns, drawn as a dotted line.
    """
    drawn: dict[str, dict[str, tuple[list[int], list[list[float]], float]]] = {}
    for trial, records in chosen_records(run, layout):
        turns, chosen = np.asarray(records.turn), measured(records) & succeeded(records)
        numbers = [turn for turn in np.unique(turns[chosen]).tolist() if np.sum(turns[chosen] == turn) >= FEWEST]
        if len(numbers) > 1 and min(numbers) == 0:
            values = [[value(records, chosen & (turns == turn)) for turn in numbers] for value in curves.values()]
            height = float(trial[level]) if level and pd.notna(trial.get(level)) else np.nan
            drawn.setdefault(str(trial["panel"]), {})[str(trial["line"])] = numbers, values, height
    drawn = {panel: drawn[panel] for panel in layout.visible_panels if panel in drawn}
    everything = [cell for of_panel in drawn.values() for _, values, _ in of_panel.values() for cell in values]
    if not drawn or not np.isfinite(np.concatenate(everything)).any():
        return None
    lines = [line for line in layout.coloured if any(line in of_panel for of_panel in drawn.values())]
    handles = [legend_entry(layout, line) for line in lines]
    if level:
        handles += [Line2D([], [], color=MUTED, label=key, **look) for key, look in zip(curves, DASHINGS, strict=True)]
        handles.append(Line2D([], [], color=MUTED, label="the engine's counter, all turns", **DOTTED))
    figure, axes = panels(list(drawn), f"{title}, at the largest load completed", handles, ylabels=[axis])
    for [ax], of_panel in zip(axes, drawn.values(), strict=True):
        for line, (numbers, values, height) in of_panel.items():
            style = line_style(layout, line)
            for heights, look in zip(values, DASHINGS, strict=False):
                ax.plot([number + 1 for number in numbers], heights, **{**style, **look})
            if np.isfinite(height):
                ax.axhline(height, color=style["color"], **DOTTED)
        ax.set_xlabel("turn of the session")
        ax.set_ylim(bottom=0)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure
