"""What bought the gain in throughput: the factor of each setting or step, from the first figure to the last."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from analysis.explain.decomposition import Explanation, explanations
from analysis.explain.design import Unexplained
from analysis.explain.output import share_text
from analysis.load import Run
from analysis.plotting.figure_files import COLOURS, INK, MUTED, PANEL, panels
from analysis.plotting.layout import MOST_PANELS, Layout
from sweep.wording import number

POSITION = 12
GAIN, LOSS = COLOURS[2], COLOURS[1]
WIDTH, BAR_HEIGHT = PANEL[0] * 1.3, 0.3


def draw(run: Run, layout: Layout) -> Figure | None:
    try:
        explained = explanations(run, layout, ["output_throughput"])[:MOST_PANELS]
    except Unexplained:
        return None
    bars = max(len(each.parts) for each in explained) + 2
    titles = [each.task for each in explained]
    heading = f"What bought the gain: {explained[0].quantity.axis}"
    figure, axes = panels(titles, heading, [], size=(WIDTH, 0.35 + BAR_HEIGHT * bars))
    for each, (ax,) in zip(explained, axes, strict=True):
        _waterfall(ax, each)
    return figure


def _waterfall(ax: Axes, explanation: Explanation) -> None:
    """Bars from one cumulative figure to the next, with the interval of each gain at its end; a logarithmic axis."""
    scale = explanation.quantity.scale
    level = explanation.first * scale
    ax.barh(0, level, color=MUTED, height=0.6)
    labels = [explanation.begin]
    for row, part in enumerate(explanation.parts, 1):
        after = level * part.gain.value
        ax.barh(row, after - level, left=level, color=GAIN if after >= level else LOSS, height=0.6)
        if np.isfinite(part.gain.low):
            ax.plot([level * part.gain.low, level * part.gain.high], [row, row], color=INK, linewidth=1)
        ax.annotate(
            f"{part.gain.value:.2f}× ({share_text(part.share)})",
            (max(level, after), row),
            xytext=(4, 5),
            textcoords="offset points",
            fontsize=7,
        )
        labels.append(part.name)
        level = after
    ax.barh(len(labels), level, color=MUTED, height=0.6)
    labels.append("all together")
    ax.set_xscale("log")
    levels = np.cumprod([explanation.first * scale, *(part.gain.value for part in explanation.parts)])
    ax.set_xlim(levels.min() / 1.6, levels.max() * 2)
    for axis_of_ticks in (ax.xaxis.set_major_formatter, ax.xaxis.set_minor_formatter):
        axis_of_ticks(FuncFormatter(lambda value, _: number(value)))
    ax.tick_params(which="both", labelsize=7)
    ax.set_yticks(range(len(labels)), labels)
    ax.set(ylim=(len(labels) - 0.5, -0.5), xlabel=explanation.quantity.axis)
    ax.grid(visible=False, axis="y")
