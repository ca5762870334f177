"""Requests, tokens, time and throughputs of a trial, over all its measured requests (`mask`).

Undefined values are null, never zero: if nothing completed, throughput is null, not 0.
"""

import math

import numpy as np

from sweep.base.records import Records
from sweep.numbers.chunks import Mask, as_floats, token_chunks, tokens_per_bin
from sweep.numbers.quantities.latency import service_e2el
from sweep.numbers.quantity import quantity
from sweep.numbers.selection import first_send, per_second, spans, succeeded, total_tokens

TOKEN_RATE = {"unit": "tokens/s", "kind": "throughput", "better": "higher"}
COST = {"unit": "$/M tok", "kind": "cost", "better": "lower"}
REQUESTS = {"unit": "requests/s", "kind": "throughput", "better": "higher"}


@quantity(unit="requests", kind="count", type=int)
def num_requests(mask: Mask) -> int:
    """measured requests, including failed requests and requests that were due but never sent."""
    return int(mask.sum())


@quantity(unit="requests", kind="count", type=int, better="lower")
def num_failed(records: Records, mask: Mask) -> int:
    """measured requests that failed, or were due within `duration` but never sent: in latency percentiles they count as
    slower than any other.
    """
    return int((mask & ~succeeded(records)).sum())


@quantity(unit="s", kind="count")
def timed_out_after(records: Records, mask: Mask) -> float | None:
    """the shortest wait of the requests that timed out without a token, a lower bound for their ttft and e2el; null if
    no request failed, or one failed for another reason.
    """
    failed = mask & ~succeeded(records)
    chunks = token_chunks(records)
    waited = [
        records.ended[request] - records.sent[request]
        if (records.error[request] or "").startswith("timeout_") and not chunks[request]
        else math.nan
        for request in np.flatnonzero(failed)
    ]
    return min(waited) if waited and not any(map(math.isnan, waited)) else None


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
    """last token − first sent, including the drain; a failed request ends when the client gives up on it.

    None if no request got a token.
    """
    ends = as_floats(records.sent)[mask] + service_e2el(records)[mask]
    if not np.all(np.isnan(ends)):
        given_up = np.where(succeeded(records), np.nan, as_floats(records.ended))[mask]
        ends = np.fmax(ends, given_up)
    return None if np.all(np.isnan(ends)) else float(np.nanmax(ends)) - first_send(records, mask)


@quantity(**TOKEN_RATE, short="Throughput", headline={"": 1})
def output_throughput(records: Records, mask: Mask) -> float | None:
    """Σ output tokens of the successful requests / duration."""
    return per_second(total_tokens(records.output_tokens, mask & succeeded(records)), duration(records, mask))


@quantity(**TOKEN_RATE)
def total_throughput(records: Records, mask: Mask, prompts_counted: bool | None = None) -> float | None:
    """Σ (input + output tokens) of the successful requests / duration; null unless prompts_counted."""
    if prompts_counted is False:
        return None
    answered = mask & succeeded(records)
    output, input_ = total_tokens(records.output_tokens, answered), total_tokens(records.input_tokens, answered)
    return per_second(output + input_, duration(records, mask)) if output and input_ is not None else None


@quantity(**REQUESTS)
def request_throughput(records: Records, mask: Mask) -> float | None:
    """successful requests / duration."""
    return per_second(int(np.sum(mask & succeeded(records))), duration(records, mask))


@quantity(**TOKEN_RATE)
def peak_output_throughput(records: Records, mask: Mask) -> float | None:
    """maximum number of tokens that arrived in one of the ⌊duration⌋ equal parts of the run / the part's length (1 to 2
    s, or a shorter run's duration); so it is never below output_throughput.
    """
    length = duration(records, mask)
    if not length:
        return None
    parts = max(1, math.floor(length))
    answered, begin = mask & succeeded(records), first_send(records, mask)
    if total_tokens(records.streamed_tokens, answered) is None:
        return None
    tokens = tokens_per_bin(records, answered, begin, length / parts, parts + 1)
    tokens[parts - 1] += tokens[parts]  # the last token may arrive at the very end
    return float(tokens[:parts].max()) / (length / parts) or None


@quantity(unit="requests", kind="count", type=int)
def concurrency_max(records: Records, mask: Mask) -> int | None:
    """max over t of |{requests: sent ≤ t < last token}|, exactly; failed requests are included until their last token.

    None if no request got a token. The maximum occurs when a request is sent, so only send times are examined.
    """
    sent, last = spans(records, mask)
    if not sent.size:
        return None
    ended = np.searchsorted(np.sort(last), sent, side="right")  # a request that ends as another is sent counts as ended
    return int(np.max(np.arange(1, sent.size + 1) - ended))


@quantity(**COST, label="Cost per million output tokens", short="Cost", headline={"": 3})
def cost_per_million_tokens(
    price_per_hour: float | None, gpu_count: int, output_throughput: float | None
) -> float | None:
    """GPUs (at least 1) × price per hour / 3600 / output_throughput × 10⁶; at an endpoint charged by token (input
    tokens × their price + output tokens × their price) / output tokens; null if there is no price.
    """
    if price_per_hour is None or not output_throughput:
        return None
    return max(1, gpu_count) * price_per_hour / 3600 / output_throughput * 1e6


def cost_at_token_prices(
    input_price: float, output_price: float, input_tokens: int | None, output_tokens: int | None
) -> float | None:
    """Return the cost of a million output tokens in USD, including prompts; prices are per million tokens."""
    if input_tokens is None or not output_tokens:
        return None
    return input_price * input_tokens / output_tokens + output_price
