"""What every number means: each metric is one function of the raw Records, with its formula as docstring.

Times are in seconds. Per-request functions return one value per Record, in order, NaN where undefined; figures of a
whole trial are None where undefined. Nothing undefined is ever zero: a trial in which nothing completed has no
throughput, rather than one of 0. Quantiles interpolate linearly between order statistics (numpy's default, type 7 of
Hyndman & Fan 1996).

A mask says which requests a figure is about: `measured` leaves out the warm-up, `succeeded` what failed. Chunks with no
token in them (a role, a usage report) are no arrivals (`chunks`). docs/metrics.md compares these definitions with those
of other tools.
"""

import math
from array import array
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sweep.numbers.chunks import (
    Floats,
    Mask,
    as_floats,
    blocks,
    token_chunks,
    token_times,
    tokens_per_bin,
    tokens_within,
    within,
)
from sweep.records import UNKNOWN, Records

Figure = float | int | str | bool | None

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
STARTUP_SHARE = 0.2  # share of a run above which its start-up transient is flagged: the whole-run figures then hide it


class Window(NamedTuple):
    """The part of a trial in which it was in steady state (`steady`), s from the trial's start."""

    begin: float | None
    end: float | None  # None, as begin, if there is none
    method: str  # how it was found, or why it was not


class Quantile(NamedTuple):
    """A quantile with what is behind it. A bound is None if there are too few samples for it."""

    value: float | None
    n: int
    low: float | None
    high: float | None


# One value per request ------------------------------------------------------------------------------------------------


def service_ttft(records: Records) -> Floats:
    """first token − sent: what most tools call TTFT. Shape (requests,), s."""
    return token_times(records)[0]


def service_e2el(records: Records) -> Floats:
    """last token − sent. Shape (requests,), s."""
    return token_times(records)[1]


def ttft(records: Records) -> Floats:
    """first token − scheduled: with the wait for a slot and the client's own lag. Shape (requests,), s."""
    return service_ttft(records) + (as_floats(records.sent) - as_floats(records.scheduled))


def e2el(records: Records) -> Floats:
    """last token − scheduled. Shape (requests,), s."""
    return service_e2el(records) + (as_floats(records.sent) - as_floats(records.scheduled))


def slot_wait(records: Records) -> Floats:
    """released − scheduled: waiting at the cap on requests in flight. Shape (requests,), s."""
    return as_floats(records.released) - as_floats(records.scheduled)


def lag(records: Records) -> Floats:
    """sent − max(scheduled, released): the client's own delay. Shape (requests,), s."""
    return as_floats(records.sent) - np.maximum(as_floats(records.scheduled), as_floats(records.released))


def tpot(records: Records) -> Floats:
    """(last token − first token) / (output_tokens − 1); undefined if all came in one chunk. Shape (requests,), s."""
    first, last = token_times(records)
    found = ratio(last - first, np.asarray(records.output_tokens) - 1)
    found[token_chunks(records) < 2] = np.nan
    return found


def tpot_e2e(records: Records) -> Floats:
    """e2el / output_tokens: TTFT included. Shape (requests,), s."""
    return ratio(e2el(records), np.asarray(records.output_tokens))


# One value per gap between chunks -------------------------------------------------------------------------------------


def itl(records: Records, of: Mask) -> Floats:
    """arrival of a chunk − arrival of the one before it, every gap of the requests `of`. Shape (gaps,), s."""
    return itl_us(records, of) / 1e6


def itl_token(records: Records, of: Mask) -> Floats:
    """Each gap between chunks over the tokens of the later chunk. Shape (gaps,), s."""
    parts = [block.gaps() / block.tokens[1:][block.inside()] / 1e6 for block in blocks(records, of)]
    return np.concatenate(parts) if parts else np.empty(0)


def itl_us(records: Records, of: Mask, window: tuple[float, float] = (-math.inf, math.inf)) -> NDArray[np.uint32]:
    """`itl` in whole µs, of those gaps that lie in the window as a whole. Shape (gaps,)."""
    found = np.empty(len(records.chunk_us), np.uint32)  # more than enough; what is not written takes no memory
    filled = 0
    for block in blocks(records, of):
        gaps = block.gaps()
        if window != (-math.inf, math.inf):
            times = block.times(records)
            kept = (times[:-1] >= window[0]) & (times[1:] <= window[1])
            gaps = gaps[kept[block.inside()]]
        found[filled : filled + gaps.size] = gaps
        filled += gaps.size
    return found[:filled]


# One value per trial --------------------------------------------------------------------------------------------------


def measured(records: Records, discard_first_batch: bool = False) -> Mask:
    """Which requests are not warm-up, nor of the first lockstep batch where that is discarded. Shape (requests,)."""
    mask = np.fromiter((phase == "measured" for phase in records.phase), np.bool_, len(records))
    return mask & (np.asarray(records.batch) != 0) if discard_first_batch else mask


