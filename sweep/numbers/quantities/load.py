"""The load as it actually was, and as it was requested.

Above capacity the queue of an open loop grows without end. `queue_score` adds three terms. One is the growth of the
requests in flight from the first answer to the last arrival, without random variation of the arrivals. Another is the
rise of e2el from the first quarter to the last, in standard errors. The third is the initial number of requests in
flight. docs/measurements/growing_queue.md shows how often it is right.
"""

import numpy as np

from sweep.base.records import Records
from sweep.numbers.chunks import Floats, Mask, as_floats
from sweep.numbers.quantities.latency import e2el, service_e2el
from sweep.numbers.quantity import quantity
from sweep.numbers.selection import per_second, succeeded

FEWEST_IN_A_QUARTER = 5  # requests
RISE_WEIGHT, RISE_SCALE, LOAD_WEIGHT = 3.0, 3.0, 0.2  # weight in the score of a queue
GROWING = 6.0  # threshold of the score: at 0.7 of capacity at most 7% of trials reach it, with 1 to 64 slots
KEPT_UP = 0.9  # share of the offered rate: an engine that keeps up with a higher share is not saturated


@quantity(unit="requests/s", kind="validity")
def offered_rate(records: Records, mask: Mask) -> float | None:
    """(n − 1) / (last scheduled − first scheduled); null if there is no schedule."""
    return _rate(as_floats(records.scheduled)[mask])


@quantity(unit="requests/s", kind="validity")
def realised_rate(records: Records, mask: Mask) -> float | None:
    """(n − 1) / (last sent − first sent): below offered_rate if a cap or the client delayed requests."""
    return _rate(as_floats(records.sent)[mask])


@quantity(unit="", kind="validity", label="Arrival gap CV")
def arrival_gap_cv(records: Records, mask: Mask) -> float | None:
    """standard deviation / mean of the gaps between successive send times: 0 is even, 1 is Poisson."""
    gaps = np.diff(np.sort(as_floats(records.sent)[mask]))
    gaps = gaps[~np.isnan(gaps)]
    return float(gaps.std() / gaps.mean()) if gaps.size > 1 and gaps.mean() > 0 else None


@quantity(unit="", kind="validity", better="lower")
def queue_growth(records: Records, mask: Mask, open_loop: bool) -> float | None:
    """ln(1 + growth of the requests in flight) + 3 arctan(rise of e2el in standard errors / 3) + 0.2 ln(1 + requests in
    flight at first); if it is 6 or more, the queue grows.
    """
    return queue_score(records, mask) if open_loop else None


@quantity(unit="", kind="validity", type=bool)
def below_saturation(
    records: Records,
    mask: Mask,
    open_loop: bool,
    offered_rate: float | None,
    realised_rate: float | None,
    queue_growth: float | None,
) -> bool | None:
    """whether an open loop's requests were sent and answered at 90% or more of the rate at which they were due, and
    its queue does not grow.

    Then throughput and cost are determined by the load, not by the engine. Null in a closed loop and in
    lockstep.
    """
    answered = mask & succeeded(records)
    completions = _rate(as_floats(records.sent)[answered] + service_e2el(records)[answered])
    if not open_loop or not offered_rate or realised_rate is None or completions is None:
        return None
    growing = queue_growth is not None and queue_growth >= GROWING
    return not growing and min(realised_rate, completions) >= KEPT_UP * offered_rate


def _rate(times: Floats) -> float | None:
    times = times[~np.isnan(times)]
    return per_second(times.size - 1, float(np.ptp(times))) if times.size else None


def queue_score(records: Records, mask: Mask) -> float | None:
    """Return the score of an open loop's queue, which grows if it is at least GROWING; None if there is no schedule."""
    due = as_floats(records.scheduled)[mask]
    took = np.where(succeeded(records), e2el(records), as_floats(records.ended) - as_floats(records.scheduled))[mask]
    order = np.argsort(due, kind="stable")
    return None if np.isnan(due).any() else score_of(due[order], took[order])


def score_of(due: Floats, took: Floats) -> float | None:
    """Return the score of a queue from the due times, ascending, and the latency since then; None for few requests."""
    quarter = due.size // 4
    if quarter < FEWEST_IN_A_QUARTER or due[-1] <= due[0]:
        return None
    first, last = (part[np.isfinite(part)] for part in (took[:quarter], took[-quarter:]))
    answered = due + np.where(np.isfinite(took), took, np.inf)  # requests never sent are still in the queue
    begin = answered.min()
    if not first.size or not last.size or begin >= due[-1]:
        return None
    growth = float((due >= begin).sum() - (answered < due[-1]).sum() + 1)
    error = float(np.sqrt(first.var() / first.size + last.var() / last.size + 1e-12))
    rise = float(np.arctan((last.mean() - first.mean()) / error / RISE_SCALE))
    load = float(np.median(first)) * (due.size - 1) / (due[-1] - due[0])
    return float(np.log1p(max(growth, 0.0)) + RISE_WEIGHT * rise + LOAD_WEIGHT * np.log1p(load))
