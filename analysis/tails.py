"""How sure the TTFT p99 of a single replicate is: an interval over its requests, which are all there is to judge it by.

Of several replicates the interval of their mean tells more: requests within a trial share its luck.
"""

import math
from collections.abc import Hashable

import pandas as pd

from analysis.load import Run, trial_folder
from analysis.plotting.layout import Layout
from sweep.disk import run_files
from sweep.numbers.quantile import Quantile, quantile_with_interval

MOST_TRIALS = 400  # whose requests are read


def tails(run: Run, layout: Layout) -> dict[Hashable, Quantile]:
    """Index of a point -> its TTFT p99 (s) as a Quantile, of points with one replicate whose requests are there."""
    if "ttft_p99" not in layout.points:
        return {}
    alone = layout.points[(layout.points["n"] == 1) & layout.points["ttft_p99"].notna()].head(MOST_TRIALS)
    names = ["deployment_id", "attempt", "trial_id"]
    trials = alone[layout.keys].reset_index(names="point").merge(run.ok[[*layout.keys, *names]], on=layout.keys)
    found = {trial["point"]: _tail(run, trial) for _, trial in trials.dropna(subset="attempt").iterrows()}
    known = alone["ttft_p99"].to_dict()
    # A value other than the row's is of other requests: the row's may leave out the first batch.
    return {
        point: tail
        for point, tail in found.items()
        if tail is not None and tail.value is not None and math.isclose(tail.value, known[point], rel_tol=1e-3)
    }


def _tail(run: Run, trial: "pd.Series[str]") -> Quantile | None:
    """None where the requests are lost or cut short: the figure stands without its interval."""
    path = trial_folder(run, trial) / "requests.parquet"
    try:
        requests = run_files.read_table(path, ["phase", "error", "ttft"]).to_pandas()
    except (FileNotFoundError, run_files.DamagedFile):
        return None
    chosen = (requests["phase"] == "measured") & requests["error"].isna()
    return quantile_with_interval(requests.loc[chosen, "ttft"].to_numpy(), 0.99)
