"""Speed-ups of best against best: each engine at its best load over the baseline at its own.

Studies quote them where the baseline runs out of memory before its rival does. They are of different loads, so they
stand beside the ratios at equal load, and are never mixed with them; there is none where both are best at the same.
"""

import math
from typing import Any, NamedTuple

import pandas as pd

from analysis.plotting.layout import Layout
from analysis.results import RunResults
from analysis.statistics.ratios import is_baseline

THROUGHPUT = "output_throughput"


class BestGain(NamedTuple):
    """An engine's best throughput over the baseline's in one workload."""

    line: str
    panel: str
    ratio: float
    load: str  # at which the engine is at its best
    baseline_load: str
    equal: float  # its largest ratio at equal load; NaN without one

    @property
    def where(self) -> str:
        """The loads that are compared."""
        return f"{self.line}, {self.panel}: {self.load} against the baseline's {self.baseline_load}"


def best_gains(results: RunResults) -> list[BestGain]:
    """The gain of every engine in every workload with a baseline, the largest first; none where no load varies."""
    layout = results.layout
    points = layout.points
    if not layout.x or THROUGHPUT not in points:
        return []
    points = points[points[THROUGHPUT].notna()].reset_index(drop=True)
    points = points.assign(baseline=is_baseline(points, results.run.baseline))
    gains: list[BestGain] = []
    for panel, group in points.groupby("panel", sort=False):
        of_baseline = group[group["baseline"]]
        if of_baseline.empty:
            continue
        base = of_baseline.iloc[int(of_baseline[THROUGHPUT].argmax())]
        for line, curve in group[~group["baseline"]].groupby("line", sort=False):
            gains.append(_gain(layout, str(line), str(panel), curve, base))
    return sorted((gain for gain in gains if gain.load != gain.baseline_load), key=lambda gain: -gain.ratio)


def _gain(layout: Layout, line: str, panel: str, curve: pd.DataFrame, base: "pd.Series[Any]") -> BestGain:
    best = curve.iloc[int(curve[THROUGHPUT].argmax())]
    name = f"{THROUGHPUT}_vs_baseline"
    equal = float(curve[name].max()) if name in curve else math.nan
    ratio = float(best[THROUGHPUT]) / float(base[THROUGHPUT])
    return BestGain(line, panel, ratio, layout.load(best), layout.load(base), equal)
