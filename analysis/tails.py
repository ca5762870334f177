"""Confidence interval of the TTFT p99 of a single replicate, from the order statistics of its requests.

With several replicates the interval of their mean is used instead, since requests of one trial are not independent.
"""

import math
from typing import Any

import numpy as np
import pandas as pd

from analysis.load import Run, trial_folder
from analysis.plotting.layout import Layout
from sweep.disk import run_files
from sweep.numbers.quantile import Quantile, quantile_with_interval
from sweep.numbers.selection import with_failures

MOST_TRIALS = 400  # number of trials whose requests are read


def tails(run: Run, layout: Layout) -> dict[int, Quantile]:
    """TTFT p99 (s) with its interval by index of the point, for points with one replicate and readable requests."""
    if "ttft_p99" not in layout.points:
        return {}
    single = layout.points[(layout.points["n"] == 1) & layout.points["ttft_p99"].notna()].head(MOST_TRIALS)
    trials = layout.placed(run.ok).dropna(subset="attempt")
    trials = trials[trials["point"].isin(single.index)]
    tail_of = {trial["point"]: _tail(run, trial) for _, trial in trials.iterrows()}
    return {point: tail for point, tail in tail_of.items() if tail is not None}


def _tail(run: Run, trial: "pd.Series[Any]") -> Quantile | None:
    """The quantile of one trial; None if its requests are missing or damaged: the figure is then shown alone."""
    path = trial_folder(run, trial) / "requests.parquet"
    try:
        requests = run_files.read_table(path, ["phase", "error", "ttft"]).to_pandas()
    except (FileNotFoundError, run_files.DamagedFile):
        return None
    measured = requests[requests["phase"] == "measured"]
    values = with_failures(measured["ttft"].to_numpy(np.float64), measured["error"].notna().to_numpy())
    tail = quantile_with_interval(values, 0.99)
    # A value that differs from the row's covers other requests: the row's may leave out the first batch.
    return tail if tail.value is not None and math.isclose(tail.value, trial["ttft_p99"], rel_tol=1e-3) else None
