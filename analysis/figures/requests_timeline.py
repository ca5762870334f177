"""Requests that an engine reports as running and, dashed, as waiting, over one trial at the largest completed load."""

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.load import Run, telemetry
from analysis.plotting.chart_style import MUTED, legend_entry, line_style, panels
from analysis.plotting.chosen_trials import largest_load_trials
from analysis.plotting.timeline import STROKE, plot_series
from analysis.point_names import Layout

POSITION = 51
_SERIES = {"requests_running": "-", "requests_waiting": "--"}  # with the dash of each series


def draw(run: Run, layout: Layout) -> Figure | None:
    """Draw a panel for each task; None if no engine reports its queue."""
    trials = largest_load_trials(run, layout)
    samples = telemetry(run.paths.out, list(trials["trial_id"]), damaged="skip")
    if samples.empty:
        return None
    samples = samples[samples["series"].isin(_SERIES) & (samples["time"] >= 0)]
    trials = trials[trials["trial_id"].isin(samples["trial_id"])]
    titles = [panel for panel in layout.visible_panels if panel in set(trials["panel"])]
    if not titles:
        return None
    handles = [legend_entry(layout, line, **STROKE) for line in layout.lines if line in set(trials["line"])]
    if (samples["series"] == "requests_waiting").any():
        handles.append(Line2D([], [], color=MUTED, linestyle="--", label="waiting (else running)"))
    heading = "Requests in the engine over a trial, at the largest completed load"
    figure, axes = panels(titles, heading, handles, ylabels=["requests"])
    for title, (ax,) in zip(titles, axes, strict=True):
        for _, trial in trials[trials["panel"] == title].iterrows():
            of_trial = samples[samples["trial_id"] == trial["trial_id"]]
            for series, dash in _SERIES.items():
                style = {**line_style(layout, str(trial["line"])), **STROKE, "linestyle": dash}
                plot_series(ax, of_trial, series, style)
        ax.set_xlabel("Time from the trial's start (s)")
        ax.set_xlim(left=0)
    top = max(1.0, *(ax.dataLim.ymax for (ax,) in axes))
    for (ax,) in axes:
        ax.set_ylim(0, top * 1.08)
    return figure
