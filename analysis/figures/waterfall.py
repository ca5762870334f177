"""What caused the gain in throughput, TTFT and cost: the factor of each setting or step, from first to last."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from analysis.explain.decomposition import Explanation, explanations
from analysis.explain.design import Unexplained
from analysis.explain.output import END, factor, share_text
from analysis.load import Run
from analysis.plotting.chart_style import COLOURS, GAPS, INK, MUTED, PANEL, panels
from analysis.point_names import Layout
from sweep.base.wording import number

POSITION = 9
GAIN, LOSS = COLOURS[2], COLOURS[1]
WIDTH, BAR_HEIGHT = PANEL[0] * 1.3, 0.3
SCREENFUL = 9.8  # inches: the 13 steps of serving_ladder on three tasks
REACH = 1.5  # at either end, intervals may lengthen the axis by this factor


def draw(run: Run, layout: Layout) -> Figure | None:
    try:
        explained = [each for each in explanations(run, layout) if np.isfinite(each.first)]
    except Unexplained:
        return None
    if not any(len(each.parts) + len(each.branches) > 1 for each in explained):  # one setting is the whole gain
        return None
    quantities = list(dict.fromkeys(each.quantity.column for each in explained))
    designs, names = _by_design(explained), _row_names(explained)
    size = (WIDTH, 0.35 + BAR_HEIGHT * len(names))
    rows = max(1, int((SCREENFUL + GAPS[1]) // (size[1] + GAPS[1])))  # of panels, two in a row
    quantities = quantities[: max(1, rows // math.ceil(len(designs) / 2))]
    columns = designs[: 2 * (rows // len(quantities))]
    titles = [next(iter(column.values())).task for column in columns]
    established = _finding(explained[0])
    heading = established or "What bought the gain"
    heading += f" (the first {len(columns)} of {len(designs)} tasks)" if len(columns) < len(designs) else ""
    figure, axes = panels(titles, heading, [], rows=len(quantities), size=size)
    figure.set_label(established)
    for column, of_design in zip(columns, axes, strict=True):
        for quantity, ax in zip(quantities, of_design, strict=True):
            if quantity in column:
                _waterfall(ax, column[quantity], names)
            else:
                ax.set_visible(False)
    return figure


def _finding(explanation: Explanation) -> str:
    """Describe the total gain and its largest part; empty if there may be no gain."""
    total = explanation.total
    if not total.low > 1 and not total.high < 1:
        return ""
    sign = np.sign(np.log(total.value))
    largest = max(explanation.parts, key=lambda part: sign * np.log(part.gain.value))
    gain = f"{explanation.quantity.short} {factor(total)} that of {explanation.begin}"
    return f"{explanation.task}: {gain}, the largest part by {largest.name} ({factor(largest.gain)})"


def _by_design(explained: Sequence[Explanation]) -> list[dict[str, Explanation]]:
    """Return each design's explanations by quantity."""
    designs: list[dict[str, Explanation]] = []
    task = None
    for each in explained:
        if each.task != task or each.quantity.column in designs[-1]:
            designs.append({})
        designs[-1][each.quantity.column] = each
        task = each.task
    return designs


def _row_names(explained: Sequence[Explanation]) -> list[str]:
    """Return the distinct names of all bars: panels share the axis, and a task may have only some of the steps."""
    names = [[each.begin, *_with_branches(each)] for each in explained]
    names.sort(key=len, reverse=True)  # the longest branch gives the order
    return [*dict.fromkeys(name for of_one in names for name in of_one), END]


def _waterfall(ax: Axes, explanation: Explanation, names: list[str]) -> None:
    """Draw bars from one cumulative value to the next on a logarithmic axis, with each gain's interval at its end.

    `names` labels the rows; the explanation may have only some of them.
    """
    scale, is_lower_better = explanation.quantity.scale, explanation.quantity.better == "lower"
    level = explanation.first * scale
    levels = {explanation.begin: level}
    limits = _limits(explanation)
    ax.barh(names.index(explanation.begin), level, color=MUTED, height=0.6)
    for part in explanation.parts:
        row = names.index(part.name)
        after = level * part.gain.value
        ax.barh(row, after - level, left=level, color=LOSS if (after < level) != is_lower_better else GAIN, height=0.6)
        certain = bool(np.isfinite(part.gain.low) and np.isfinite(part.gain.high))
        if certain:
            _interval(ax, level * part.gain.low, level * part.gain.high, row, limits)
        share = f" ({share_text(part.share)})" if np.isfinite(part.share.value) else ""
        ax.annotate(
            f"{part.gain.value:.3g}×{share}{'' if certain else ', no interval'}",
            (max(level, after), row),
            xytext=(4, 5),
            textcoords="offset points",
            fontsize=7,
        )
        level = levels[part.name] = after
    for branch in explanation.branches:
        if (below := levels.get(branch.change)) is not None:
            levels[branch.name] = below * branch.gain.value
            _branch(ax, below, levels[branch.name], names.index(branch.name))
    ax.barh(names.index(END), level, color=MUTED, height=0.6)
    ax.set_xlim(*limits)  # set first, since a scale derives limits, and equal levels give none
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    ax.tick_params(labelsize=7)
    ax.set_yticks(range(len(names)), names)
    ax.set(ylim=(len(names) - 0.5, -0.5), xlabel=explanation.quantity.axis)
    ax.grid(visible=False, axis="y")


def _branch(ax: Axes, below: float, after: float, row: int) -> None:
    """Draw a side step as a hollow bar that begins at its parent step's level."""
    ax.barh(row, after - below, left=below, facecolor="none", edgecolor=MUTED, linestyle=(0, (3, 2)), height=0.6)
    text = f"{after / below:.3g}×, a branch"
    ax.annotate(text, (max(below, after), row), xytext=(4, 5), textcoords="offset points", fontsize=7)


def _with_branches(explanation: Explanation) -> list[str]:
    """Return the names of the parts, each followed by its side steps."""
    names: list[str] = []
    on_top = [*((branch.name, branch.change) for branch in explanation.branches)]
    for part in (explanation.begin, *(part.name for part in explanation.parts)):
        names += [part, *(name for name, parent in on_top if parent == part)]
    return [*names[1:], *(name for name, _ in on_top if name not in names)]


def _limits(explanation: Explanation) -> tuple[float, float]:
    """Return the ends of the axis, with room for labels, and for intervals unless they would squeeze the bars."""
    scale, parts = explanation.quantity.scale, explanation.parts
    levels = np.cumprod([explanation.first * scale, *(part.gain.value for part in parts)])
    low, high = float(levels.min()), float(levels.max())
    room = 2.0 if all(np.isfinite(part.gain.low) for part in parts) else 3.0  # labels without an interval are longer
    room = max(room, (high / low) ** 0.3)  # labels need the same width even if the axis spans more decades
    ends = [level * end for level, part in zip(levels[:-1], parts, strict=True) for end in part.gain[1:] if end > 0]
    least = max(low / 1.6 / REACH, min([low / 1.6, *(end / 1.05 for end in ends)]))
    return least, min(high * room * REACH, max([high * room, *(end * 1.05 for end in ends)]))


def _interval(ax: Axes, low: float, high: float, row: int, limits: tuple[float, float]) -> None:
    """Draw a line from end to end. If it leaves the axis, it ends in an arrowhead."""
    ax.plot([max(low, limits[0]), min(high, limits[1])], [row, row], color=INK, linewidth=1)
    for end, edge, marker in ((low < limits[0], limits[0], "<"), (high > limits[1], limits[1], ">")):
        if end:
            ax.plot([edge], [row], color=INK, marker=marker, markersize=5, clip_on=False)
