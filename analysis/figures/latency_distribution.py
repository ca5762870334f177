"""Cumulative distribution of latency, for one trial per engine at its largest completed load.

A failed request is treated as slower than any other, so the curve of a trial with failures does not reach 100%.
"""

import numpy as np
from matplotlib.figure import Figure

from analysis.load import Run
from analysis.plotting.chart_style import legend_entry, line_style, panels
from analysis.plotting.chosen_trials import chosen_records
from analysis.plotting.drawing import LOGARITHMIC_FROM, logarithmic_ticks
from analysis.point_names import Layout
from sweep.numbers.chunks import Floats
from sweep.numbers.quantities.latency import e2el, ttft
from sweep.numbers.selection import measured, succeeded

POSITION = 22
DRAWN_LATENCIES = {"TTFT (ms)": ttft, "End-to-end latency (ms)": e2el}
MOST_STEPS = 400  # steps in a curve


def draw(run: Run, layout: Layout) -> Figure | None:
    """Draw TTFT above end-to-end latency, with a panel for each task; None if there are no requests."""
    curves: dict[str, dict[str, list[Floats]]] = {}
    for trial, records in chosen_records(run, layout):
        if trial["client_stamp_source"] == "engine":  # the engine's timestamps exclude the path to the client
            continue
        mask, answered = measured(records), succeeded(records)
        of_trial = [np.where(answered, latency(records), np.inf)[mask] for latency in DRAWN_LATENCIES.values()]
        if mask.any() and all(np.isfinite(values).any() for values in of_trial):
            curves.setdefault(str(trial["panel"]), {})[str(trial["line"])] = of_trial
    if not curves:
        return None
    curves = {panel: curves[panel] for panel in layout.visible_panels if panel in curves}
    lines = [line for line in layout.coloured if any(line in of_panel for of_panel in curves.values())]
    handles = [legend_entry(layout, line, marker="") for line in lines]
    heading, ylabels = "Latency of every request, at the largest load completed", ["% of requests"] * 2
    figure, axes = panels(list(curves), heading, handles, rows=2, ylabels=ylabels)
    for of_panel, column in zip(curves.values(), axes, strict=True):
        for row, (ax, label) in enumerate(zip(column, DRAWN_LATENCIES, strict=True)):
            for line, of_trial in of_panel.items():
                at, share = _curve(of_trial[row] * 1e3)
                ax.step(at, share, where="post", **{**line_style(layout, line), "marker": "", "linewidth": 1.4})
            finite = np.concatenate([values[row][np.isfinite(values[row])] for values in of_panel.values()])
            if finite.min() > 0 and finite.max() / finite.min() > LOGARITHMIC_FROM:
                ax.set_xscale("log")
                logarithmic_ticks(ax.xaxis)
            ax.set(xlabel=label, ylim=(0, 102))
    return figure


def _curve(values: Floats) -> tuple[Floats, Floats]:
    """Return the sorted latencies and the percentage of requests at or below each, thinned to MOST_STEPS."""
    ordered = np.sort(values)
    share = 100 * np.arange(1, len(ordered) + 1) / len(ordered)
    ordered, share = ordered[np.isfinite(ordered)], share[np.isfinite(ordered)]
    steps = np.unique(np.linspace(0, len(ordered) - 1, min(MOST_STEPS, len(ordered))).astype(np.int64))
    return ordered[steps], share[steps]
