"""TTFT by turn: the median over the sessions of one trial per engine, at its largest completed load."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.load import Run
from analysis.plotting.chart_style import PANELS_IN_A_ROW, legend_entry, line_style, panels
from analysis.plotting.chosen_trials import chosen_records
from analysis.point_names import Layout
from sweep.numbers.chunks import Floats
from sweep.numbers.quantities.latency import ttft
from sweep.numbers.selection import measured, succeeded

POSITION = 23
FEWEST = 5  # answered turns for a median


def draw(run: Run, layout: Layout) -> Figure | None:
    """Draw a panel for each task; None if no trial has later turns."""
    curves: dict[str, dict[str, tuple[list[int], Floats]]] = {}
    for trial, records in chosen_records(run, layout):
        turns, chosen = np.asarray(records.turn), measured(records) & succeeded(records)
        numbers = [turn for turn in np.unique(turns[chosen]).tolist() if np.sum(turns[chosen] == turn) >= FEWEST]
        if len(numbers) > 1 and min(numbers) == 0:
            medians = np.array([np.median(ttft(records)[chosen & (turns == turn)]) for turn in numbers])
            curves.setdefault(str(trial["panel"]), {})[str(trial["line"])] = (numbers, medians * 1e3)
    if not curves:
        return None
    curves = {panel: curves[panel] for panel in layout.visible_panels if panel in curves}
    lines = [line for line in layout.coloured if any(line in of_panel for of_panel in curves.values())]
    handles = [legend_entry(layout, line) for line in lines]
    title = "Time to first token by turn, at the largest load completed"
    figure, axes = panels(list(curves), title, handles)
    for index, ([ax], of_panel) in enumerate(zip(axes, curves.values(), strict=True)):
        for line, (numbers, medians) in of_panel.items():
            ax.plot([number + 1 for number in numbers], medians, **line_style(layout, line))
        ax.set(xlabel="turn of the session", ylabel="TTFT p50 (ms)" if index % PANELS_IN_A_ROW == 0 else "")
        ax.set_ylim(bottom=0)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure
