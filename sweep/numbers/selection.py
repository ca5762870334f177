"""Selects the requests of a trial that a quantity covers, and computes sums and spans over them.

A mask of shape (requests,) selects requests: `measured` excludes the warm-up, `succeeded` failed requests.
"""

from array import array
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sweep.base.records import UNKNOWN, Records
from sweep.numbers.chunks import Floats, Mask, as_floats, token_times


class Window(NamedTuple):
    """The part of a trial that was in steady state (`steady`), in s from the trial's start."""

    begin: float | None
    end: float | None  # None, like `begin`, if there is no steady state
    method: str  # the rule that found it, or the reason for its absence


def measured(records: Records, discard_first_batch: bool = False) -> Mask:
    """Return the requests that belong neither to the warm-up nor to a discarded first batch. Shape (requests,)."""
    mask = np.fromiter((phase == "measured" for phase in records.phase), np.bool_, len(records))
    return mask & (np.asarray(records.batch) != 0) if discard_first_batch else mask


def succeeded(records: Records) -> Mask:
    """Return the requests that were answered completely, without an error. Shape (requests,)."""
    return np.fromiter((error is None for error in records.error), np.bool_, len(records))


def was_sent(records: Records) -> Mask:
    """Return the requests that were sent, excluding requests that were due but never got a slot. Shape (requests,)."""
    return ~np.isnan(as_floats(records.sent))


def engine_answered(records: Records) -> Mask:
    """Return the successful requests whose answer arrived from the engine as it was generated. Shape (requests,)."""
    by_gateway: Mask = np.asarray(records.gateway_answer, np.bool_)
    return succeeded(records) & ~by_gateway


def with_failures(values: Floats, failed: Mask) -> Floats:
    """Return a latency's values per request, infinite (slower than any other) for failed requests.

    Otherwise a quantile would cover only the survivors, and the slowest requests often do not survive. Same shape.
    """
    return np.where(failed, np.inf, values)


def sent_within(records: Records, mask: Mask, window: Window) -> Mask:
    """Return the requests in the mask sent in the window, whenever they ended, since the drain was observed too.

    A request that was due in the window but never sent is included, like a request that never ended.
    """
    if window.begin is None or window.end is None:
        return np.zeros_like(mask)
    sent = np.where(was_sent(records), as_floats(records.sent), as_floats(records.scheduled))
    return mask & (sent >= window.begin) & (sent <= window.end)


def total_tokens(counts: "array[int]", mask: Mask) -> int | None:
    """Return Σ tokens of the requests in the mask; None if the mask is empty, or a count is unknown."""
    chosen = np.asarray(counts)[mask]
    return None if chosen.size == 0 or np.any(chosen == UNKNOWN) else int(chosen.sum(dtype=np.int64))


def first_send(records: Records, mask: Mask) -> float:
    """Return the earliest send time in the mask, in s from the trial's start; infinite if the mask is empty."""
    return float(np.nanmin(as_floats(records.sent)[mask], initial=np.inf))


def spans(records: Records, mask: Mask) -> tuple[Floats, Floats]:
    """Return times of send and last token of requests in the mask that got tokens, in order of send; s from start."""
    sent = as_floats(records.sent)[mask]
    last = sent + token_times(records)[1][mask]
    answered = ~np.isnan(last)
    order = np.argsort(sent[answered], kind="stable")
    return sent[answered][order], last[answered][order]


def per_second(count: float | None, seconds: float | None) -> float | None:
    """Return count / seconds, as for every throughput; None if there is nothing to count."""
    return count / seconds if count and seconds else None


def divided(times: Floats, tokens: NDArray[Any]) -> Floats:
    """Return times / tokens, NaN where either is missing. Same shape as both."""
    quotient: Floats = np.divide(times, tokens, out=np.full_like(times, np.nan), where=tokens > 0)
    return quotient
