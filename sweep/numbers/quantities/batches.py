"""Lockstep batches. A batch with a failed request did less work, so it counts in neither quantity."""

from typing import NamedTuple

import numpy as np

from sweep.numbers.chunks import Floats, Mask, as_floats
from sweep.numbers.quantities.latency import service_e2el
from sweep.numbers.quantity import quantity
from sweep.numbers.selection import per_second, succeeded
from sweep.records import UNKNOWN, Records


class Batches(NamedTuple):
    """Those lockstep batches of which every request succeeded, in order. Each of shape (batches,)."""

    begin: Floats  # first send of the batch, s from the trial's start
    latency: Floats  # last token of the batch − its first send, s
    output_tokens: Floats  # NaN where a count is unknown


def batches(records: Records, mask: Mask) -> Batches:
    """The lockstep batches of a trial. A batch with a failed request did less work and is left out."""
    mask = mask & (np.asarray(records.batch) != UNKNOWN)
    ids, member = np.unique(np.asarray(records.batch)[mask], return_inverse=True)
    sent, tokens = as_floats(records.sent)[mask], np.asarray(records.output_tokens, np.float64)[mask]
    end = sent + service_e2el(records)[mask]
    complete = np.ones(ids.size, np.bool_)
    np.logical_and.at(complete, member, succeeded(records)[mask] & ~np.isnan(end))
    begins, ends = np.full(ids.size, np.inf), np.full(ids.size, -np.inf)
    np.fmin.at(begins, member, sent)
    np.fmax.at(ends, member, end)
    tokens = np.where(tokens == UNKNOWN, np.nan, tokens)
    output = np.bincount(member, weights=tokens, minlength=ids.size).astype(np.float64)
    return Batches(begins[complete], (ends - begins)[complete], output[complete])


# Not a latency by kind: the engine's own stamps tell how long a whole batch took as well as a client's.
@quantity(unit="s", kind="throughput", per="batch", better="lower", label="batch latency")
def batch_latency(records: Records, mask: Mask) -> Floats:
    """last token of a batch − its first send. Shape (batches,), s."""
    return batches(records, mask).latency


@quantity(unit="tokens/s", kind="throughput", better="higher")
def batch_throughput(records: Records, mask: Mask) -> float | None:
    """Σ output tokens / Σ batch_latency."""
    complete = batches(records, mask)
    tokens = float(complete.output_tokens.sum())
    return None if np.isnan(tokens) else per_second(tokens, float(complete.latency.sum()))
