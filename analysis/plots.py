"""How figures look, and finding and saving them. Each figure is a file of `analysis.figures`: adding one needs no list.

A figure module has a docstring, whose first line is its caption, a POSITION among the others, and
`draw(run, layout) -> Figure | None` (None: this run has nothing to show in it). Colours are those of Okabe and Ito,
told apart by every kind of colour vision; markers differ besides.
"""

import importlib
import io
import math
import pkgutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from analysis import figures
from analysis.layout import Layout
from analysis.load import Run
from analysis.quantities import Quantity, quantity
from analysis.stats import FloatArray
from sweep import store

INK, MUTED, GRID = "#1f2329", "#69707a", "#e3e5e8"  # the report gives these three other values in the dark
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
PANEL = (2.45, 2.0)  # inches, the axes alone
PANELS_IN_A_ROW = 4
LOGARITHMIC_FROM = 30.0  # largest over smallest value from which a linear axis hides the small ones

_STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "svg.fonttype": "none",  # text stays text: it can be searched, and takes the page's font
    "svg.hashsalt": "sweep",  # the same run gives the same file
    "figure.dpi": 96,
}


class FigureFile(Protocol):
    """A module of `analysis.figures`."""

    __doc__: str | None
    POSITION: int

    def draw(self, run: Run, layout: Layout) -> Figure | None: ...


@dataclass(frozen=True)
class Drawn:
    """A figure as it was saved."""

    name: str
    caption: str
    svg: str


def draw_all(run: Run, layout: Layout) -> list[Drawn]:
    """Draw and save every figure that this run has something for; figures it no longer has are removed."""
    drawn: list[Drawn] = []
    with style():
        for name, module in _modules():
            figure = module.draw(run, layout)
            if figure is None:
                for suffix in ("svg", "png"):
                    (run.paths.figures / f"{name}.{suffix}").unlink(missing_ok=True)
            else:
                caption = (module.__doc__ or name).strip().splitlines()[0]
                drawn.append(Drawn(name, caption, _save(run, name, figure)))
    return drawn


def _modules() -> list[tuple[str, FigureFile]]:
    names = [found.name for found in pkgutil.iter_modules(figures.__path__)]
    modules: dict[str, Any] = {name: importlib.import_module(f"{figures.__name__}.{name}") for name in names}
    return sorted(modules.items(), key=lambda item: (item[1].POSITION, item[0]))


@contextmanager
def style() -> Iterator[None]:
    """The look of every figure, whatever the user's matplotlibrc says."""
    with mpl.rc_context({**mpl.rcParamsDefault, **_STYLE, "backend": "agg"}):
        yield


def _save(run: Run, name: str, figure: Figure) -> str:
    """Write NAME.svg and NAME.png; the SVG's text."""
    svg = io.StringIO()
    figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    store.write_text(run.paths, run.paths.figures / f"{name}.svg", svg.getvalue())
    store.write_whole(
        run.paths,
        run.paths.figures / f"{name}.png",
        lambda staged: figure.savefig(staged, format="png", dpi=200, facecolor="white"),
    )
    return svg.getvalue()


# Small multiples -----------------------------------------------------------------------------------------------------


