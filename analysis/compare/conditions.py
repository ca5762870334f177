"""Conditions under which a comparison makes a script fail, e.g. `output_throughput < -3%`."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from analysis.compare.verdicts import PointComparison
from sweep.base.config import ConfigError

FORM = re.compile(r"\s*([\w.]+)\s*([<>])\s*([+-]?\d+(?:\.\d+)?)\s*%\s*")


@dataclass(frozen=True)
class Condition:
    """A change of a column, relative to the reference, that is a failure if it exceeds the noise."""

    text: str
    column: str
    sign: Literal["<", ">"]
    change: float  # relative, e.g. -0.03 for 3% less

    def met(self, comparison: PointComparison) -> bool:
        """Return whether the change exceeds the condition's limit, and its one-sided bound excludes "no change"."""
        if not self.judges(comparison) or comparison.within_guess:
            return False
        if self.sign == "<":
            return comparison.ratio - 1 < self.change and comparison.all_high < 1
        return comparison.ratio - 1 > self.change and comparison.all_low > 1

    def judges(self, comparison: PointComparison) -> bool:
        """Return whether the comparison is for this column and has an interval (needed for any decision)."""
        return comparison.quantity.column == self.column and not math.isnan(comparison.low)


def condition(text: str) -> Condition:
    """Parse a condition.

    Raises ConfigError unless it is a column, < or >, and a percentage: below 0 after <, above 0 after >.
    """
    parts = FORM.fullmatch(text)
    allowed = 'expected a column, < or >, and a percentage, e.g. "output_throughput < -3%" or "ttft_p99 > 5%"'
    if parts is None:
        raise ConfigError(f"fail-if={text}: {allowed}")
    column, sign, percentage = parts[1], parts[2], float(parts[3]) / 100
    if (sign == "<") != (percentage < 0) and percentage != 0:
        raise ConfigError(f"fail-if={text}: the percentage must be negative after < and positive after >; {allowed}")
    return Condition(text, column, "<" if sign == "<" else ">", percentage)


def failures(
    conditions: Iterable[Condition], comparisons: Sequence[PointComparison]
) -> list[tuple[Condition, PointComparison]]:
    """Return the conditions that are met, each with the comparison that meets it."""
    return [(each, comparison) for each in conditions for comparison in comparisons if each.met(comparison)]


def unjudged(conditions: Iterable[Condition], comparisons: Sequence[PointComparison]) -> list[str]:
    """Return a line per undecided condition: a comparison has no interval, or the reference lacks the column.

    A configuration without a value in the reference is skipped, since it cannot get worse.
    """
    lines = []
    for each in conditions:
        of_column = [comparison for comparison in comparisons if comparison.quantity.column == each.column]
        if all(math.isnan(comparison.first) for comparison in of_column):
            lines.append(f"{each.text}: no configuration in the reference has {each.column}")
        lines += [
            f"{each.text}: {comparison.label}: {comparison.reason or comparison.verdict}"
            for comparison in of_column
            if not math.isnan(comparison.first) and not each.judges(comparison)
        ]
    return lines