def succeeded(records: Records) -> Mask:
    """Which requests were answered to the end, without an error. Shape (requests,)."""
    return np.fromiter((error is None for error in records.error), np.bool_, len(records))


def total_tokens(counts: "array[int]", of: Mask) -> int | None:
    """Σ tokens of the requests `of`; None if there are none, or the count of one of them is unknown."""
    chosen = np.asarray(counts)[of]
    return None if chosen.size == 0 or np.any(chosen == UNKNOWN) else int(chosen.sum(dtype=np.int64))


def duration(records: Records, of: Mask) -> float | None:
    """last token − first send, the drain included; a failed request ends when it was given up. s.

    None if no request got a token.
    """
    ends = as_floats(records.sent)[of] + service_e2el(records)[of]
    if not np.all(np.isnan(ends)):
        given_up = np.where(succeeded(records), np.nan, as_floats(records.ended))[of]
        ends = np.fmax(ends, given_up)
    return None if np.all(np.isnan(ends)) else float(np.nanmax(ends) - np.nanmin(as_floats(records.sent)[of]))


def per_second(count: float | None, seconds: float | None) -> float | None:
    """count / seconds: every throughput. None where there was nothing to count."""
    return count / seconds if count and seconds else None


def output_throughput(records: Records, of: Mask) -> float | None:
    """Σ output tokens of the successful requests / duration of all. tokens/s."""
    return per_second(total_tokens(records.output_tokens, of & succeeded(records)), duration(records, of))


def total_throughput(records: Records, of: Mask) -> float | None:
    """Σ (input + output tokens) of the successful requests / duration of all. tokens/s."""
    answered = of & succeeded(records)
    output, input_ = total_tokens(records.output_tokens, answered), total_tokens(records.input_tokens, answered)
    return per_second(output + input_, duration(records, of)) if output and input_ is not None else None


def request_throughput(records: Records, of: Mask) -> float | None:
    """successful requests / duration of all. requests/s."""
    return per_second(int(np.sum(of & succeeded(records))), duration(records, of))


def peak_output_throughput(records: Records, of: Mask) -> float | None:
    """Most tokens that arrived in one second, of seconds counted from the first send. tokens/s."""
    length = duration(records, of)
    if length is None:
        return None
    begin = float(np.nanmin(as_floats(records.sent)[of]))
    most = tokens_per_bin(records, of & succeeded(records), begin, 1.0, math.floor(length) + 1).max()
    return float(most) or None


def concurrency_max(records: Records, of: Mask) -> int | None:
    """max over t of |{requests: sent ≤ t < last token}|, exactly; None if no request got a token.

    Failed requests count as far as their tokens came. The maximum is reached at a send, so it is sought there.
    """
    sent, last = _intervals(records, of)
    if not sent.size:
        return None
    ended = np.searchsorted(np.sort(last), sent, side="right")  # one that ends as another is sent has gone
    return int(np.max(np.arange(1, sent.size + 1) - ended))


def goodput(records: Records, of: Mask, slo: Mapping[str, float]) -> float | None:
    """successful requests within every bound of the SLO / duration of all. requests/s.

    `slo` bounds ttft, tpot, e2el in s, inclusive. A one-token answer has no tpot and meets any bound on it; one of more
    tokens in a single chunk has none that is known and meets no bound on it. None, rather than 0, if no request
    succeeded.

    Raises:
        ValueError: for a bound on anything else.
    """
    functions = {"ttft": ttft, "tpot": tpot, "e2el": e2el}
    good = of & succeeded(records)
    length = duration(records, of)
    if not good.any() or length is None:
        return None
    for name, bound in slo.items():
        if name not in functions:
            raise ValueError(f"slo.{name}={bound}: unknown; allowed: {', '.join(functions)}")
        met = functions[name](records) <= bound
        good &= met | (np.asarray(records.output_tokens) == 1) if name == "tpot" else met
    return int(good.sum()) / length


def realised_rate(records: Records, of: Mask) -> float | None:
    """(n − 1) / (last send − first send): the rate at which requests really left. requests/s."""
    return _rate(as_floats(records.sent)[of])


def offered_rate(records: Records, of: Mask) -> float | None:
    """(n − 1) / (last scheduled − first scheduled): above realised_rate when a cap held requests back. requests/s."""
    return _rate(as_floats(records.scheduled)[of])


def arrival_gap_cv(records: Records, of: Mask) -> float | None:
    """Standard deviation / mean of the gaps between successive sends: 0 is even, 1 is Poisson."""
    gaps = np.diff(np.sort(as_floats(records.sent)[of]))
    gaps = gaps[~np.isnan(gaps)]
    return float(gaps.std() / gaps.mean()) if gaps.size > 1 and gaps.mean() > 0 else None


def cost_per_million_tokens(price_per_hour: float | None, gpus: int, output_throughput: float | None) -> float | None:
    """GPUs × price per hour / 3600 / output_throughput × 10⁶. In the price's currency; no price, no cost."""
    if price_per_hour is None or not output_throughput:
        return None
    return gpus * price_per_hour / 3600 / output_throughput * 1e6


# Lockstep batches -----------------------------------------------------------------------------------------------------


class Batches(NamedTuple):
    """Those lockstep batches of which every request succeeded, in order. Each of shape (batches,)."""

    begin: Floats  # first send of the batch, s from the trial's start
    latency: Floats  # last token of the batch − its first send, s
    output_tokens: Floats


def batches(records: Records, of: Mask) -> Batches:
    """The lockstep batches of a trial. A batch with a failed request did less work and is left out."""
    of = of & (np.asarray(records.batch) != UNKNOWN)
    ids, member = np.unique(np.asarray(records.batch)[of], return_inverse=True)
    sent, tokens = as_floats(records.sent)[of], np.asarray(records.output_tokens, np.float64)[of]
    end = sent + service_e2el(records)[of]
    whole = np.ones(ids.size, np.bool_)
    np.logical_and.at(whole, member, succeeded(records)[of] & ~np.isnan(end) & (tokens != UNKNOWN))
    begins, ends = np.full(ids.size, np.inf), np.full(ids.size, -np.inf)
    np.fmin.at(begins, member, sent)
    np.fmax.at(ends, member, end)
    output = np.bincount(member, weights=tokens, minlength=ids.size).astype(np.float64)
    return Batches(begins[whole], (ends - begins)[whole], output[whole])


def batch_latency(records: Records, of: Mask) -> Floats:
    """last token of a batch − its send. Shape (batches,), s."""
    return batches(records, of).latency


def batch_throughput(records: Records, of: Mask) -> float | None:
    """Σ output tokens / Σ batch_latency. tokens/s."""
    whole = batches(records, of)
    return per_second(float(whole.output_tokens.sum()), float(whole.latency.sum()))


# Statistics -----------------------------------------------------------------------------------------------------------


def statistics(values: NDArray[Any], unit: float = 1.0) -> dict[str, float | None]:
    """mean, p50, p90 and p99 of the values / unit, NaN left out; None if there are none. Reorders `values`."""
    values = values[~np.isnan(values)] if values.dtype.kind == "f" else values
    if not values.size:
        return dict.fromkeys(["mean", *QUANTILES])
    mean = float(values.mean(dtype=np.float64)) / unit
    quantiles = np.quantile(values, list(QUANTILES.values()), overwrite_input=True) / unit
    return {"mean": mean, **dict(zip(QUANTILES, map(float, quantiles), strict=True))}


def quantile_with_interval(values: NDArray[Any], q: float, confidence: float = 0.95) -> Quantile:
    """The q-quantile with its number of samples and a confidence interval that assumes no distribution.

    The bounds are the order statistics x(l) and x(u) with P(l ≤ Binomial(n, q) < u) ≥ confidence (David & Nagaraja,
    Order Statistics, 3rd ed., §7.1). NaN values are left out. Samples are taken as independent.
    """
    from scipy.stats import binom  # half a second to import, and only reports need it

    ordered = np.sort(np.asarray(values, np.float64))
    ordered = ordered[~np.isnan(ordered)]
    n = ordered.size
    if n == 0:
        return Quantile(None, 0, None, None)
    tail = (1 - confidence) / 2
    lower, upper = int(binom.ppf(tail, n, q)), int(binom.ppf(1 - tail, n, q)) + 1
    low = float(ordered[lower - 1]) if lower >= 1 else None
    high = float(ordered[upper - 1]) if upper <= n else None
    return Quantile(float(np.quantile(ordered, q)), n, low, high)


# A trial's row --------------------------------------------------------------------------------------------------------


