"""The load as it actually was, and as it was requested."""

import numpy as np

from sweep.base.records import Records
from sweep.numbers.chunks import Floats, Mask, as_floats
from sweep.numbers.quantities.latency import service_e2el
from sweep.numbers.quantity import quantity
from sweep.numbers.selection import per_second, succeeded

KEPT_UP = 0.9  # of the offered rate: an engine that answers at a higher share is not saturated


@quantity(unit="requests/s", kind="validity")
def offered_rate(records: Records, mask: Mask) -> float | None:
    """(n − 1) / (last scheduled − first scheduled); null without a schedule."""
    return _rate(as_floats(records.scheduled)[mask])


@quantity(unit="requests/s", kind="validity")
def realised_rate(records: Records, mask: Mask) -> float | None:
    """(n − 1) / (last send − first send): below offered_rate if a cap or the client held requests back."""
    return _rate(as_floats(records.sent)[mask])


@quantity(unit="", kind="validity", label="Arrival gap CV")
def arrival_gap_cv(records: Records, mask: Mask) -> float | None:
    """standard deviation / mean of the gaps between successive sends: 0 is even, 1 is Poisson."""
    gaps = np.diff(np.sort(as_floats(records.sent)[mask]))
    gaps = gaps[~np.isnan(gaps)]
    return float(gaps.std() / gaps.mean()) if gaps.size > 1 and gaps.mean() > 0 else None


@quantity(unit="", kind="validity", type=bool)
def below_saturation(
    records: Records, mask: Mask, open_loop: bool, offered_rate: float | None, realised_rate: float | None
) -> bool | None:
    """whether an open loop's requests were sent and answered at 90 % or more of the rate at which they were due.

    The load then determines throughput and cost, which say nothing about the engine. Null in a closed loop and in
    lockstep.
    """
    answered = mask & succeeded(records)
    completions = _rate(as_floats(records.sent)[answered] + service_e2el(records)[answered])
    if not open_loop or not offered_rate or realised_rate is None or completions is None:
        return None
    return min(realised_rate, completions) >= KEPT_UP * offered_rate


def _rate(times: Floats) -> float | None:
    times = times[~np.isnan(times)]
    return per_second(times.size - 1, float(np.ptp(times))) if times.size else None
