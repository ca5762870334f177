"""The look of all charts: colours, markers, sizes and fonts; small multiples and their legend.

The colours are Okabe and Ito's, which people with any kind of colour vision can distinguish; markers differ as well.
"""

import math
import textwrap
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.point_names import Layout

INK, MUTED, GRID = "#1f2329", "#69707a", "#e3e5e8"  # the report replaces these three colours in dark mode
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", (0, (2.5, 1)), (0, (1, 1.2)))  # a dash for each pass through the colours: layout.MOST_LINES in all
PANEL = (2.45, 2.0)  # inches, without labels
NARROWEST = 4.5  # minimum total width of all axes, in inches
GAPS = (0.32, 0.6)  # inches between axes
SCREEN, PHONE = (6.4, 4.8), (2.9, 4.8)  # inches: room for a row of axes, two on a screen and one on a phone
LETTER, HEADING_LETTER = 0.085, 0.1  # average width in inches

_STYLE = {
    "font.sans-serif": ["Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "savefig.bbox": "tight",
    "svg.fonttype": "none",  # text is saved as text, so it can be searched and uses the page's font
    "svg.hashsalt": "sweep",  # makes equal runs give equal files
}


def style(room: tuple[float, float] = SCREEN) -> AbstractContextManager[None]:
    """Return the style of all charts, independent of the user's matplotlibrc."""
    return mpl.rc_context({**mpl.rcParamsDefault, **_STYLE, "figure.figsize": room, "backend": "agg"})


# Small multiples -----------------------------------------------------------------------------------------------------


def panels(
    titles: Sequence[str],
    heading: str,
    handles: Sequence[Line2D],
    rows: int = 1,
    size: tuple[float, float] = PANEL,
    own_rows: bool = False,
    ylabels: Sequence[str] = (),
) -> tuple[Figure, list[list[Axes]]]:
    """Make a figure with a heading, a legend and `rows` empty axes of `size` per title; the axes are by title and row.

    Axes side by side share one vertical axis, which has its row's label, unless each has its own rows. They fill the
    figure, and labels enlarge it when it is saved, since matplotlib's layouts would shrink the axes for long labels.
    """
    room = float(mpl.rcParams["figure.figsize"][0])  # as `style` says
    across = min(len(titles), 1 if room <= PHONE[0] else 2)
    down = math.ceil(len(titles) / across) * rows
    width = max(across * (size[0] + GAPS[0]) - GAPS[0], min(NARROWEST, room))
    height = down * (size[1] + GAPS[1]) - GAPS[1]
    figure = Figure(figsize=(width, height))
    entry_width = max([0.6 + LETTER * len(str(entry.get_label())) for entry in handles], default=1.0)
    figure.legend(
        handles=handles,
        title=textwrap.fill(heading, int(width / HEADING_LETTER)),
        title_fontproperties={"size": 11.5, "weight": "bold"},
        alignment="left",
        loc="lower left",
        bbox_to_anchor=(0, 1 + 0.32 / height),
        ncols=max(1, int(width / entry_width)),
        borderpad=0,
        borderaxespad=0,
    )
    figure.subplots_adjust(0, 0, 1, 1, GAPS[0] / size[0], GAPS[1] / size[1])
    grid = figure.subplots(down, across, squeeze=False, sharey=False if own_rows else "row" if rows > 1 else "all")
    axes = [list(column) for band in range(0, down, rows) for column in grid[band : band + rows].T]
    for index, (title, column) in enumerate(zip(titles, axes, strict=False)):
        column[0].set_title(title)
        for ax, label in zip(column, ylabels if index % across == 0 else (), strict=False):
            ax.set_ylabel(label)
    for ax in (ax for column in axes[len(titles) :] for ax in column):
        ax.set_visible(False)
    return figure, axes[: len(titles)]


def legend_entry(layout: Layout, line: str, **other: Any) -> Line2D:
    return Line2D([], [], **{**line_style(layout, line), "label": line, **other})


def entries_without_interval(points: pd.DataFrame, *names: str) -> list[Line2D]:
    """Return a legend entry for marks without whiskers, if any value in these columns lacks an interval."""
    if not any((points[name].notna() & points[f"{name}_ci_low"].isna()).any() for name in names):
        return []
    return [Line2D([], [], color=MUTED, marker="o", linestyle="none", label="without whiskers: no interval")]


def line_style(layout: Layout, line: str) -> dict[str, Any]:
    """Return a line's colour, marker and dashes, which are unique and the same in every chart of a run."""
    cycle, index = divmod(layout.coloured.index(line), len(COLOURS))
    return {"color": COLOURS[index], "marker": MARKERS[index], "linestyle": DASHES[cycle]}
