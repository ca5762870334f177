"""The bounds of an SLO on percentiles of latencies, and which percentile so many requests can resolve."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from analysis.headline import shown_column, shown_requests
from analysis.quantities import LabelledColumn, labelled_column
from analysis.statistics.intervals import FEWEST_BEYOND
from sweep.base.config import PERCENTILES, ConfigError, split_bound
from sweep.disk.row import merged_percentiles, percentiles_text
from sweep.numbers.quantity import percentile_name

LEAST_BOUNDED = 90  # lowest percentile at which an SLO is judged


@dataclass(frozen=True)
class Bound:
    """An upper bound on a percentile of a latency."""

    quantity: LabelledColumn
    limit: float  # seconds
    percentile: float

    @property
    def text(self) -> str:
        """The bound as text, e.g. `TTFT p99 ≤ 200 ms`."""
        return f"{self.quantity.short} ≤ {self.quantity.shown(self.limit)} {self.quantity.unit}"

    def on(self, column: str) -> "Bound":
        """Return the bound on another column of the same quantity and percentile."""
        labelled = labelled_column(column, [self.percentile])
        return self if labelled is None else replace(self, quantity=labelled)

    def headroom(self, value: float) -> float:
        """Return the unused share of the bound; negative if exceeded, and -∞ if the percentile is a failed request."""
        return -math.inf if math.isnan(value) else 1 - value / self.limit


def bounds(
    slo: Mapping[str, float], fewest_requests: int, percentiles: Sequence[float] = PERCENTILES
) -> tuple[Bound, ...]:
    """Return the bounds of an SLO, such as {"ttft.p90": 0.2}.

    A bound without a percentile applies to the highest percentile that this many requests can resolve.

    Raises ConfigError for a percentile that these trials lack.
    """
    usual, limits = bounded_percentile(fewest_requests, percentiles), []
    for name, limit in slo.items():
        latency, typed = split_bound(name)
        percentile = usual if typed is None else typed
        labelled = labelled_column(f"{latency}_{percentile_name(percentile)}", percentiles)
        if labelled is None or percentile not in percentiles:
            raise ConfigError(f"slo={name}: expected one of {', '.join(f'p{each:g}' for each in percentiles)}")
        limits.append(Bound(labelled, limit, percentile))
    return tuple(limits)


def fewest_requests(points: pd.DataFrame, slo: Iterable[str], percentiles: Sequence[float]) -> int:
    """Return the fewest requests behind any point's values; this sets the percentile of a bound that names none."""
    fewest = int((points["requests"] + points["failed"]).min())
    usual = percentile_name(bounded_percentile(fewest, percentiles))
    names = [f"{bound}_{usual}" for bound in slo if ".p" not in bound]
    behind = (shown_requests(point, shown_column(point, name)) for _, point in points.iterrows() for name in names)
    return int(min(behind, default=fewest))


def common_percentiles(trials: pd.DataFrame) -> tuple[float, ...]:
    """Return the percentiles that all these trials have; the default percentiles if no trial has any."""
    texts = {text if isinstance(text, str) else percentiles_text(PERCENTILES) for text in trials["percentiles"]}
    common = set(merged_percentiles(texts)).intersection(*(merged_percentiles([text]) for text in texts))
    return tuple(sorted(common)) or PERCENTILES


def bounded_percentile(fewest_requests: int, percentiles: Sequence[float]) -> float:
    """Return the highest percentile that this many requests can resolve, and at least LEAST_BOUNDED.

    With a lower percentile an SLO would be met although many requests miss it.
    """
    high = [each for each in percentiles if each >= LEAST_BOUNDED] or [max(percentiles)]
    usable = [each for each in high if tells(fewest_requests, each)]
    return max(usable, default=min(high))


def tells(requests: float, percentile: float) -> bool:
    """Return whether this many requests can resolve a percentile."""
    return requests * (100 - percentile) / 100 >= FEWEST_BEYOND
