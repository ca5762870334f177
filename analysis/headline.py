"""The columns of a run's points: headline quantities, and columns that describe the task and the outcome."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from sweep.base.records import LOAD_COLUMNS
from sweep.numbers.quantity import columns
from sweep.numbers.warnings import off_steady

ASKED = ("model", "accelerator", "workload", "load", *LOAD_COLUMNS)
"""Prefixes of the columns for task, model and GPU, which must be equal for points to be compared."""

COST, THROUGHPUT = "cost_per_million_tokens", "output_throughput"
COUNTS = ("n", "not_ok", "planned", "outcomes", "requests", "failed")
"""The columns with a point's outcomes, and its numbers of answered and failed requests."""


def _headline(steady: bool) -> tuple[str, ...]:
    """Return the columns of the statistics that are declared as headlines, by rank."""
    ranks = {
        column: statistic.quantity.headline[statistic.name]
        for column, statistic in columns().items()
        if statistic.name in statistic.quantity.headline and statistic.steady is steady
    }
    return tuple(sorted(ranks, key=ranks.__getitem__))


HEADLINE = _headline(steady=False)
"""The headline columns: shown in the terminal's table, ranked in the answers, and compared with the baseline."""

STEADY = _headline(steady=True)
"""The steady-state quantities that are summarised; the other quantities are in trials.parquet."""


def one_price(points: pd.DataFrame) -> bool:
    """Return whether the points' costs have one price per hour: then the fastest is the cheapest, too."""
    product = (points[COST] * points[THROUGHPUT]).dropna()
    return bool(len(product)) and float(product.max() / product.min()) < 1.01


def shown_column(point: "Mapping[str, Any] | pd.Series[Any]", name: str) -> str:
    """Return the column whose value is shown for a point and judged by an SLO. It is the steady state's quantile if the
    whole run's, which includes start and drain, differs from it by more than 10%.
    """
    steady = f"steady_{name}"
    summarised = steady in STEADY and steady in point and name in point
    return steady if summarised and off_steady(point[name], point[steady]) else name


def shown_requests(point: "pd.Series[Any]", name: str) -> float:
    """Return how many requests are behind a shown value, including failed requests."""
    if not name.startswith("steady_") or pd.isna(point.get("steady_num_requests")):
        return float(point["requests"] + point["failed"])
    return float(point["steady_num_requests"] * point.get("steady_num_requests_n", point["n"]))
