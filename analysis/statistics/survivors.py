"""Finds the quantiles that have no value because of failed requests, and their lower bounds.

A failed request is treated as slower than any other, so a quantile may fall on a failed request and have no value. A
mean over the replicates with a value would cover only the luckier replicates.
"""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.load import Run
from sweep.base.wording import number
from sweep.numbers.quantity import Statistic, columns

AT_LEAST_THE_WAIT = ("ttft", "e2el", "service_ttft", "service_e2el")
"""The latencies of a timed-out request that are at least as long as its wait for the first token."""


def is_lost(trials: pd.DataFrame, column: str, statistic: Statistic) -> "pd.Series[bool]":
    """Return which trials' quantile falls on a failed request: it is null although some request has a value."""
    mean = statistic.mean_column
    if not _is_quantile(statistic) or column not in trials or mean not in trials:
        return pd.Series(data=False, index=trials.index)
    return trials[column].isna() & trials[mean].notna()


def without_lost(run: Run, measured: pd.DataFrame, point: NDArray[np.int64]) -> pd.DataFrame:
    """Return each trial's measured values, without quantiles lost to failures in any trial of its point.

    `timed_out_after` is the point's shortest value, if all its trials with failures have one.
    """
    with_bounds, statistics = measured.copy(), columns(run.percentiles)
    for column in map(str, measured):
        lost = is_lost(run.ok, column, statistics[column]).reindex(measured.index, fill_value=False)
        if lost.any():
            with_bounds.loc[lost.groupby(point).transform("any"), column] = np.nan
    if "timed_out_after" in with_bounds:
        without_time_out = with_bounds["num_failed"].gt(0) & with_bounds["timed_out_after"].isna()
        shortest = with_bounds["timed_out_after"].groupby(point).transform("min")
        with_bounds["timed_out_after"] = shortest.mask(without_time_out.groupby(point).transform("any"))
    return with_bounds


def bound(point: "pd.Series[Any]", column: str, scale: float) -> tuple[str, str] | None:
    """Return the lower bound of a quantile that falls on a failed request, and the reason; None if it has a value."""
    percentile = _percentile(column)
    statistic = None if percentile is None else columns([percentile]).get(column)
    if percentile is None or statistic is None or not _is_quantile(statistic):
        return None
    failed = "steady_num_failed" if statistic.steady else "failed"
    if not point["n"] or pd.notna(point.get(column)) or pd.isna(point.get(failed)) or not point[failed]:
        return None
    if not statistic.steady and point["failed"] * 100 <= (100 - percentile) * (point["failed"] + point["requests"]):
        return None  # no value because of too few requests, not failures
    why = f"more than {100 - percentile:g}% failed"
    waited = point.get("timed_out_after")
    if statistic.quantity.name not in AT_LEAST_THE_WAIT or waited is None or pd.isna(waited):
        return "—", why
    return f"≥ {number(float(waited) * scale)}", why


def bounds_text(point: "pd.Series[Any]", percentiles: Iterable[float]) -> str:
    """Return the quantiles lost to failures, with their known bounds in seconds, e.g. `tpot_p99; ttft_p99 ≥ 1.50`."""
    names = [name for name in columns(percentiles) if name in point] if point["failed"] else []
    bounds = {name: bound(point, name, 1.0) for name in names}
    return "; ".join(f"{name} {limit[0]}".removesuffix(" —") for name, limit in bounds.items() if limit is not None)


def left_out(column: str, points: pd.DataFrame) -> str:
    """Return a suffix for a mean or maximum that excludes failed requests; empty if none failed."""
    statistic = columns().get(column)
    if statistic is None or statistic.name not in ("mean", "max") or not points["failed"].gt(0).any():
        return ""
    return {"request": " of successes", "batch": " of whole batches"}.get(statistic.quantity.per or "", "")


def _is_quantile(statistic: Statistic) -> bool:
    quantity = statistic.quantity
    of_failures = quantity.per == "batch" or (quantity.per == "request" and quantity.kind == "latency")
    return of_failures and statistic.name not in ("mean", "max")


def _percentile(column: str) -> float | None:
    """Return a column's percentile, e.g. 99.9 for ttft_p99_9; None if it is not a percentile."""
    digits = column.rpartition("_p")[2].replace("_", ".")
    try:
        percentile = float(digits)
    except ValueError:
        return None
    return percentile if math.isfinite(percentile) else None
