"""Output throughput: tokens of successful requests over the duration, drain included."""

from matplotlib.figure import Figure

from analysis.load import Run
from analysis.plotting.curves import against_load
from analysis.plotting.layout import Layout

POSITION = 10


def draw(run: Run, layout: Layout) -> Figure | None:
    return against_load(run, layout, "output_throughput")
