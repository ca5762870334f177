"""Largest KV cache of a trial, in GiB, as the engine reports it or from its share of a pool of known size.

On a CPU the configuration sets the pool's size (`backend.cpu_kv_cache_gib`). On a GPU the engine reports it at launch,
and it applies to every GPU of the deployment. An engine that reports a share of a pool of unknown size is omitted.
"""

import json
import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.load import Run, telemetry
from analysis.plotting.chart_style import legend_entry, line_style, panels
from analysis.plotting.drawing import load_axis
from analysis.plotting.timeline import GIB
from analysis.point_names import Layout

POSITION = 44
MOST_TELEMETRY = 200  # maximum trials whose telemetry is read


def draw(run: Run, layout: Layout) -> Figure | None:
    """Draw each point's largest reading over its replicates, along the load; None if there is no load or no reading."""
    if layout.x is None:
        return None
    trials = layout.visible(run.ok).sort_values("replicate", kind="stable").drop_duplicates("point")
    trials = trials.head(MOST_TELEMETRY)
    trials = trials.assign(peak=_peaks(run, trials)).dropna(subset=["peak", layout.x])
    lines = [line for line in layout.coloured if (trials["line"] == line).any()]
    titles = [title for title in layout.visible_panels if (trials["panel"] == title).any()]
    if not titles:
        return None
    handles = [legend_entry(layout, line) for line in lines]
    heading = f"Largest KV cache against {layout.x_label.lower()}"
    figure, axes = panels(titles, heading, handles, ylabels=["KV cache (GiB)"])
    for title, (ax,) in zip(titles, axes, strict=True):
        for line, group in trials[trials["panel"] == title].sort_values(layout.x).groupby("line", sort=False):
            ax.plot(group[layout.x].to_numpy(np.float64), group["peak"].to_numpy(), **line_style(layout, str(line)))
        load_axis(ax, layout, title)
        ax.set_ylim(0, (float(trials["peak"].max()) or 1.0) * 1.08)
    return figure


def _peaks(run: Run, trials: pd.DataFrame) -> "pd.Series[float]":
    """Return each trial's largest KV cache in GiB; NaN if unknown."""
    samples = telemetry(run.paths.out, list(trials["trial_id"]), damaged="skip")
    if samples.empty:
        return pd.Series(math.nan, trials.index)
    during = samples[samples["time"] >= 0]
    stored = during[during["series"] == "kv_cache_bytes"].groupby(["trial_id", "time"])["value"].sum()
    share = during[during["series"] == "kv_cache_usage"].groupby(["trial_id", "time"])["value"].mean()
    stored, share = (each.groupby("trial_id").max() for each in (stored, share))
    pool_shares = trials["trial_id"].map(share) * trials.apply(pool_bytes, axis="columns")
    return trials["trial_id"].map(stored).fillna(pool_shares).astype("float64") / GIB


def pool_bytes(trial: "pd.Series[Any]") -> float:
    """Return the size of a trial's KV-cache pool over all its GPUs, in bytes; NaN if unknown."""
    config, facts = (
        json.loads(text) if isinstance(text := trial.get(name), str) else {} for name in ("config", "engine_facts")
    )
    backend = config.get("backend") or {}
    replicas = int(backend.get("replicas") or 1)
    gpus = trial.get("gpu_count")
    if pd.notna(gpus) and gpus > 0:
        per_gpu = (facts.get("chosen") or {}).get("kv_cache_gib")
        return float(per_gpu) * int(gpus) * GIB if per_gpu else math.nan
    return float(backend.get("cpu_kv_cache_gib") or math.nan) * replicas * GIB
