"""The data types of an answer: the question, the configurations that it is asked of, and what would decide a tie."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd

from analysis.quantities import LabelledColumn, labelled_column
from analysis.statistics.intervals import FEWEST_BEYOND, Estimate
from analysis.statistics.standings import Standing
from sweep.base.config import PERCENTILES, ConfigError, one_of
from sweep.disk.row import merged_percentiles, percentiles_text
from sweep.numbers.quantities.goodput import BOUNDED
from sweep.numbers.quantity import percentile_name


@dataclass(frozen=True)
class Bound:
    """The most that a percentile of a latency may be."""

    quantity: LabelledColumn
    limit: float  # s

    @property
    def text(self) -> str:
        """`TTFT p99 ≤ 200 ms`."""
        return f"{self.quantity.short} ≤ {self.quantity.shown(self.limit)} {self.quantity.unit}"

    def headroom(self, value: float) -> float:
        """The share of the bound that is left; below 0 over it, and -∞ for a percentile that falls on failures."""
        return -math.inf if math.isnan(value) else 1 - value / self.limit


def bounds(
    slo: Mapping[str, float], fewest_requests: int, percentiles: Sequence[float] = PERCENTILES
) -> tuple[Bound, ...]:
    """The bounds of an SLO, such as {"ttft": 0.2}, on the highest of the percentiles that so many requests can tell."""
    percentile = percentile_name(bounded_percentile(fewest_requests, percentiles))
    labelled = {name: labelled_column(f"{name}_{percentile}", percentiles) for name in slo}
    return tuple(Bound(column, slo[name]) for name, column in labelled.items() if column is not None)


def common_percentiles(trials: pd.DataFrame) -> tuple[float, ...]:
    """The percentiles that all of these trials have, which an SLO can be on; the default ones where there is none."""
    texts = {text if isinstance(text, str) else percentiles_text(PERCENTILES) for text in trials["percentiles"]}
    common = set(merged_percentiles(texts)).intersection(*(merged_percentiles([text]) for text in texts))
    return tuple(sorted(common)) or PERCENTILES


def bounded_percentile(fewest_requests: int, percentiles: Sequence[float]) -> float:
    """The highest of the percentiles that so many requests can tell."""
    usable = [each for each in percentiles if fewest_requests * (100 - each) / 100 >= FEWEST_BEYOND]
    return max(usable, default=min(percentiles))


def slo_of(text: str) -> dict[str, float]:
    """The SLO that `ttft=0.2,tpot=0.02` states, in s.

    Raises:
        ConfigError: for anything else.
    """
    try:
        pairs = [pair.split("=") for pair in text.split(",")]
        slo = {name.strip(): float(value) for name, value in pairs}
    except ValueError:
        raise ConfigError(f"slo={text}: expected NAME=SECONDS,... of ttft, tpot and e2el") from None
    for name in slo:
        if name not in BOUNDED:
            raise one_of("slo", name, list(BOUNDED))
    if bad := [name for name, limit in slo.items() if not 0 < limit < math.inf]:
        raise ConfigError(f"slo={text}: {bad[0]} must be a number of seconds above 0")
    return slo


@dataclass(frozen=True)
class TaskQuestion:
    """A question about the configurations: by which `quantity` one is best, within the bounds."""

    title: str  # the task, and the load if it is a part of the question
    quantity: LabelledColumn
    bounds: tuple[Bound, ...] = ()

    @property
    def quantities(self) -> tuple[LabelledColumn, ...]:
        """Those that the answer rests on."""
        return (self.quantity, *(bound.quantity for bound in self.bounds))

    @property
    def adjective(self) -> str:
        """The word for the best."""
        return "cheapest" if self.quantity.unit.startswith("$") else "fastest"


@dataclass(frozen=True)
class Candidate:
    """A configuration, at the load at which it does best."""

    name: str  # its engine and settings
    load: str  # empty where all are asked at the same load
    run: str
    figure: Estimate
    headroom: float = math.nan  # the least share of a bound that is left; negative if it is over; NaN without bounds
    tightest: Bound | None = None  # of which that is
    latency: Estimate | None = None  # by that bound
    standing: Standing = Standing.BEHIND
    ratio: float = math.nan  # the best's figure over this one's, with its interval
    low: float = math.nan
    high: float = math.nan
    point: int = -1  # its place among the points of all runs
    codes: tuple[str, ...] = ()  # of the warnings about its figure and what is bounded

    @property
    def meets(self) -> bool:
        """True without bounds, or within all of them."""
        return math.isnan(self.headroom) or self.headroom >= 0

    @property
    def surely_meets(self) -> bool:
        """True if the interval of the tightest latency is within its bound as well."""
        if self.tightest is None or self.latency is None:
            return True
        return self.meets and self.latency.high <= self.tightest.limit

    @property
    def full_name(self) -> str:
        """The name, with the load if it has one of its own."""
        return f"{self.name} at {self.load}" if self.load else self.name


class Remedy(NamedTuple):
    """The launches that would tell the best from the runner-up."""

    difference: float  # relative, that they would find: the one measured, or the margin if that is larger
    launches: int  # more, of each of the two; 0: it is unknown how much launches differ
    replicates: int  # in all
    minutes: float  # NaN if no durations are known


@dataclass(frozen=True)
class TaskAnswer:
    """The candidates of a question: those that meet its bounds first, the best first of all."""

    question: TaskQuestion
    candidates: tuple[Candidate, ...]
    remedy: Remedy | None = None  # of a tie
    shorter: tuple[str, ...] = ()  # names of configurations left out, whose shorter answers took less time
    barred: tuple[Candidate, ...] = ()  # those that a severe warning keeps from being ranked

    @property
    def meeting(self) -> tuple[Candidate, ...]:
        return tuple(candidate for candidate in self.candidates if candidate.meets)

    @property
    def best(self) -> Candidate | None:
        """The best of those that meet the bounds; None if none does."""
        return next(iter(self.meeting), None)

    @property
    def tied(self) -> tuple[Candidate, ...]:
        """Those not told apart from the best."""
        return tuple(candidate for candidate in self.meeting if candidate.standing is Standing.TIED)

    @property
    def decided(self) -> bool:
        """True if one of several is told apart from all others."""
        return len(self.meeting) > 1 and not self.tied
