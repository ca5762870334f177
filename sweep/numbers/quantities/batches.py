"""Lockstep batches. A batch with a failed request has no end; throughput covers the time until the client gave up."""

from typing import NamedTuple

import numpy as np

from sweep.base.records import UNKNOWN, Records
from sweep.numbers.chunks import Floats, Mask, as_floats
from sweep.numbers.quantities.latency import service_e2el
from sweep.numbers.quantity import quantity
from sweep.numbers.selection import per_second, succeeded


class Batches(NamedTuple):
    """The lockstep batches of a trial, in order. Each array has shape (batches,)."""

    begin: Floats  # first send of the batch, in s from the trial's start
    latency: Floats  # last token of the batch − its first send, in s; infinite if a request failed
    took: Floats  # the same, but until the client gave up on a failed request
    output_tokens: Floats  # output tokens of its successful requests; NaN if a count is unknown

    def whole(self) -> "Batches":
        """Return the batches in which every request succeeded."""
        chosen = np.isfinite(self.latency)
        return Batches(*(values[chosen] for values in self))


def batches(records: Records, mask: Mask) -> Batches:
    """Return the lockstep batches of a trial."""
    mask = mask & (np.asarray(records.batch) != UNKNOWN)
    ids, member = np.unique(np.asarray(records.batch)[mask], return_inverse=True)
    sent, tokens = as_floats(records.sent)[mask], np.asarray(records.output_tokens, np.float64)[mask]
    answered, end = succeeded(records)[mask], sent + service_e2el(records)[mask]
    given_up = np.where(answered, np.nan, as_floats(records.ended)[mask])
    failed = np.zeros(ids.size, np.bool_)
    np.logical_or.at(failed, member, ~answered | np.isnan(end))
    begins, ends = np.full(ids.size, np.inf), np.full(ids.size, -np.inf)
    np.fmin.at(begins, member, sent)
    np.fmax.at(ends, member, np.fmax(end, given_up))
    tokens = np.where(answered, np.where(tokens == UNKNOWN, np.nan, tokens), 0.0)
    output = np.bincount(member, weights=tokens, minlength=ids.size).astype(np.float64)
    took = np.where(np.isfinite(ends), ends - begins, 0.0)
    return Batches(begins, np.where(failed, np.inf, took), took, output)


# Not of the kind "latency": an engine's timestamps show the time of a whole batch as well as a client's.
@quantity(unit="s", kind="throughput", per="batch", better="lower", label="batch latency")
def batch_latency(records: Records, mask: Mask) -> Floats:
    """last token of a batch − its first send; infinite if a request failed. Shape (batches,), s."""
    return batches(records, mask).latency


@quantity(unit="tokens/s", kind="throughput", better="higher")
def batch_throughput(records: Records, mask: Mask) -> float | None:
    """Σ output tokens of the successful requests / Σ batch_latency; a batch with a failed request lasts until the
    client gave up on it.
    """
    every = batches(records, mask)
    tokens = float(every.output_tokens.sum())
    return None if np.isnan(tokens) else per_second(tokens, float(every.took.sum()))
