"""A quantity is declared once, above the function that computes it; everything else about it follows from there.

The row's columns and their types, what a failed row leaves empty, labels, the summary, the report's definitions, what a
tracker gets and the tables of docs/metrics.md are all derived from the declarations. The docstring is the formula.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, TypeVar

from sweep.base.config import PERCENTILES

Value = float | int | str | bool | None
Kind = Literal["latency", "throughput", "count", "cost", "memory", "energy", "validity"]
Function = TypeVar("Function", bound=Callable[..., Any])

PERFORMANCE: frozenset[Kind] = frozenset({"latency", "throughput", "cost", "energy"})
"""The kinds that a trial without a result does not have: half a measurement must not look like a fast one."""

BUFFERED = 0.1  # share of the events that came together with another, above which the time between them means nothing

OLD_PERCENTILES = (50.0, 90.0, 99.0)  # of rows from before they were a setting


@dataclass(frozen=True, kw_only=True, eq=False)
class Quantity:
    """The definition of a quantity: its meaning and its computation.

    Its kind says when it does not hold. A latency rests on a client's stamps (goodput does, too): it is left out if the
    engine took its own. Validity says how far to believe the others; counts are requests, tokens and seconds.
    """

    name: str
    unit: str  # of the data: s, bytes, tokens/s, …; "share" of one; "" where it has none
    kind: Kind
    function: Callable[..., Any]  # its parameters are inputs of a trial, or other quantities, by name (`summarise`)
    formula: str
    better: Literal["higher", "lower"] | None = None
    per: Literal["request", "gap", "batch"] | None = None  # a series, whose statistics the row has; None: one figure
    type: type = float  # of the figure: float, int, bool or str
    label: str | None = None  # None: the name
    short: str | None = None  # None: the label
    event: Literal["sent", "first", "last"] | None = None  # at which a request's value is known (send, first or last
    # token): a series with an event is summarised over the steady state too
    steady: bool = False  # a figure over the steady state
    spaced: bool = False  # rests on the time between the events of an answer: null where they were buffered
    headline: Mapping[str, int] = field(default_factory=dict)  # statistic, "" of a figure -> rank among the headlines
    recorded_as: str | None = None  # column of requests.parquet with a request's value; None: the name

    @property
    def request_column(self) -> str:
        """The column of requests.parquet with each request's value of a series per request."""
        return self.recorded_as or self.name

    @property
    def module(self) -> str:
        return self.function.__module__


@dataclass(frozen=True)
class Statistic:
    """One measured column of the trials row."""

    column: str
    quantity: Quantity
    name: str  # mean, p50, …, max; "" of a figure
    steady: bool

    @property
    def type(self) -> type:
        return float if self.name else self.quantity.type

    @property
    def mean_column(self) -> str:
        """The column of the mean of the same series."""
        return _series_column(self.quantity, "mean", self.steady)


_DECLARED: dict[str, Quantity] = {}


def is_buffered(buffered_share: Value) -> bool:
    """Return whether a buffer, not the engine, sets the time between events."""
    return isinstance(buffered_share, float) and buffered_share > BUFFERED


def declare(quantity: Quantity) -> None:
    """Add a quantity.

    Raises:
        ValueError: if there is one of that name.
    """
    if (other := _DECLARED.setdefault(quantity.name, quantity)) is not quantity:
        raise ValueError(f"{quantity.name}: declared twice, in {other.module} and {quantity.module}")


def quantity(**declaration: Any) -> Callable[[Function], Function]:
    """Declare the function below as the quantity of its name; the docstring's first paragraph is the formula."""

    def decorate(function: Function) -> Function:
        paragraph = (inspect.getdoc(function) or "").partition("\n\n")[0]
        formula = " ".join(paragraph.split()).partition(" Shape (")[0]
        declare(Quantity(name=function.__name__, function=function, formula=formula, **declaration))
        return function

    return decorate


def declared() -> list[Quantity]:
    """Every quantity, in the order of the row."""
    from sweep.numbers import quantities  # noqa: F401  its modules declare them

    return list(_DECLARED.values())


def statistic_names(percentiles: Iterable[float]) -> list[str]:
    """The statistics of a series: mean, p50, …, max."""
    return ["mean", *map(percentile_name, percentiles), "max"]


def percentile_name(percentile: float) -> str:
    """p99; p99_9 of 99.9, since a dot is in the names of axes alone."""
    return f"p{percentile:g}".replace(".", "_")


def columns(percentiles: Iterable[float] = PERCENTILES) -> dict[str, Statistic]:
    """The measured columns of a trials row, in order."""
    return _columns(tuple(declared()), tuple(percentiles))


@cache
def _columns(quantities: tuple[Quantity, ...], percentiles: tuple[float, ...]) -> dict[str, Statistic]:
    names = statistic_names(percentiles)
    statistics: list[Statistic] = []
    for quantity in quantities:
        if quantity.per is None:
            statistics.append(Statistic(quantity.name, quantity, "", quantity.steady))
            continue
        for steady in (False, True) if quantity.event else (False,):
            statistics += [Statistic(_series_column(quantity, name, steady), quantity, name, steady) for name in names]
    return {statistic.column: statistic for statistic in statistics}


def _series_column(quantity: Quantity, statistic: str, steady: bool) -> str:
    return f"{'steady_' if steady else ''}{quantity.name}_{statistic}"
