"""The data types of an answer: the question, the configurations that it is asked of, and what would decide a tie."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd

from analysis.quantities import LabelledColumn, labelled_column
from analysis.statistics.intervals import FEWEST_BEYOND, Estimate
from analysis.statistics.standings import Standing
from sweep.base.config import PERCENTILES, ConfigError
from sweep.disk.row import merged_percentiles, percentiles_text
from sweep.numbers.quantity import percentile_name

MOST_SUGGESTED = 3  # times those that ran: to suggest more would be absurd
LEAST_BOUNDED = 90  # the lowest percentile that an SLO is judged at


@dataclass(frozen=True)
class Bound:
    """The most that a percentile of a latency may be."""

    quantity: LabelledColumn
    limit: float  # s
    percentile: float

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
    """The bounds of an SLO, such as {"ttft.p90": 0.2}.

    One without a percentile is on the highest that so many requests can tell.

    Raises:
        ConfigError: for a percentile that these trials lack.
    """
    usual, limits = bounded_percentile(fewest_requests, percentiles), []
    for name, limit in slo.items():
        latency, _, typed = name.partition(".p")
        percentile = float(typed) if typed else usual
        labelled = labelled_column(f"{latency}_{percentile_name(percentile)}", percentiles)
        if labelled is None or percentile not in percentiles:
            raise ConfigError(f"slo={name}: expected one of {', '.join(f'p{each:g}' for each in percentiles)}")
        limits.append(Bound(labelled, limit, percentile))
    return tuple(limits)


def common_percentiles(trials: pd.DataFrame) -> tuple[float, ...]:
    """The percentiles that all of these trials have, for an SLO; the default ones if no trial has any."""
    texts = {text if isinstance(text, str) else percentiles_text(PERCENTILES) for text in trials["percentiles"]}
    common = set(merged_percentiles(texts)).intersection(*(merged_percentiles([text]) for text in texts))
    return tuple(sorted(common)) or PERCENTILES


def bounded_percentile(fewest_requests: int, percentiles: Sequence[float]) -> float:
    """The highest of the percentiles that so many requests can tell, and never one below LEAST_BOUNDED.

    A lower one would call an SLO met that half of the requests miss.
    """
    high = [each for each in percentiles if each >= LEAST_BOUNDED] or [max(percentiles)]
    usable = [each for each in high if tells(fewest_requests, each)]
    return max(usable, default=min(high))


def tells(requests: float, percentile: float) -> bool:
    """Return whether so many requests can tell a percentile."""
    return requests * (100 - percentile) / 100 >= FEWEST_BEYOND


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
    judged: bool = True  # False: its requests are too few for the bounded percentile
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
        """Those that tie with the best."""
        return tuple(candidate for candidate in self.meeting if candidate.standing is Standing.TIED)

    @property
    def judged(self) -> bool:
        """False if every candidate has too few requests for the bounded percentile."""
        return any(candidate.judged for candidate in self.candidates)

    @property
    def suggested(self) -> Remedy | None:
        """The remedy of a tie, if it takes fewer than three times the launches that ran."""
        affordable = self.remedy and self.best and self.remedy.launches < MOST_SUGGESTED * self.best.figure.n
        return self.remedy if affordable else None

    @property
    def decided(self) -> bool:
        """True if one of several leads."""
        return len(self.meeting) > 1 and not self.tied