def summarise(
    records: Records,
    *,
    slo: Mapping[str, float] | None = None,
    discard_first_batch: bool = False,
    window: Window | None = None,
) -> dict[str, Figure]:
    """The columns of a trials row that come from its Records: the whole run, and `steady_*` within the window.

    Latencies and token counts are of the measured requests that succeeded; num_requests and num_failed count all
    measured ones. Undefined figures are None.
    """
    of = measured(records, discard_first_batch)
    answered = of & succeeded(records)
    row: dict[str, Figure] = {
        "num_requests": int(of.sum()),
        "num_failed": int((of & ~answered).sum()),
        "input_tokens": total_tokens(records.input_tokens, answered),
        "output_tokens": total_tokens(records.output_tokens, answered),
        "duration": duration(records, of),
        "output_throughput": output_throughput(records, of),
        "total_throughput": total_throughput(records, of),
        "request_throughput": request_throughput(records, of),
        "peak_output_throughput": peak_output_throughput(records, of),
        "concurrency_max": concurrency_max(records, of),
        "goodput": None if slo is None else goodput(records, of, slo),
        "realised_rate": realised_rate(records, of),
        "offered_rate": offered_rate(records, of),
        "arrival_gap_cv": arrival_gap_cv(records, of),
        "batch_throughput": batch_throughput(records, of),
    }
    for function in (ttft, tpot, e2el, lag, slot_wait, service_ttft):
        row |= _prefixed(function.__name__, statistics(function(records)[answered]))
    row |= _prefixed("itl", statistics(itl_us(records, answered), 1e6))
    row |= _prefixed("batch_latency", statistics(batch_latency(records, of)))
    return row | _steady(records, of, window or Window(None, None, "not sought"))


def _steady(records: Records, of: Mask, window: Window) -> dict[str, Figure]:
    """The `steady_*` columns.

    Throughputs count what arrived in the window: tokens, completions, and the inputs of requests whose first token did.
    A latency is of the requests sent in the window, up to the first whose answer was not there at its end: later ones
    would be counted only if they were short, which flatters. Gaps between chunks count if they lie in the window.
    """
    if window.begin is None or window.end is None:
        of, begin, end = np.zeros_like(of), math.inf, math.inf
    else:
        begin, end = window.begin, window.end
    answered = of & succeeded(records)
    sent, (first, last) = as_floats(records.sent), token_times(records)
    tokens = tokens_within(records, answered, begin, end)
    begun = answered & within(sent + first, begin, end)
    inputs = total_tokens(records.input_tokens, begun) if begun.any() else 0
    completions = int(np.sum(answered & within(sent + last, begin, end)))
    row: dict[str, Figure] = {
        "steady_begin": window.begin,
        "steady_end": window.end,
        "steady_method": window.method,
        "steady_output_throughput": per_second(tokens, end - begin),
        "steady_total_throughput": per_second(tokens + inputs, end - begin) if tokens and inputs is not None else None,
        "steady_request_throughput": per_second(completions, end - begin),
        **_startup(records, of, window),
    }
    at_once = np.zeros_like(sent)
    awaited = {ttft: first, service_ttft: first, tpot: last, e2el: last, lag: at_once, slot_wait: at_once}
    for function, event in awaited.items():
        chosen = _sent_and_seen(sent, sent + event, answered, begin, end)
        if function is e2el:
            row["steady_num_requests"] = int(chosen.sum()) or None
        row |= _prefixed(f"steady_{function.__name__}", statistics(function(records)[chosen]))
    return row | _prefixed("steady_itl", statistics(itl_us(records, answered, (begin, end)), 1e6))


def _startup(records: Records, of: Mask, window: Window) -> dict[str, Figure]:
    """startup_share = (steady_begin − first send) / duration, and whether that is more than STARTUP_SHARE."""
    length = duration(records, of)
    if window.begin is None or not length:
        return {"startup_share": None, "startup_transient": None}
    share = max(0.0, window.begin - float(np.nanmin(as_floats(records.sent)[of]))) / length
    return {"startup_share": share, "startup_transient": share > STARTUP_SHARE}


def _sent_and_seen(sent: Floats, event: Floats, of: Mask, begin: float, end: float) -> Mask:
    """The requests `of` sent in [begin, end], up to the first one sent there whose event had not come by the end."""
    inside = of & (sent >= begin) & (sent <= end)
    missed = inside & (event > end)
    return inside & (sent < np.min(sent[missed], initial=math.inf))


def _intervals(records: Records, of: Mask) -> tuple[Floats, Floats]:
    """Send and last token of the requests `of` that got one, ordered by send, s from the trial's start."""
    sent = as_floats(records.sent)[of]
    last = sent + service_e2el(records)[of]
    some = ~np.isnan(last)
    order = np.argsort(sent[some], kind="stable")
    return sent[some][order], last[some][order]


def ratio(times: Floats, tokens: NDArray[np.integer[Any]]) -> Floats:
    """times / tokens, NaN where there are none. Shape of both."""
    found: Floats = np.divide(times, tokens, out=np.full_like(times, np.nan), where=tokens > 0)
    return found


def _rate(times: Floats) -> float | None:
    times = times[~np.isnan(times)]
    return per_second(times.size - 1, float(np.ptp(times))) if times.size else None


def _prefixed(name: str, found: Mapping[str, Figure]) -> dict[str, Figure]:
    return {f"{name}_{statistic}": value for statistic, value in found.items()}
