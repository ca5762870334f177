"""Requests that met every bound in `slo` on ttft, tpot and e2el (in s, inclusive); null if `slo` has no bound.

A one-token answer has no tpot and meets any bound on it; several tokens in a single chunk have no known tpot and meet
no bound on it. If no tpot is known (a buffered stream, uncounted tokens), goodput with a bound on tpot is unknown too.
A failed request meets no bound. Goodput is None rather than 0 if no request succeeded.
"""

from collections.abc import Mapping

import numpy as np

from sweep.base.records import Records
from sweep.numbers.chunks import Mask
from sweep.numbers.quantities.answers import tokens_are_stamped
from sweep.numbers.quantities.latency import e2el, tpot, ttft
from sweep.numbers.quantities.throughput import duration
from sweep.numbers.quantities.tokens import buffered_share
from sweep.numbers.quantity import is_buffered, quantity
from sweep.numbers.selection import Window, sent_within, succeeded, total_tokens

Bounds = Mapping[str, float] | None  # s
BOUNDED = {"ttft": ttft, "tpot": tpot, "e2el": e2el}


@quantity(unit="requests/s", kind="latency", better="higher", headline={"": 6})
def goodput(records: Records, mask: Mask, slo: Bounds) -> float | None:
    """requests that met every bound of `slo` / duration; null if `slo` has no bound."""
    good, length = within_bounds(records, mask, slo), duration(records, mask)
    return None if good is None or not length else int(good.sum()) / length


@quantity(unit="share", kind="latency", better="higher")
def goodput_share(records: Records, mask: Mask, slo: Bounds) -> float | None:
    """requests that met every bound of `slo` / all measured requests, including failed requests."""
    good = within_bounds(records, mask, slo)
    return None if good is None or duration(records, mask) is None else int(good.sum()) / int(mask.sum())


@quantity(unit="requests/s", kind="latency", better="higher", steady=True, label="Goodput", headline={"": 6})
def steady_goodput(records: Records, mask: Mask, window: Window, slo: Bounds) -> float | None:
    """requests sent in the window that met every bound of `slo`, whenever they ended / the window's length."""
    good = within_bounds(records, sent_within(records, mask, window), slo)
    if good is None or window.begin is None or window.end is None:
        return None
    return int(good.sum()) / (window.end - window.begin)


def within_bounds(records: Records, mask: Mask, slo: Bounds) -> Mask | None:
    """Return the requests in the mask that met every bound. Return None if there is no bound, if a bound is on a tpot
    that is null, or if no request succeeded.

    Raises ValueError for a bound on any other quantity.
    """
    good = mask & succeeded(records)
    if not slo or not good.any() or (any(name.startswith("tpot") for name in slo) and not _has_tpot(records, good)):
        return None
    for column, bound in slo.items():
        name = column.partition(".")[0]  # each request must meet the limit, whatever the percentile
        if name not in BOUNDED:
            raise ValueError(f"slo.{column}={bound}: unknown; expected one of {', '.join(BOUNDED)}")
        met = BOUNDED[name](records) <= bound
        good &= met | (np.asarray(records.streamed_tokens) == 1) if name == "tpot" else met
    return good


def _has_tpot(records: Records, answered: Mask) -> bool:
    counted = total_tokens(records.streamed_tokens, answered) is not None and tokens_are_stamped(records)
    return counted and not is_buffered(buffered_share(records, answered))
