"""A quantity is declared once, above the function that computes it; everything else is derived from the declaration.

This includes the row's columns and types, the columns that are null in a failed row, labels, the summary, the report's
definitions, the trackers' metrics and the tables of docs/metrics.md. The docstring is the formula.
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
"""The kinds that are null for a trial without a result: half a measurement must not look like a fast one."""

BUFFERED = 0.1  # share of merged events above which times between events are meaningless

OLD_PERCENTILES = (50.0, 90.0, 99.0)  # in rows from before percentiles were a setting


@dataclass(frozen=True, kw_only=True, eq=False)
class Quantity:
    """The definition of a quantity: its meaning and its computation.

    Its kind determines when it is undefined. Latencies and goodput need a client's timestamps: they are omitted if the
    engine took the timestamps. Validity quantities show how far to trust the other kinds; counts are requests, tokens
    and seconds.
    """

    name: str
    unit: str  # unit of the data: s, bytes, tokens/s, …; "share" (0 to 1); "" if there is none
    kind: Kind
    function: Callable[..., Any]  # its parameters are named like a trial's inputs or other quantities (`summarise`)
    formula: str
    better: Literal["higher", "lower"] | None = None
    # of a series, which the row summarises; None: one value
    per: Literal["request", "gap", "batch", "session"] | None = None
    type: type = float  # type of a single value: float, int, bool or str
    label: str | None = None  # None: the quantity's name
    short: str | None = None  # None: the label
    event: Literal["sent", "first", "last"] | None = None  # event at which a request's value is known (send,
    # first or last token): a series with an event is summarised over the steady state too
    steady: bool = False  # whether it is a single value over the steady state
    spaced: bool = False  # based on the time between an answer's events: null if they were buffered
    headline: Mapping[str, int] = field(default_factory=dict)  # statistic ("" for one value) -> rank among headlines
    recorded_as: str | None = None  # column of requests.parquet with each request's value; None: the quantity's name

    @property
    def request_column(self) -> str:
        """Return the column of requests.parquet with each request's value."""
        return self.recorded_as or self.name

    @property
    def module(self) -> str:
        return self.function.__module__


@dataclass(frozen=True)
class Statistic:
    """One measured column of the trials row."""

    column: str
    quantity: Quantity
    name: str  # mean, p50, …, max; "" for a single value
    steady: bool

    @property
    def type(self) -> type:
        return float if self.name else self.quantity.type

    @property
    def mean_column(self) -> str:
        """The name of the column with the mean of the same series."""
        return _series_column(self.quantity, "mean", self.steady)


_DECLARED: dict[str, Quantity] = {}


def is_buffered(buffered_share: Value) -> bool:
    """Return whether a buffer, rather than the engine, determines the time between events."""
    return isinstance(buffered_share, float) and buffered_share > BUFFERED


def declare(quantity: Quantity) -> None:
    """Add a quantity.

    Raises ValueError if its name is already taken.
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
    """Return every quantity, in the order of the row."""
    from sweep.numbers import quantities  # noqa: F401  its modules declare them

    return list(_DECLARED.values())


def percentile_name(percentile: float) -> str:
    """Return the column suffix of a percentile: p99, or p99_9 for 99.9, since dots are reserved for axes."""
    return f"p{percentile:g}".replace(".", "_")


def columns(percentiles: Iterable[float] = PERCENTILES) -> dict[str, Statistic]:
    """Return the measured columns of a trials row, in order."""
    return _columns(tuple(declared()), tuple(percentiles))


@cache
def _columns(quantities: tuple[Quantity, ...], percentiles: tuple[float, ...]) -> dict[str, Statistic]:
    names = ["mean", *map(percentile_name, percentiles), "max"]
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
