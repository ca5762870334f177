"""What a question's model predicts, for choosing: *predicted* bands of 90%, beside the means of what was measured."""

import textwrap
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.load import Run
from analysis.plotting.chart_style import COLOURS, MARKERS, MUTED, NARROWEST, panels
from analysis.plotting.drawing import value_axis
from analysis.point_names import Layout
from sweep.disk.run_files import read_questions

POSITION = 2
LETTERS = 60  # of a line of a point's name
BAND_HEIGHT = 0.3  # inches


def draw(run: Run, layout: Layout) -> Figure | None:
    """Draw the points that the model of a question predicts to be the best; None without a model."""
    asked = next((record for record in read_questions(run.paths).values() if record["predicted"]), None)
    if asked is None:
        return None
    predicted, measured = asked["predicted"], asked["measured"]
    mark: dict[str, Any] = {"color": COLOURS[0], "marker": MARKERS[0], "linestyle": "none"}
    handles = [Line2D([], [], color=MUTED, linewidth=5, alpha=0.4, label="predicted, 90% band")]
    handles.append(Line2D([], [], label="measured, mean", **mark))
    heading = f"Predicted {asked['quantity']}, which chooses launches and is no result"
    figure, ((ax,),) = panels([""], heading, handles, size=(NARROWEST, BAND_HEIGHT * (len(predicted) + 1)))
    for row, (name, (low, median, high)) in enumerate(predicted.items()):
        ax.hlines(row, low, high, color=MUTED, linewidth=5, alpha=0.4)
        ax.plot(median, row, color=MUTED, marker="|", linestyle="none")
        if name in measured:
            ax.plot(measured[name], row, **mark)
    ax.set(ylim=(len(predicted) - 0.5, -0.5), xlabel=f"{asked['quantity']} ({asked['unit']})")
    ax.set_yticks(range(len(predicted)), [textwrap.fill(name, LETTERS) for name in predicted], fontsize=7)
    value_axis(ax, "x", np.array([*predicted.values()], np.float64).ravel())
    return figure
