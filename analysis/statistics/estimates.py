"""Reads a point's values and their intervals from the summary, and blanks the values that the load determines."""

from typing import Any

import pandas as pd

from analysis.statistics.intervals import NO_ESTIMATE, Estimate
from sweep.numbers.warnings import AS_OFFERED

INTERVAL_COLUMNS = ("ci_low", "ci_high", "new_launch_low", "new_launch_high")
"""Suffixes of the columns with a value's intervals: for these launches, and for a new launch."""


def estimate(point: "pd.Series[Any]", column: str) -> Estimate:
    """Return a point's value in the summary with its intervals."""
    if column not in point:
        return NO_ESTIMATE
    n = int(point.get(f"{column}_n", point["n"]))
    low, high, new_low, new_high = (point[f"{column}_{end}"] for end in INTERVAL_COLUMNS)
    return Estimate(point[column], low, high, n, new_low, new_high, bool(point.get(f"{column}_by_launches", False)))


def merits(figures: pd.DataFrame) -> pd.DataFrame:
    """Blank the values set by an open loop below saturation, since they do not depend on the engine."""
    if "as_offered" not in figures:
        return figures
    as_offered = figures["as_offered"].eq(True)
    return figures.assign(**{name: figures[name].mask(as_offered) for name in AS_OFFERED if name in figures})
