"""KV-cache use and memory over one trial of each engine, at the largest load that it completed.

Memory is that of the GPU, or of the engine's processes if there is no GPU. A pool that an engine reserves at launch
shows as a flat line, independent of its use.
"""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.load import Run, telemetry
from analysis.plotting.figure_files import PANELS_IN_A_ROW, legend_entry, line_style, panels
from analysis.plotting.layout import Layout

POSITION = 50
GIB = 2.0**30
SPARSE = 20  # readings; fewer than this are drawn as dots
_MEMORY_SERIES = ("gpu_memory_bytes", "process_memory_bytes")  # in order of preference
_STROKE = {"marker": "", "linewidth": 1.2}  # else as in the other figures
_NAMES = {"gpu": "GPU memory", "process": "Memory of processes", "reserved": "Reserved memory"}


def draw(run: Run, layout: Layout) -> Figure | None:
    trials = _largest(run, layout)
    samples = telemetry(run.paths.out, list(trials["trial_id"]), damaged="skip") if len(trials) else pd.DataFrame()
    if samples.empty:
        return None
    samples = samples[samples["time"] >= 0]
    has_kv = bool((samples["series"] == "kv_cache_usage").any())
    if not has_kv and not samples["series"].isin(_MEMORY_SERIES).any():
        return None  # an attached endpoint reports no memory
    titles = [panel for panel in layout.panels if panel in set(trials["panel"])]
    handles = [legend_entry(layout, line, **_STROKE) for line in layout.lines if line in set(trials["line"])]
    figure, axes = panels(titles, "Memory over a trial, at the largest load completed", handles, rows=1 + has_kv)
    for title, column in zip(titles, axes, strict=True):
        for _, trial in trials[trials["panel"] == title].iterrows():
            of_trial = samples[samples["trial_id"] == trial["trial_id"]]
            stroke = {**line_style(layout, trial["line"]), **_STROKE}
            if has_kv:
                _plot_series(column[0], of_trial, "kv_cache_usage", 100.0, stroke)
            _plot_series(column[-1], of_trial, _memory_series(of_trial), 1 / GIB, stroke)
        column[0].set_title(", ".join([title, *_loads(trials[trials["panel"] == title], layout, title)]))
    _same_scales(axes)
    for index, column in enumerate(axes):
        column[-1].set_xlabel("Time from the trial's start (s)")
        if index % PANELS_IN_A_ROW == 0:
            column[0].set_ylabel("KV-cache use (%)")
            column[-1].set_ylabel(_axis_label(trials))
    figure.align_ylabels()
    return figure


def _largest(run: Run, layout: Layout) -> pd.DataFrame:
    """The first replicate at the largest completed load of each line and panel, with `line` and `panel`."""
    ok = layout.visible(run.ok)
    ok = ok.sort_values("replicate", kind="stable")
    if layout.x:
        ok = ok.sort_values(layout.x, ascending=False, kind="stable")
    return ok.drop_duplicates(["line", "panel"])


def _memory_series(samples: pd.DataFrame) -> str:
    read = set(samples["series"])
    return next((series for series in _MEMORY_SERIES if series in read), _MEMORY_SERIES[-1])


def _loads(trials: pd.DataFrame, layout: Layout, panel: str) -> list[str]:
    """The load of the trials: one value, or one for each line."""
    if panel not in layout.x_labels:
        return []
    by_line = trials.set_index("line")[layout.x]
    values = [f"{by_line[line]:g}" for line in layout.lines if line in by_line.index]
    return [f"{layout.x_labels[panel].lower()} {' / '.join(values if len(set(values)) > 1 else values[:1])}"]


def _same_scales(axes: list[list[Axes]]) -> None:
    """Scale axes from zero: each kind of memory alike in all panels, and time alike in both axes of a panel."""
    for row in zip(*axes, strict=True):
        top = max(ax.dataLim.ymax for ax in row)
        for ax in row:
            ax.set_ylim(0, top * 1.08 if top > 0 else 1)
            ax.locator_params(axis="y", nbins=5)
            ax.grid(visible=False, axis="x")
    for column in axes:
        end = max(ax.dataLim.xmax for ax in column)
        for ax in column:
            ax.set_xlim(0, end if end > 0 else 1)  # -inf where nothing is drawn


def _axis_label(trials: pd.DataFrame) -> str:
    labels = {_NAMES.get(label, _NAMES["process"]) for label in trials["memory_label"]}
    return f"{labels.pop() if len(labels) == 1 else 'Memory'} (GiB)"


def _plot_series(ax: Axes, samples: pd.DataFrame, series: str, scale: float, stroke: dict[str, Any]) -> None:
    """Plot one series over time, summed over the GPUs of an engine, which have the same times."""
    values = samples[samples["series"] == series].groupby("time")["value"].sum() * scale
    if len(values):
        marker = "." if len(values) < SPARSE else ""
        ax.plot(values.index.to_numpy(), values.to_numpy(), **{**stroke, "marker": marker})
