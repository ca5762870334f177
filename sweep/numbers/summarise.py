"""The measured columns of a trial's row: every declared quantity whose inputs exist."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sweep.base.config import PERCENTILES
from sweep.base.records import Records
from sweep.numbers.chunks import Block, Floats, Mask, blocks
from sweep.numbers.quantile import statistics
from sweep.numbers.quantity import Quantity, Value, declared, is_buffered
from sweep.numbers.selection import Window, first_send, measured, sent_within, succeeded, with_failures

NO_WINDOW = Window(None, None, "not sought")


def summarise(
    records: Records,
    *,
    slo: Mapping[Any, float] | None = None,
    discard_first_batch: bool = False,
    window: Window | None = None,
    percentiles: Sequence[float] = PERCENTILES,
    **inputs: Any,
) -> dict[str, Value]:
    """Return the columns over the whole run, and `steady_*` within the window; further inputs are passed by name.

    They cover the measured requests. Undefined values are None.
    """
    mask, window = measured(records, discard_first_batch), window or NO_WINDOW
    inputs |= {"records": records, "mask": mask, "window": window, "slo": slo, "begin": first_send(records, mask)}
    row = figures(inputs)
    for quantity in declared():
        if quantity.per is not None:
            series = _series(quantity, records, mask, window, percentiles)
            row |= dict.fromkeys(series) if quantity.spaced and is_buffered(row["buffered_share"]) else series
    return row


def figures(inputs: Mapping[str, Any]) -> dict[str, Value]:
    """Return the quantities of a whole trial that can be computed from the inputs and from other quantities.

    An input with a default may be missing.
    """
    pending = {quantity.name: quantity.function for quantity in declared() if quantity.per is None}
    signatures = {name: inspect.signature(function).parameters.values() for name, function in pending.items()}
    parameters = {
        name: [each.name for each in signature if each.name in {*pending, *inputs} or each.default is each.empty]
        for name, signature in signatures.items()
    }
    values: dict[str, Value] = {}
    while ready := [name for name in pending if all(key in inputs or key in values for key in parameters[name])]:
        for name in ready:
            arguments = {key: inputs[key] if key in inputs else values[key] for key in parameters[name]}
            values[name] = pending.pop(name)(**arguments)
    return values


def _series(
    quantity: Quantity, records: Records, mask: Mask, window: Window, percentiles: Sequence[float]
) -> dict[str, Value]:
    """Return the statistics of one series over the whole run and, if it has them, over the window."""
    row = dict[str, Value]()
    if quantity.per == "request":
        values = request_values(quantity, records)
        row |= _prefixed(quantity.name, statistics(values[mask], percentiles))
        if quantity.event:
            inside = values[sent_within(records, mask, window)]
            row |= _prefixed(f"steady_{quantity.name}", statistics(inside, percentiles))
    elif quantity.per in ("batch", "session"):
        row |= _prefixed(quantity.name, statistics(quantity.function(records, mask), percentiles))
    else:
        row |= _prefixed(quantity.name, statistics(gaps(quantity.function, records, mask), percentiles, 1e6))
        if quantity.event:
            inside = gaps(quantity.function, records, mask, window)
            row |= _prefixed(f"steady_{quantity.name}", statistics(inside, percentiles, 1e6))
    return row


def request_values(quantity: Quantity, records: Records) -> Floats:
    """Return a quantity's value per request: for a failed request, infinite for a latency, otherwise NaN.

    A failed request's wait for a slot is known, since it got a slot. Shape (requests,).
    """
    values, failed = np.asarray(quantity.function(records), np.float64), ~succeeded(records)
    if quantity.kind != "latency":
        return np.where(failed, np.nan, values)
    return with_failures(values, failed & np.isnan(values) if quantity.event == "sent" else failed)


def gaps(
    function: Callable[[Block], NDArray[Any]], records: Records, mask: Mask, window: Window | None = None
) -> NDArray[Any]:
    """Return the gaps, in µs, between chunks of the requests in the mask; with a window, gaps that begin in it.

    Gaps are stored in 4 bytes, since a long trial has a hundred million. Shape (gaps,).
    """
    filled, values = 0, np.empty(0, np.uint32)
    begin, end = (-math.inf, math.inf) if window is None else (window.begin, window.end)
    if begin is None or end is None:
        return values
    for block in blocks(records, mask):
        part = function(block)
        if window is not None:
            times = block.times(records)
            part = part[((times[:-1] >= begin) & (times[:-1] <= end))[block.inside()]]
        if not filled:  # larger than needed; unwritten memory is not used
            values = np.empty(len(records.chunk_us), np.uint32 if part.dtype.kind in "iu" else np.float32)
        values[filled : filled + part.size] = part
        filled += part.size
    return values[:filled]


def _prefixed(name: str, values: Mapping[str, Value]) -> dict[str, Value]:
    return {f"{name}_{statistic}": value for statistic, value in values.items()}
