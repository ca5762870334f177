"""Time to first token, from the scheduled send: the median of a trial, averaged over replicates."""

from matplotlib.figure import Figure

from analysis.load import Run
from analysis.plotting.curves import against_load
from analysis.plotting.layout import Layout

POSITION = 20


def draw(run: Run, layout: Layout) -> Figure | None:
    return against_load(run, layout, "ttft_p50", also="ttft_p99")
