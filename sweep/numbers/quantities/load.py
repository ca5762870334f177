"""The load as it really was, and as it was requested."""

import numpy as np

from sweep.numbers.chunks import Floats, Mask, as_floats
from sweep.numbers.quantity import quantity
from sweep.numbers.selection import per_second
from sweep.records import Records


@quantity(unit="requests/s", kind="validity")
def offered_rate(records: Records, mask: Mask) -> float | None:
    """(n − 1) / (last scheduled − first scheduled); null without a schedule."""
    return _rate(as_floats(records.scheduled)[mask])


@quantity(unit="requests/s", kind="validity")
def realised_rate(records: Records, mask: Mask) -> float | None:
    """(n − 1) / (last send − first send): below offered_rate when a cap or the client held requests back."""
    return _rate(as_floats(records.sent)[mask])


@quantity(unit="", kind="validity", label="Arrival gap CV")
def arrival_gap_cv(records: Records, mask: Mask) -> float | None:
    """standard deviation / mean of the gaps between successive sends: 0 is even, 1 is Poisson."""
    gaps = np.diff(np.sort(as_floats(records.sent)[mask]))
    gaps = gaps[~np.isnan(gaps)]
    return float(gaps.std() / gaps.mean()) if gaps.size > 1 and gaps.mean() > 0 else None


def _rate(times: Floats) -> float | None:
    times = times[~np.isnan(times)]
    return per_second(times.size - 1, float(np.ptp(times))) if times.size else None
