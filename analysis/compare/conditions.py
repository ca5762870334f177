"""Conditions on a comparison under which a script is to fail, e.g. `output_throughput < -3%`."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from analysis.compare.verdicts import PointComparison
from sweep.config import ConfigError

FORM = re.compile(r"\s*([\w.]+)\s*([<>])\s*([+-]?\d+(?:\.\d+)?)\s*%\s*")


@dataclass(frozen=True)
class Condition:
    """The change of a column against the reference that is a failure, once it is beyond the noise."""

    text: str
    column: str
    sign: Literal["<", ">"]
    change: float  # relative: -0.03 is 3 % less

    def met(self, comparison: PointComparison) -> bool:
        """Return whether the figure changed by more than that, and its interval leaves out no change at all."""
        if comparison.quantity.column != self.column or math.isnan(comparison.low):
            return False
        if self.sign == "<":
            return comparison.ratio - 1 < self.change and comparison.high < 1
        return comparison.ratio - 1 > self.change and comparison.low > 1


def condition(text: str) -> Condition:
    """The condition that a text states.

    Raises:
        ConfigError: unless it is a column, < or >, and a percentage: below 0 after <, above 0 after >.
    """
    parts = FORM.fullmatch(text)
    allowed = 'allowed is a column, < or >, and a percentage, e.g. "output_throughput < -3%" or "ttft_p99 > 5%"'
    if parts is None:
        raise ConfigError(f"fail-if={text}: {allowed}")
    column, sign, percentage = parts[1], parts[2], float(parts[3]) / 100
    if (sign == "<") != (percentage < 0) and percentage != 0:
        raise ConfigError(f"fail-if={text}: a loss is negative after <, and positive after >; {allowed}")
    return Condition(text, column, "<" if sign == "<" else ">", percentage)


def failures(
    conditions: Iterable[Condition], comparisons: Iterable[PointComparison]
) -> list[tuple[Condition, PointComparison]]:
    """Every condition that is met, with the comparison that meets it."""
    every = list(comparisons)
    return [(each, comparison) for each in conditions for comparison in every if each.met(comparison)]
