"""Draws an engine's readings over a trial as lines, or as dots if they are few."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

GIB = 2.0**30
SPARSE = 20  # with fewer readings than this, dots are drawn
STROKE: Mapping[str, Any] = {"marker": "", "linewidth": 1.2}  # else the line's usual style


def plot_series(ax: Axes, samples: pd.DataFrame, series: str, style: Mapping[str, Any], scale: float = 1.0) -> None:
    """Plot one series of a trial, summed over an engine's GPUs or replicas, whose readings share timestamps."""
    values = samples[samples["series"] == series].groupby("time")["value"].sum() * scale
    if len(values):
        marker = "." if len(values) < SPARSE else ""
        ax.plot(values.index.to_numpy(), values.to_numpy(), **{**style, "marker": marker})
