"""Drift of the latency of a trial: within its steady window, after it and over the whole trial.

The requests sent in the window are split into TENTHS by send time. There is drift if every tenth of the second half is
above (or below) every tenth of the first half. By chance alone this happens in 1 of 126 windows (Mann & Whitney 1947,
five against five), so the halves must also differ by LEAST_CHANGE. After the window there is drift if the later
requests are slower than every tenth of the window, and slower than the window by LEAST_AFTER. Both tests use the p50
and the p90 of e2el. Over the whole trial a change may occur at any of CHANGE_POINTS: all later tenths are above (or
below) all earlier tenths.
"""

import numpy as np

from sweep.base.records import Records
from sweep.numbers.chunks import Floats, Mask, as_floats
from sweep.numbers.quantile import quantile
from sweep.numbers.quantities.latency import e2el
from sweep.numbers.selection import Window, sent_within, succeeded

TENTHS = 10
FEWEST_IN_A_TENTH = 5  # requests
LEAST_CHANGE = 1.1  # minimum ratio between the halves
LEAST_OVER = 1.2  # minimum ratio of the later part of a whole trial to the earlier part
LEAST_AFTER = 1.25  # minimum ratio of the time after the window to the window
SHARES = (0.5, 0.9)
CHANGE_POINTS = range(3, 8)  # tenths after which the latency of a whole trial may change


def drift_within(records: Records, mask: Mask, window: Window) -> float | None:
    """Return the p50 or p90 of e2el in the second half, divided by its value in the first half; None without drift."""
    latencies = _latencies(records, sent_within(records, mask, window))
    if latencies.size < TENTHS * FEWEST_IN_A_TENTH:
        return None
    tenths, halves, changes = np.array_split(latencies, TENTHS), np.array_split(latencies, 2), [1.0]
    for share in SHARES:
        values = [quantile(tenth, share) for tenth in tenths]
        first, second = values[: TENTHS // 2], values[TENTHS // 2 :]
        change = quantile(halves[1], share) / quantile(halves[0], share)
        if min(second) > max(first) or max(second) < min(first):
            changes.append(change)
    largest = max(changes, key=lambda change: abs(np.log(change)))
    return float(largest) if abs(np.log(largest)) >= np.log(LEAST_CHANGE) else None


def drift_over(records: Records, mask: Mask) -> float | None:
    """Return the p50 or p90 of e2el after the largest change, divided by its value before; None without drift."""
    sent = as_floats(records.sent)
    if np.isnan(as_floats(records.scheduled)[mask]).all():  # the users' first requests were sent at once
        mask = mask & (sent > np.nanmin((sent + e2el(records))[mask], initial=np.inf))
    latencies = _latencies(records, mask)
    if latencies.size < TENTHS * FEWEST_IN_A_TENTH:
        return None
    tenths, changes = np.array_split(latencies, TENTHS), [1.0]
    for share in SHARES:
        figures = [quantile(tenth, share) for tenth in tenths]
        for split in CHANGE_POINTS:
            before, after = figures[:split], figures[split:]
            if min(after) > max(before) or max(after) < min(before):
                parts = (np.concatenate(part) for part in (tenths[split:], tenths[:split]))
                later, earlier = (quantile(part, share) for part in parts)
                changes.append(later / earlier)
    largest = max(changes, key=lambda change: abs(np.log(change)))
    return float(largest) if abs(np.log(largest)) >= np.log(LEAST_OVER) else None


def drift_after(records: Records, mask: Mask, window: Window) -> float | None:
    """Return the p50 or p90 of e2el after the window, divided by its value within; None if there is no drift."""
    if window.end is None:
        return None
    latencies = _latencies(records, sent_within(records, mask, window))
    after = _latencies(records, mask & (as_floats(records.sent) > window.end))
    size = max(FEWEST_IN_A_TENTH, latencies.size // TENTHS)
    if latencies.size < TENTHS * FEWEST_IN_A_TENTH or after.size < size:
        return None
    changes = [1.0]
    for share in SHARES:
        value = quantile(after, share)
        if value > max(quantile(tenth, share) for tenth in np.array_split(latencies, TENTHS)):
            changes.append(value / quantile(latencies, share))
    return float(max(changes)) if max(changes) >= LEAST_AFTER else None


def _latencies(records: Records, mask: Mask) -> Floats:
    """Return e2el in order of send time; for failed requests, the time until failure, which is a lower bound."""
    lasted = as_floats(records.ended) - as_floats(records.sent)
    values = np.where(succeeded(records), e2el(records), lasted)[mask]
    ordered = values[np.argsort(as_floats(records.sent)[mask], kind="stable")]
    return np.asarray(ordered[ordered > 0], np.float64)
