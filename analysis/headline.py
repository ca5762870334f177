"""The columns of a run's points: headline quantities, and columns that describe the task and the outcome."""

from sweep.base.records import LOAD_COLUMNS
from sweep.numbers.quantity import columns

ASKED = ("model", "accelerator", "workload", "load", *LOAD_COLUMNS)
"""Prefixes of the columns for task, model and GPU, which must be equal for points to be compared."""

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
"""The headline columns: in the terminal's table, among the best values, and compared with the baseline."""

STEADY = _headline(steady=True)
"""The steady-state columns that are summarised; the rest are in trials.parquet."""
