"""Share of good requests against the load: probes as marks, the twin as a line, the claim's interval shaded."""

import textwrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from analysis.load import Run
from analysis.plotting.chart_style import COLOURS, MARKERS, MUTED, panels
from analysis.point_names import Layout
from sweep.disk.run_files import read_claims

POSITION = 1
MOST_CLAIMS = 8
LINE = 30  # characters of a title's line


def draw(run: Run, layout: Layout) -> Figure | None:
    """Draw a panel for each claim of a search for a capacity; None if there was no search, or it has no probe."""
    claims = [(name, claim) for name, claim in read_claims(run.paths).items() if claim["measured"]][:MOST_CLAIMS]
    if not claims:
        return None
    bounds = list(dict.fromkeys(bound for _, claim in claims for bound in claim["bounds"]))
    styles: dict[str, dict[str, Any]] = {
        bound: {"color": COLOURS[n % len(COLOURS)], "marker": MARKERS[n % len(MARKERS)]}
        for n, bound in enumerate(bounds)
    }
    handles: list[Any] = [Line2D([], [], label=bound, linestyle="none", **styles[bound]) for bound in bounds]
    twin = any(claim["twin"] for _, claim in claims)
    handles += [Line2D([], [], color=MUTED, label="the twin in the long run")] if twin else []
    handles.append(Line2D([], [], color=MUTED, linestyle="--", label="required"))
    heading = claims[0][1]["lines"][0] if len(claims) == 1 else "Share of good requests against the load"
    handles.append(Patch(color=MUTED, alpha=0.18, label="the claim's interval"))
    titles = [textwrap.fill(name, LINE) for name, _ in claims]
    figure, axes = panels(titles, heading, handles, ylabels=["good requests"])
    figure.set_label(heading if len(claims) == 1 else "")
    for (_, claim), (ax,) in zip(claims, axes, strict=True):
        _panel(ax, claim, styles)
        ax.set_xlabel(f"load ({claim['unit']})")
    return figure


def _panel(ax: Axes, claim: dict[str, Any], styles: dict[str, dict[str, Any]]) -> None:
    loads = [probe["load"] for probe in claim["measured"]]
    if claim["lower"]:
        ax.axvspan(claim["lower"], claim["upper"] or max(*loads, claim["lower"]), color=MUTED, alpha=0.18, linewidth=0)
        ax.axvline(claim["lower"], color=MUTED, linewidth=1)
    for bound, share in claim["bounds"].items():
        ax.axhline(share, color=MUTED, linewidth=1, linestyle="--")
        twin = np.array([(point["load"], point["good"][bound]) for point in claim["twin"]], np.float64).reshape(-1, 2)
        ax.plot(*twin.T, color=styles[bound]["color"], linewidth=1.4)
        good = np.array([probe["good"][bound] for probe in claim["measured"]], np.float64)
        ax.plot(loads, good, linestyle="none", **styles[bound])
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.xaxis.set_minor_formatter(lambda *_: "")
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.set_ylim(-0.03, 1.03)
