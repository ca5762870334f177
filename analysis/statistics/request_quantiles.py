"""Computes quantiles of any number of requests and gaps from the files, even if they do not fit in memory.

    analysis.quantiles("results/serving").table

Latencies of requests are exact. The gaps of all trials go into a histogram (`sweep.numbers.gap_histogram`), whose
quantiles are at most 0.4% off. Several threads read files, one row group at a time. Reading pages and counting gaps
mostly release the interpreter lock. New processes would import the calling script, and run it again unless it has a
main guard.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.load import open_run, trial_folder
from sweep.disk.request_figures import SERIES, RequestFigures, read_figures
from sweep.numbers.gap_histogram import GAP_BINS, LARGEST_ERROR, quantile_of_counts
from sweep.numbers.quantile import statistics
from sweep.numbers.quantity import percentile_name


@dataclass(frozen=True)
class Quantiles:
    """Latency quantiles of each trial, and quantiles of the gaps of all trials pooled, in seconds."""

    table: pd.DataFrame  # one row per trial: trial_id, requests, gaps, {ttft,e2el,tpot,itl}_{p50,p99}
    all_gaps: dict[str, float]  # itl_p50, …
    gaps: int
    damaged: list[str]  # files skipped, with the reason
    largest_error: float = LARGEST_ERROR  # relative error of the gaps' quantiles


def quantiles(
    folder: str | Path, percentiles: Sequence[float] = (50, 99), threads: int | None = None, all_rows: bool = False
) -> Quantiles:
    """Return the quantiles of the measured requests in a run's trials. Damaged files are listed and skipped.

    Raises RunNotFound, DamagedFile, ConfigError as in `analysis.load`.
    """
    run = open_run(folder, all_rows)
    trials = run.trials[run.trials["attempt"].notna()]
    paths = [trial_folder(run, row) / "requests.parquet" for _, row in trials.iterrows()]
    total, rows, damaged = np.zeros(GAP_BINS, np.int64), [], []
    with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        for trial_id, figures in zip(trials["trial_id"], pool.map(read_figures, paths), strict=True):
            if isinstance(figures, RequestFigures):
                total += figures.gaps
                rows.append({"trial_id": trial_id, **_of_trial(figures, percentiles)})
            else:
                damaged.append(str(figures))
    return Quantiles(pd.DataFrame(rows), _of_gaps(total, percentiles), int(total.sum()), damaged)


def _of_trial(figures: RequestFigures, percentiles: Sequence[float]) -> dict[str, float | int | None]:
    row: dict[str, float | int | None] = {"requests": figures.requests, "gaps": int(figures.gaps.sum())}
    for name in SERIES:
        of_series = statistics(figures.series[name], percentiles)
        row |= {f"{name}_{key}": of_series[key] for key in map(percentile_name, percentiles)}
    return row | _of_gaps(figures.gaps, percentiles)


def _of_gaps(counts: np.ndarray[tuple[int], np.dtype[np.int64]], percentiles: Sequence[float]) -> dict[str, float]:
    return {f"itl_{percentile_name(each)}": quantile_of_counts(counts, each / 100) for each in percentiles}


QUANTILE_COLUMNS = {
    "trial_id": ("", "the trial; a trial with a damaged file has no row"),
    "requests": ("", "measured requests, including failed requests"),
    "gaps": ("", "gaps between tokens of one answer"),
    "ttft_pN, e2el_pN, tpot_pN": ("s", "exact quantiles over its requests, for each of `percentiles` (50 and 99)"),
    "itl_pN": ("s", "quantiles over its gaps, at most 0.4% off"),
}
"""The columns of `Quantiles.table`, for docs/columns.md."""
