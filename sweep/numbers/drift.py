"""Drift of the latency in a seemingly steady trial: within its window, and after it.

The requests sent in the window are split into TENTHS by their send. There is drift if every tenth of the second half
lies above every tenth of the first, or below it. By chance alone this happens in 1 of 126 windows (Mann & Whitney 1947,
five against five), so the halves must also differ by LEAST_CHANGE. After the window there is drift if the later
requests are slower than any tenth of it, and by LEAST_AFTER. Both tests use the p50 and the p90 of e2el.
"""

import numpy as np

from sweep.base.records import Records
from sweep.numbers.chunks import Floats, Mask, as_floats
from sweep.numbers.quantile import quantile
from sweep.numbers.quantities.latency import e2el
from sweep.numbers.selection import Window, sent_within, succeeded

TENTHS = 10
FEWEST_IN_A_TENTH = 5  # requests
LEAST_CHANGE = 1.1  # ratio of one half to the other
LEAST_AFTER = 1.25  # ratio of the time after the window to the window
SHARES = (0.5, 0.9)


def drift_within(records: Records, mask: Mask, window: Window) -> float | None:
    """Return the ratio of the second half's p50 or p90 of e2el to the first half's; None if there is no drift."""
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


def drift_after(records: Records, mask: Mask, window: Window) -> float | None:
    """Return the ratio of p50 or p90 of e2el after the window to that within it; None if there is no drift."""
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
    """Return e2el in the order of the sends; for a failed request, the time until it failed, which is a lower bound."""
    lasted = as_floats(records.ended) - as_floats(records.sent)
    values = np.where(succeeded(records), e2el(records), lasted)[mask]
    ordered = values[np.argsort(as_floats(records.sent)[mask], kind="stable")]
    return np.asarray(ordered[ordered > 0], np.float64)
