"""The data types of an answer: the criterion, its configurations, and the remedy for a tie."""

import math
from dataclasses import dataclass
from typing import NamedTuple

from analysis.answers.slo_bounds import Bound
from analysis.quantities import LabelledColumn
from analysis.statistics.contests import Standing
from analysis.statistics.intervals import Estimate

MOST_SUGGESTED = 3  # multiple of the launches that ran; suggesting more would be absurd


@dataclass(frozen=True)
class TaskCriterion:
    """The criterion of a task: configurations are ranked by `quantity`, within the bounds."""

    title: str  # the task, and the load if it is part of the question
    quantity: LabelledColumn
    bounds: tuple[Bound, ...] = ()

    @property
    def quantities(self) -> tuple[LabelledColumn, ...]:
        return (self.quantity, *(bound.quantity for bound in self.bounds))

    @property
    def adjective(self) -> str:
        """The word for the best, e.g. fastest."""
        if self.quantity.column == "capacity":
            return "best"
        return "cheapest" if self.quantity.unit.startswith("$") else "fastest"


@dataclass(frozen=True)
class RankedConfiguration:
    """A configuration at its best load."""

    name: str  # name: engine and settings
    load: str  # empty if all have the same load
    run: str
    figure: Estimate
    headroom: float = math.nan  # smallest unused share of a bound; negative if exceeded; NaN without bounds
    tightest: Bound | None = None  # the bound with that share
    latency: Estimate | None = None  # the latency under that bound
    standing: Standing = Standing.BEHIND
    ratio: float = math.nan  # the best's value / this configuration's, with its interval
    low: float = math.nan
    high: float = math.nan
    point: int = -1  # position among the points of all runs
    judged: bool = True  # False: too few requests for the bounded percentile
    codes: tuple[str, ...] = ()  # codes of warnings about its value and its bounded latencies
    measured: tuple[str, str] | None = None  # start of its first and of its last trial
    dropped: str | None = None  # why the race needed no more of its trials

    @property
    def meets(self) -> bool:
        """True if the latencies are within all bounds, or there is no bound."""
        return math.isnan(self.headroom) or self.headroom >= 0

    @property
    def surely_meets(self) -> bool:
        """True if the interval of the latency closest to its bound is within that bound as well."""
        if self.tightest is None or self.latency is None:
            return True
        return self.meets and self.latency.high <= self.tightest.limit

    @property
    def full_name(self) -> str:
        """The name, with the load if loads differ between configurations."""
        return f"{self.name} at {self.load}" if self.load else self.name


class Remedy(NamedTuple):
    """The launches that would separate the best from the runner-up."""

    difference: float  # relative difference to detect: the measured one, or the margin if larger
    launches: int  # further launches of each configuration; 0: the spread between launches is unknown
    replicates: int  # total replicates
    minutes: float  # NaN if no durations are known

    @property
    def size(self) -> str:
        """The difference as text, e.g. `5.1%`."""
        return f"{self.difference:.1%}" if self.difference < 0.1 else f"{self.difference:.0%}"


@dataclass(frozen=True)
class TaskAnswer:
    """The configurations of a task, the best first. Configurations that meet the bounds come first."""

    criterion: TaskCriterion
    configurations: tuple[RankedConfiguration, ...]
    remedy: Remedy | None = None  # for a tie
    shorter: tuple[str, ...] = ()  # names of configurations excluded because their answers were shorter
    barred: tuple[RankedConfiguration, ...] = ()  # configurations not ranked because of a severe warning

    @property
    def meeting(self) -> tuple[RankedConfiguration, ...]:
        return tuple(configuration for configuration in self.configurations if configuration.meets)

    @property
    def best(self) -> RankedConfiguration | None:
        """The best configuration that meets the bounds; None if none does."""
        return next(iter(self.meeting), None)

    @property
    def tied(self) -> tuple[RankedConfiguration, ...]:
        """The configurations that tie with the best."""
        return tuple(configuration for configuration in self.meeting if configuration.standing is Standing.TIED)

    @property
    def judged(self) -> bool:
        """True if any configuration has enough requests for the bounded percentiles."""
        return any(configuration.judged for configuration in self.configurations)

    @property
    def suggested(self) -> Remedy | None:
        """The remedy for a tie, if it takes fewer than MOST_SUGGESTED times the launches that ran."""
        affordable = self.remedy and self.best and self.remedy.launches < MOST_SUGGESTED * self.best.figure.n
        return self.remedy if affordable else None

    @property
    def decided(self) -> bool:
        """True if one of several configurations leads."""
        return len(self.meeting) > 1 and not self.tied
