"""Cost per million output tokens: price per hour over output throughput."""

from matplotlib.figure import Figure

from analysis.load import Run
from analysis.plotting.curves import against_load
from analysis.plotting.layout import Layout

POSITION = 30


def draw(run: Run, layout: Layout) -> Figure | None:
    return against_load(run, layout, "cost_per_million_tokens")
