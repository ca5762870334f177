"""Output throughput: tokens of successful requests over the duration, drain included."""

from matplotlib.figure import Figure

from analysis.curves import against_load
from analysis.layout import Layout
from analysis.load import Run

POSITION = 10


def draw(run: Run, layout: Layout) -> Figure | None:
    return against_load(run, layout, "output_throughput")
