"""Time per output token after the first: the median of a trial, averaged over replicates."""

from matplotlib.figure import Figure

from analysis.load import Run
from analysis.plotting.curves import against_load
from analysis.plotting.layout import Layout

POSITION = 40


def draw(run: Run, layout: Layout) -> Figure | None:
    return against_load(run, layout, "tpot_p50", also="tpot_p99")
