"""The columns of a run's points: the headline figures, and columns that describe the task and the outcome."""

from sweep.base.records import LOAD_COLUMNS
from sweep.numbers.quantity import columns

ASKED = ("model", "accelerator", "workload", "load", *LOAD_COLUMNS)
"""First parts of the columns that say what was asked, of what model on what GPU: equal for points to be compared."""

COUNTS = ("n", "not_ok", "planned", "outcomes", "requests", "failed")
"""The columns that say how a point's trials ended, how many requests were answered, and how many failed."""


def _headline(steady: bool) -> tuple[str, ...]:
    """Return the columns of the statistics that are declared as headlines, by rank."""
    ranks = {
        column: statistic.quantity.headline[statistic.name]
        for column, statistic in columns().items()
        if statistic.name in statistic.quantity.headline and statistic.steady is steady
    }
    return tuple(sorted(ranks, key=ranks.__getitem__))


HEADLINE = _headline(steady=False)
"""The figures to read first: in the terminal's table, among the best figures, and compared with the baseline."""

STEADY = _headline(steady=True)
"""The steady-state figures that are summarised; the others are in trials.parquet."""
