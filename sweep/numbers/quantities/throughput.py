"""Requests, tokens, time and throughputs of a trial, over all its measured requests (`mask`).

Undefined values are null, never zero: a trial in which nothing completed has no throughput, rather than one of 0.
"""

import math
from collections.abc import Mapping

import numpy as np

from sweep.numbers.chunks import Mask, as_floats, tokens_per_bin
from sweep.numbers.quantities.latency import e2el, service_e2el, tpot, ttft
from sweep.numbers.quantity import BUFFERED, quantity
from sweep.numbers.selection import first_send, per_second, spans, succeeded, total_tokens
from sweep.records import Records

TOKEN_RATE = {"unit": "tokens/s", "kind": "throughput", "better": "higher"}
COST = {"unit": "$/M tok", "kind": "cost", "better": "lower"}
REQUESTS = {"unit": "requests/s", "kind": "throughput", "better": "higher"}


@quantity(unit="requests", kind="count", type=int)
def num_requests(mask: Mask) -> int:
    """measured requests, failed ones included."""
    return int(mask.sum())


@quantity(unit="requests", kind="count", type=int, better="lower")
def num_failed(records: Records, mask: Mask) -> int:
    """measured requests that failed."""
    return int((mask & ~succeeded(records)).sum())


@quantity(unit="tokens", kind="count", type=int)
def input_tokens(records: Records, mask: Mask) -> int | None:
    """Σ input tokens of the successful requests."""
    return total_tokens(records.input_tokens, mask & succeeded(records))


@quantity(unit="tokens", kind="count", type=int)
def output_tokens(records: Records, mask: Mask) -> int | None:
    """Σ output tokens of the successful requests."""
    return total_tokens(records.output_tokens, mask & succeeded(records))


@quantity(unit="s", kind="count", better="lower")
def duration(records: Records, mask: Mask) -> float | None:
    """last token − first send, including the drain; a failed request ends when it is given up.

    None if no request got a token.
    """
    ends = as_floats(records.sent)[mask] + service_e2el(records)[mask]
    if not np.all(np.isnan(ends)):
        given_up = np.where(succeeded(records), np.nan, as_floats(records.ended))[mask]
        ends = np.fmax(ends, given_up)
    return None if np.all(np.isnan(ends)) else float(np.nanmax(ends)) - first_send(records, mask)


@quantity(**TOKEN_RATE, short="Throughput", headline={"": 1})
def output_throughput(records: Records, mask: Mask) -> float | None:
    """Σ output tokens of the successful requests / duration of all."""
    return per_second(total_tokens(records.output_tokens, mask & succeeded(records)), duration(records, mask))


@quantity(**TOKEN_RATE)
def total_throughput(records: Records, mask: Mask) -> float | None:
    """Σ (input + output tokens) of the successful requests / duration of all."""
    answered = mask & succeeded(records)
    output, input_ = total_tokens(records.output_tokens, answered), total_tokens(records.input_tokens, answered)
    return per_second(output + input_, duration(records, mask)) if output and input_ is not None else None


@quantity(**REQUESTS)
def request_throughput(records: Records, mask: Mask) -> float | None:
    """successful requests / duration of all."""
    return per_second(int(np.sum(mask & succeeded(records))), duration(records, mask))


@quantity(**TOKEN_RATE)
def peak_output_throughput(records: Records, mask: Mask) -> float | None:
    """most tokens that arrived in any one second, counting seconds from the first send."""
    length = duration(records, mask)
    if length is None:
        return None
    answered, begin = mask & succeeded(records), first_send(records, mask)
    if total_tokens(records.streamed_tokens, answered) is None:
        return None
    return float(tokens_per_bin(records, answered, begin, 1.0, math.floor(length) + 1).max()) or None


@quantity(unit="requests", kind="count", type=int)
def concurrency_max(records: Records, mask: Mask) -> int | None:
    """max over t of |{requests: sent ≤ t < last token}|, exactly; failed ones count as far as their tokens came.

    None if no request got a token. The maximum is reached at a send, so it is sought there.
    """
    sent, last = spans(records, mask)
    if not sent.size:
        return None
    ended = np.searchsorted(np.sort(last), sent, side="right")  # one that ends as another is sent has gone
    return int(np.max(np.arange(1, sent.size + 1) - ended))


@quantity(unit="requests/s", kind="latency", better="higher")
def goodput(
    records: Records, mask: Mask, slo: Mapping[str, float] | None, buffered_share: float | None = None
) -> float | None:
    """successful requests within every bound of `slo` / duration of all; null if `slo` has no bound, or one on a TPOT
    that is null.

    `slo` bounds ttft, tpot, e2el in s, inclusive. A one-token answer has no tpot and meets any bound on it; one of more
    tokens in a single chunk has none that is known and meets no bound on it. None, rather than 0, if no request
    succeeded.

    Raises:
        ValueError: for a bound on anything else.
    """
    functions = {"ttft": ttft, "tpot": tpot, "e2el": e2el}
    good = mask & succeeded(records)
    length = duration(records, mask)
    if not slo or not good.any() or length is None:
        return None
    if "tpot" in slo and ((buffered_share or 0.0) > BUFFERED or total_tokens(records.streamed_tokens, good) is None):
        return None
    for name, bound in slo.items():
        if name not in functions:
            raise ValueError(f"slo.{name}={bound}: unknown; allowed: {', '.join(functions)}")
        met = functions[name](records) <= bound
        good &= met | (np.asarray(records.streamed_tokens) == 1) if name == "tpot" else met
    return int(good.sum()) / length


@quantity(**COST, label="Cost per million output tokens", short="Cost", headline={"": 3})
def cost_per_million_tokens(
    price_per_hour: float | None, gpu_count: int, output_throughput: float | None
) -> float | None:
    """GPUs (at least 1) × price per hour / 3600 / output_throughput × 10⁶; null without a price."""
    if price_per_hour is None or not output_throughput:
        return None
    return max(1, gpu_count) * price_per_hour / 3600 / output_throughput * 1e6
