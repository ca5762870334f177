"""Tokens/s over one trial per engine, at its largest completed load. The line is bold while in steady state."""

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.load import Run
from analysis.plotting.chart_style import MUTED, legend_entry, line_style, panels
from analysis.plotting.chosen_trials import chosen_records
from analysis.point_names import Layout
from sweep.numbers.chunks import Floats, as_floats, tokens_per_bin
from sweep.numbers.selection import measured, succeeded

POSITION = 48
TIME_BINS = 60  # bins in a trial


def draw(run: Run, layout: Layout) -> Figure | None:
    """Draw a panel for each task; None if no trial has chunks with tokens."""
    courses: dict[str, list[tuple[pd.Series[Any], Floats, Floats]]] = {}
    for trial, records in chosen_records(run, layout):
        mask = measured(records) & succeeded(records)
        if not mask.any() or not len(records.chunk_us):
            continue
        begin = float(np.nanmin(as_floats(records.sent)[mask]))
        width = float(trial["duration"]) / TIME_BINS
        if not (math.isfinite(width) and width > 0):
            continue
        tokens = tokens_per_bin(records, mask, begin, width, TIME_BINS) / width
        times = np.asarray(begin + width * (np.arange(TIME_BINS) + 0.5), np.float64)
        courses.setdefault(str(trial["panel"]), []).append((trial, times, tokens))
    if not courses:
        return None
    courses = {panel: courses[panel] for panel in layout.visible_panels if panel in courses}
    lines = [
        line
        for line in layout.coloured
        if any(trial["line"] == line for each in courses.values() for trial, *_ in each)
    ]
    handles = [legend_entry(layout, line, marker="") for line in lines]
    if any(pd.notna(trial["steady_begin"]) for each in courses.values() for trial, *_ in each):
        handles.append(Line2D([], [], color=MUTED, linewidth=2.4, label="steady state"))
    heading = "Output over one trial, at the largest completed load"
    figure, axes = panels(list(courses), heading, handles, ylabels=["tokens/s"])
    top = max(float(tokens.max()) for each in courses.values() for _, _, tokens in each)
    for of_panel, (ax,) in zip(courses.values(), axes, strict=True):
        for trial, times, tokens in of_panel:
            stroke = {**line_style(layout, str(trial["line"])), "marker": ""}
            ax.plot(times, tokens, **{**stroke, "linewidth": 0.9, "alpha": 0.6})
            if pd.notna(trial["steady_begin"]) and pd.notna(trial["steady_end"]):
                inside = (times >= trial["steady_begin"]) & (times <= trial["steady_end"])
                ax.plot(times[inside], tokens[inside], **{**stroke, "linewidth": 2.4})
        ax.set(ylim=(0, top * 1.08), xlabel="Time from the trial's start (s)")
        ax.set_xlim(left=0)
    return figure
