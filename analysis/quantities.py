"""The label, displayed unit and better direction of each measured column, from the column's quantity.

Data are stored in seconds, bytes and shares. Only labels use ms, GiB and %.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from sweep.base.config import PERCENTILES, ConfigError, did_you_mean
from sweep.base.wording import number
from sweep.numbers.quantity import columns

_SCALES = {
    "bytes": ("GiB", 2.0**-30),
    "share": ("%", 100.0),
    "tokens": ("per trial", 1.0),
    "requests": ("per trial", 1.0),
}


@dataclass(frozen=True)
class LabelledColumn:
    """A measured column as displayed, with its `label` and `unit`. Displayed values are the data times `scale`."""

    column: str
    label: str
    short: str
    unit: str
    scale: float
    better: Literal["higher", "lower"] | None
    quantity: str = ""  # name of the quantity that declares it; empty for a column made here

    @property
    def axis(self) -> str:
        return f"{self.short if len(self.label) > 20 else self.label} ({self.unit})"

    @property
    def in_sentence(self) -> str:
        """The short name within a sentence, in lower case except acronyms."""
        acronym = self.short[1:2].isupper() or self.short[1:2].isdigit()
        return self.short if acronym else self.short[:1].lower() + self.short[1:]

    def shown(self, value: float) -> str:
        """Return a value with three significant digits and no unit, or an em dash if it is missing."""
        return number(value * self.scale)


def setting(value: Any) -> str:
    """Format a requested number as given (8, 0.5); a dash if it was not set."""
    return "—" if pd.isna(value) else f"{value:g}"


def labelled_column(column: str, percentiles: Iterable[float] = PERCENTILES) -> LabelledColumn | None:
    """Return the labels of a column in trials.parquet; None if it is not a measured number."""
    statistic = columns(percentiles).get(column)
    if statistic is None or statistic.type not in (int, float):
        return None
    declared = statistic.quantity
    label = declared.label or declared.name.replace("_", " ").capitalize()
    short = declared.short or label
    if statistic.name:
        label, short = f"{label} {statistic.name}", f"{short} {statistic.name}"
    if statistic.steady:
        label, short = f"{label}, steady state", f"{short} steady"
    milliseconds = declared.unit == "s" and (statistic.name or declared.kind == "latency")
    unit, scale = ("ms", 1e3) if milliseconds else _SCALES.get(declared.unit, (declared.unit, 1.0))
    return LabelledColumn(column, label, short, unit, scale, declared.better, declared.name)


def compared_column(
    column: str, suggestions: Iterable[str], percentiles: Iterable[float] = PERCENTILES
) -> LabelledColumn:
    """Return the labels of a column by which configurations can be ranked (higher or lower is better).

    Raises ConfigError for any other name; the message gives the nearest suggestion.
    """
    labelled = labelled_column(column, percentiles)
    if labelled is None or labelled.better is None:
        raise ConfigError(
            f"metric={column}: expected a quantity by which configurations can be ranked; "
            f"{did_you_mean(column, suggestions)}"
        )
    return labelled


def definitions(available: Collection[str], percentiles: Iterable[float] = PERCENTILES) -> dict[str, str]:
    """Return name -> formula for the quantities with any of these columns."""
    declared = (statistic.quantity for name, statistic in columns(percentiles).items() if name in available)
    return {quantity.name: quantity.formula for quantity in declared}
