"""TTFT by turn: the median over the sessions of one trial per engine, at its largest completed load."""

import numpy as np
from matplotlib.figure import Figure

from analysis.load import Run
from analysis.plotting.by_turn import by_turn
from analysis.point_names import Layout
from sweep.base.records import Records
from sweep.numbers.chunks import Mask
from sweep.numbers.quantities.latency import ttft

POSITION = 23


def draw(run: Run, layout: Layout) -> Figure | None:
    """Draw a panel for each task; None if no trial has later turns."""
    return by_turn(run, layout, "Time to first token by turn", "TTFT p50 (ms)", {"": _median})


def _median(records: Records, turns: Mask) -> float:
    return float(np.median(ttft(records)[turns])) * 1e3
