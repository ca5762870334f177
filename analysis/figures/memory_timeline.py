"""KV cache (share of a pool, or bytes) and memory over one trial per engine, at its largest completed load.

Memory is the GPU's or, without a GPU, the memory of the engine's processes. A pool reserved at launch appears as a flat
line, however much of it is used.
"""

import math
from collections.abc import Iterable

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.load import Run, telemetry
from analysis.plotting.chart_style import legend_entry, line_style, panels
from analysis.plotting.chosen_trials import largest_load_trials
from analysis.plotting.timeline import GIB, STROKE, plot_series
from analysis.point_names import Layout

POSITION = 50
# Series, scale and label for engines that report a share of a pool, and for engines that report bytes.
_CACHE_ROWS = (("kv_cache_usage", 100.0, "KV-cache use (%)"), ("kv_cache_bytes", 1 / GIB, "KV cache (GiB)"))
_MEMORY_SERIES = ("gpu_memory_bytes", "process_memory_bytes")  # in order of preference
_NAMES = {"gpu": "GPU memory", "process": "Memory of processes", "reserved": "Reserved memory"}


def draw(run: Run, layout: Layout) -> Figure | None:
    trials = largest_load_trials(run, layout)
    samples = telemetry(run.paths.out, list(trials["trial_id"]), damaged="skip")
    if samples.empty:
        return None
    samples = samples[samples["time"] >= 0]
    present = set(samples["series"])
    rows = [row for row in _CACHE_ROWS if row[0] in present]
    if not rows and not present.intersection(_MEMORY_SERIES):
        return None  # an attached endpoint reports no memory
    titles = [panel for panel in layout.panels if panel in set(trials["panel"])]
    handles = [legend_entry(layout, line, **STROKE) for line in layout.lines if line in set(trials["line"])]
    labels = {_NAMES.get(label, _NAMES["process"]) for label in trials["memory_label"]}
    ylabels = [title for *_, title in rows] + [f"{labels.pop() if len(labels) == 1 else 'Memory'} (GiB)"]
    heading = "Memory over a trial, at the largest completed load"
    figure, axes = panels(titles, heading, handles, rows=1 + len(rows), ylabels=ylabels)
    for title, column in zip(titles, axes, strict=True):
        in_panel = trials[trials["panel"] == title]
        for _, trial in in_panel.iterrows():
            of_trial = samples[samples["trial_id"] == trial["trial_id"]]
            style = {**line_style(layout, trial["line"]), **STROKE}
            for ax, (series, scale, _) in zip(column, rows, strict=False):
                plot_series(ax, of_trial, series, style, scale)
            gpu = of_trial["series"].eq(_MEMORY_SERIES[0]).any()
            plot_series(column[-1], of_trial, _MEMORY_SERIES[0 if gpu else 1], style, 1 / GIB)
        loads = " / ".join(dict.fromkeys(layout.load(trial) for _, trial in in_panel.iterrows()))
        column[0].set_title(", ".join(filter(None, [title, loads])))
    _same_scales(axes)
    for column in axes:
        column[-1].set_xlabel("Time from the trial's start (s)")
    figure.align_ylabels()
    return figure


def _same_scales(axes: list[list[Axes]]) -> None:
    """Scale axes from zero. Each kind of memory has one scale in all panels; a panel's two axes share a time axis."""
    for row in zip(*axes, strict=True):
        top = _end(ax.dataLim.ymax for ax in row)
        for ax in row:
            ax.set_ylim(0, top * 1.08)
            ax.locator_params(axis="y", nbins=5)
            ax.grid(visible=False, axis="x")
    for column in axes:
        end = _end(ax.dataLim.xmax for ax in column)
        for ax in column:
            ax.set_xlim(0, end)


def _end(ends: Iterable[float]) -> float:
    """Return the largest end of an axis; 1 if only zeros or nothing is drawn."""
    return max((end for end in ends if math.isfinite(end) and end > 0), default=1.0)
