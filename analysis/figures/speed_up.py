"""Output throughput over the baseline's at the same task and load, with its interval; 1 is as fast."""

from matplotlib.figure import Figure

from analysis.load import Run
from analysis.plotting.drawing import against_load
from analysis.point_names import Layout
from analysis.quantities import LabelledColumn

POSITION = 15
COLUMN = "output_throughput_vs_baseline"
SHOWN = LabelledColumn(COLUMN, "Speed-up over the baseline", "Speed-up", "×", 1.0, "higher")


def draw(run: Run, layout: Layout) -> Figure | None:
    """Without a varying load the table's ratios say as much."""
    return against_load(run, layout, COLUMN, shown=SHOWN) if layout.x else None
