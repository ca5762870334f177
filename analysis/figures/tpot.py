"""Time per output token after the first: the median of a trial, averaged over replicates."""

from matplotlib.figure import Figure

from analysis.curves import against_load
from analysis.layout import Layout
from analysis.load import Run

POSITION = 40


def draw(run: Run, layout: Layout) -> Figure | None:
    return against_load(run, layout, "tpot_p50", also="tpot_p99")
