"""Confidence interval of the TTFT p99 of a single replicate, from the order statistics of its requests.

With several replicates the interval of their mean is used instead, since requests of one trial are not independent.
"""

import math
from collections.abc import Hashable

import pandas as pd

from analysis.load import Run, trial_folder
from analysis.plotting.layout import Layout
from sweep.disk import run_files
from sweep.numbers.quantile import Quantile, quantile_with_interval

MOST_TRIALS = 400  # number of trials whose requests are read


def tails(run: Run, layout: Layout) -> dict[Hashable, Quantile]:
    """TTFT p99 (s) with its interval by index of the point, for points with one replicate and readable requests."""
    if "ttft_p99" not in layout.points:
        return {}
    single = layout.points[(layout.points["n"] == 1) & layout.points["ttft_p99"].notna()].head(MOST_TRIALS)
    names = ["deployment_id", "attempt", "trial_id"]
    trials = single[layout.keys].reset_index(names="point").merge(run.ok[[*layout.keys, *names]], on=layout.keys)
    tail_of = {trial["point"]: _tail(run, trial) for _, trial in trials.dropna(subset="attempt").iterrows()}
    row_values = single["ttft_p99"].to_dict()
    # A value that differs from the row's covers other requests: the row's may leave out the first batch.
    return {
        point: tail
        for point, tail in tail_of.items()
        if tail is not None and tail.value is not None and math.isclose(tail.value, row_values[point], rel_tol=1e-3)
    }


def _tail(run: Run, trial: "pd.Series[str]") -> Quantile | None:
    """The quantile of one trial; None if its requests are missing or damaged: the figure is then shown alone."""
    path = trial_folder(run, trial) / "requests.parquet"
    try:
        requests = run_files.read_table(path, ["phase", "error", "ttft"]).to_pandas()
    except (FileNotFoundError, run_files.DamagedFile):
        return None
    chosen = (requests["phase"] == "measured") & requests["error"].isna()
    return quantile_with_interval(requests.loc[chosen, "ttft"].to_numpy(), 0.99)
