"""Draws an engine's readings over a trial as lines, or as dots if they are few."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

GIB = 2.0**30
SPARSE = 20  # fewer readings than this are drawn as dots
STROKE: Mapping[str, Any] = {"marker": "", "linewidth": 1.2}  # otherwise in the lines' usual style


def plot_series(ax: Axes, samples: pd.DataFrame, series: str, style: Mapping[str, Any], scale: float = 1.0) -> None:
    """Plot one series of a trial, summed over an engine's GPUs or replicas, whose readings share their times."""
    values = samples[samples["series"] == series].groupby("time")["value"].sum() * scale
    if len(values):
        marker = "." if len(values) < SPARSE else ""
        ax.plot(values.index.to_numpy(), values.to_numpy(), **{**style, "marker": marker})
