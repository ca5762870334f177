"""KV cache at most over a trial, in GiB, of engines that report bytes instead of a share of a pool."""

import numpy as np
from matplotlib.figure import Figure

from analysis.load import Run, telemetry
from analysis.plotting.figure_files import PANELS_IN_A_ROW, legend_entry, line_style, panels
from analysis.plotting.layout import Layout

POSITION = 44
MOST_TELEMETRY = 200  # trials whose telemetry is read


def draw(run: Run, layout: Layout) -> Figure | None:
    """Draw the largest reading of a replicate of each point along the load; None without a load or readings."""
    if layout.x is None:
        return None
    trials = (
        layout.visible(run.ok).sort_values("replicate", kind="stable").drop_duplicates("point").head(MOST_TELEMETRY)
    )
    samples = telemetry(run.paths.out, list(trials["trial_id"]), damaged="skip") if len(trials) else None
    if samples is None or samples.empty or not (samples["series"] == "kv_cache_bytes").any():
        return None
    readings = samples[(samples["series"] == "kv_cache_bytes") & (samples["time"] >= 0)]
    peaks = readings.groupby(["trial_id", "time"])["value"].sum().groupby("trial_id").max() / 2**30
    trials = trials.assign(peak=trials["trial_id"].map(peaks)).dropna(subset=["peak", layout.x])
    lines = [line for line in layout.coloured if (trials["line"] == line).any()]
    titles = [title for title in layout.visible_panels if (trials["panel"] == title).any()]
    if not titles:
        return None
    handles = [legend_entry(layout, line) for line in lines]
    figure, axes = panels(titles, "KV cache at most", handles)
    for index, (title, (ax,)) in enumerate(zip(titles, axes, strict=True)):
        for line, group in trials[trials["panel"] == title].sort_values(layout.x).groupby("line", sort=False):
            ax.plot(group[layout.x].to_numpy(np.float64), group["peak"].to_numpy(), **line_style(layout, str(line)))
        ax.set(xlabel=layout.axis(title), ylabel="KV cache (GiB)" if index % PANELS_IN_A_ROW == 0 else "")
        ax.set_ylim(0, float(trials["peak"].max()) * 1.08)
    return figure