def panels(titles: Sequence[str], heading: str, rows: int = 1) -> tuple[Figure, list[list[Axes]]]:
    """An empty figure of `rows` axes for each title, PANELS_IN_A_ROW titles side by side; axes by title, then row.

    Laid out in inches: matplotlib's own layouts put heading and legend on top of each other.
    """
    across = min(len(titles), PANELS_IN_A_ROW)
    down = math.ceil(len(titles) / across) * rows
    left, right, top, bottom, between = 0.68, 0.15, 0.95, 0.55, (0.32, 0.5)
    width = max(left + across * PANEL[0] + (across - 1) * between[0] + right, 5.2)
    height = top + down * PANEL[1] + (down - 1) * between[1] + bottom
    figure = Figure(figsize=(width, height))
    figure.text(0.12 / width, 1 - 0.12 / height, heading, va="top", fontsize=11.5, fontweight="bold")
    grid = figure.subplots(
        down,
        across,
        squeeze=False,
        sharey="row" if rows > 1 else "all",
        gridspec_kw={
            "left": left / width,
            "right": 1 - right / width,
            "top": 1 - top / height,
            "bottom": bottom / height,
            "wspace": between[0] / PANEL[0],
            "hspace": between[1] / PANEL[1],
        },
    )
    axes: list[list[Axes]] = []
    for index, title in enumerate(titles):
        axes.append([grid[index // across * rows + row][index % across] for row in range(rows)])
        axes[-1][0].set_title(title)
    for unused in range(len(titles), across * down // rows):
        for row in range(rows):
            grid[unused // across * rows + row][unused % across].set_visible(False)
    return figure, axes


def handle(layout: Layout, line: str, **other: Any) -> Line2D:
    """The legend's entry of a line: its colour and marker are the same in every figure of a run."""
    index = layout.lines.index(line)
    look = {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)], "label": line, **other}
    if index >= len(COLOURS):
        look.setdefault("linestyle", (0, (4, 1.5)))
    return Line2D([], [], **look)


def legend(figure: Figure, handles: Sequence[Line2D]) -> None:
    """One legend for all panels, between the heading and them."""
    width, height = figure.get_size_inches()
    place = (0.06 / width, 1 - 0.33 / height)
    figure.legend(
        handles=handles, loc="upper left", bbox_to_anchor=place, ncols=max(1, int(width / 1.7)), borderpad=0.2
    )


# Against the load ----------------------------------------------------------------------------------------------------


def against_load(run: Run, layout: Layout, column: str, also: str | None = None) -> Figure | None:
    """Means of a quantity along the abscissa, a line per engine and a panel per workload.

    Dots are replicates, whiskers the 95 % interval of the mean (cut where they would leave the panel), a cross on the
    axis a point that has no result. `also` is drawn thin and dashed.
    """
    of = quantity(column)
    points = layout.points
    if of is None or column not in points or not points[column].notna().any():
        return None
    label = layout.x_label.lower() or "engine"
    figure, axes = panels(layout.panels, f"{of.label} against {label}" if layout.x else of.label)
    positions = _positions(layout)
    for title, (ax,) in zip(layout.panels, axes, strict=True):
        for line in layout.lines:
            here = points[(points["panel"] == title) & (points["line"] == line)]
            here = here.assign(_x=positions.loc[here.index]).sort_values("_x")
            _draw_line(ax, run, layout, here, line, of, also)
        _finish_abscissa(ax, layout, positions)
    shown = [points[name].to_numpy(np.float64) for name in (column, also) if name in points]
    _finish_ordinates([ax for (ax,) in axes], np.concatenate([*shown, run.ok[column].to_numpy(np.float64)]) * of.scale)
    _label_outer(axes, of.axis, layout.x_label)
    present = [line for line in layout.lines if points.loc[points["line"] == line, column].notna().any()]
    handles = [handle(layout, line) for line in present]
    if also is not None and also in points:
        handles.append(Line2D([], [], color=MUTED, linestyle="--", linewidth=1, label=_difference(column, also)))
    if (points.loc[points["line"].isin(present), "n"] == 0).any():
        handles.append(Line2D([], [], color=MUTED, marker="x", linestyle="none", label="no result"))
    legend(figure, handles)
    return figure


def _difference(column: str, also: str) -> str:
    return f"dashed: {also.rpartition('_')[2]} (line: {column.rpartition('_')[2]})"


def _positions(layout: Layout) -> "pd.Series[float]":
    """Where each point stands on the abscissa: its value, or without one its line's place."""
    if layout.x is None:
        return layout.points["line"].map({line: index for index, line in enumerate(layout.lines)}).astype("float64")
    return layout.points[layout.x].astype("float64")


def _draw_line(
    ax: Axes, run: Run, layout: Layout, here: pd.DataFrame, line: str, of: Quantity, also: str | None
) -> None:
    look = handle(layout, line)
    colour, marker = look.get_color(), look.get_marker()
    mean = here[of.column].to_numpy(np.float64) * of.scale
    half = (here[f"{of.column}_ci_high"].to_numpy(np.float64) * of.scale) - mean
    x = here["_x"].to_numpy(np.float64)
    ax.plot(x, mean, color=colour, marker=marker, linestyle=look.get_linestyle(), zorder=3)
    ax.errorbar(x, mean, half, color=colour, linestyle="none", elinewidth=1, capsize=2.5, alpha=0.7, zorder=2)
    dots = replicates(run, layout, here, of.column)
    ax.scatter(dots["_x"], dots["value"] * of.scale, color=colour, s=9, alpha=0.45, linewidths=0, zorder=4)
    if also is not None and also in here:
        ax.plot(x, here[also].to_numpy(np.float64) * of.scale, color=colour, linestyle="--", linewidth=1, zorder=2)
    lost = x[(here["n"].to_numpy() == 0) & bool(np.isfinite(mean).any())]
    ax.plot(lost, np.zeros_like(lost), "x", color=colour, transform=ax.get_xaxis_transform(), clip_on=False, zorder=5)


def replicates(run: Run, layout: Layout, here: pd.DataFrame, column: str) -> pd.DataFrame:
    """The single replicates behind some points: `_x` and `value`."""
    merged = run.ok.merge(here[[*layout.keys, "_x"]], on=layout.keys)
    return pd.DataFrame({"_x": merged["_x"], "value": merged[column].astype("float64")})


def _finish_abscissa(ax: Axes, layout: Layout, positions: "pd.Series[float]") -> None:
    ax.grid(visible=False, axis="x")
    if layout.x is None:
        ax.set_xticks(range(len(layout.lines)), layout.lines)
        ax.set_xlim(-0.5, len(layout.lines) - 0.5)
        return
    values = np.unique(positions.dropna())
    if values[0] > 0 and values[-1] / values[0] >= 4:
        ax.set_xscale("log", base=2)
        ax.set_xlim(values[0] / 1.25, values[-1] * 1.25)
    ax.xaxis.set_minor_locator(NullLocator())
    if len(values) <= 9:
        ax.xaxis.set_major_locator(FixedLocator(values.tolist()))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _finish_ordinates(axes: Sequence[Axes], values: FloatArray) -> None:
    """From zero, or logarithmic if small values would vanish; as far as the data go, since whiskers may go anywhere."""
    values = values[np.isfinite(values) & (values > 0)]
    for ax in axes if values.size else []:
        if values.max() / values.min() > LOGARITHMIC_FROM:
            ax.set_yscale("log")
            ax.set_ylim(values.min() / 1.6, values.max() * 1.6)
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_minor_locator(NullLocator())
        else:
            ax.set_ylim(0, values.max() * 1.08)
            ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))


def _tick(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == 0 else f"{value:g}"


def _label_outer(axes: Sequence[Sequence[Axes]], y_label: str, x_label: str) -> None:
    for index, (ax,) in enumerate(axes):
        ax.set_xlabel(x_label)
        if index % PANELS_IN_A_ROW == 0:
            ax.set_ylabel(y_label)
