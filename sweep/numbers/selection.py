"""Selects the requests of a trial that a figure covers, and computes sums and spans over them.

A mask of shape (requests,) selects them: `measured` leaves out the warm-up, `succeeded` failed requests.
"""

from array import array
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sweep.base.records import UNKNOWN, Records
from sweep.numbers.chunks import Floats, Mask, as_floats, token_times


class Window(NamedTuple):
    """The part of a trial in which it was in steady state (`steady`), s from the trial's start."""

    begin: float | None
    end: float | None  # None, as begin, without a steady state
    method: str  # how it was found, or why it was not


def measured(records: Records, discard_first_batch: bool = False) -> Mask:
    """The requests that are not warm-up, nor of the first lockstep batch where that is discarded. Shape (requests,)."""
    mask = np.fromiter((phase == "measured" for phase in records.phase), np.bool_, len(records))
    return mask & (np.asarray(records.batch) != 0) if discard_first_batch else mask


def succeeded(records: Records) -> Mask:
    """The requests that were answered to the end, without an error. Shape (requests,)."""
    return np.fromiter((error is None for error in records.error), np.bool_, len(records))


def was_sent(records: Records) -> Mask:
    """The requests that were sent, not only due while others held all slots. Shape (requests,)."""
    return ~np.isnan(as_floats(records.sent))


def engine_answered(records: Records) -> Mask:
    """The successful requests whose answer came from the engine as it was made. Shape (requests,)."""
    by_gateway: Mask = np.asarray(records.gateway_answer, np.bool_)
    return succeeded(records) & ~by_gateway


def with_failures(values: Floats, failed: Mask) -> Floats:
    """The values of a latency for each request, infinite for failed ones: they are slower than any other.

    Without them a quantile would be of the survivors, and the slowest requests often do not survive. Shape of both.
    """
    return np.where(failed, np.inf, values)


def sent_within(records: Records, mask: Mask, window: Window) -> Mask:
    """The requests in the mask sent in the window, whenever they ended: the drain after it was observed too.

    One that was due in it and never sent is among them, as one that never ended is.
    """
    if window.begin is None or window.end is None:
        return np.zeros_like(mask)
    sent = np.where(was_sent(records), as_floats(records.sent), as_floats(records.scheduled))
    return mask & (sent >= window.begin) & (sent <= window.end)


def total_tokens(counts: "array[int]", mask: Mask) -> int | None:
    """Σ tokens of the requests in the mask; None without any, or the count of one of them is unknown."""
    chosen = np.asarray(counts)[mask]
    return None if chosen.size == 0 or np.any(chosen == UNKNOWN) else int(chosen.sum(dtype=np.int64))


def first_send(records: Records, mask: Mask) -> float:
    """The first send of the requests in the mask, s from the trial's start; infinite without any."""
    return float(np.nanmin(as_floats(records.sent)[mask], initial=np.inf))


def spans(records: Records, mask: Mask) -> tuple[Floats, Floats]:
    """Send and last token of the requests in the mask that got one, ordered by send, s from the trial's start."""
    sent = as_floats(records.sent)[mask]
    last = sent + token_times(records)[1][mask]
    answered = ~np.isnan(last)
    order = np.argsort(sent[answered], kind="stable")
    return sent[answered][order], last[answered][order]


def per_second(count: float | None, seconds: float | None) -> float | None:
    """count / seconds: every throughput. None without anything to count."""
    return count / seconds if count and seconds else None


def divided(times: Floats, tokens: NDArray[Any]) -> Floats:
    """times / tokens, NaN where missing. Shape of both."""
    quotient: Floats = np.divide(times, tokens, out=np.full_like(times, np.nan), where=tokens > 0)
    return quotient
