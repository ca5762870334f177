"""Latencies of a request, and of a gap between chunks."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sweep.base.records import Records
from sweep.numbers.chunks import Block, Floats, Mask, as_floats, blocks, later_tokens, token_times
from sweep.numbers.quantities.answers import tokens_are_stamped
from sweep.numbers.quantity import Quantity, declare, quantity
from sweep.numbers.selection import divided, succeeded

MOSTLY = 0.5  # share of the answers above which every request is assumed to need a new connection
PER_REQUEST = {"unit": "s", "per": "request", "better": "lower"}


@quantity(**PER_REQUEST, kind="latency", event="first", label="TTFT", headline={"p50": 2, "p99": 5})
def ttft(records: Records) -> Floats:
    """first token − scheduled: includes the wait for a slot and the client's lag. In a closed loop and in lockstep,
    which have no schedule: first token − sent. If connections are closed after each answer, `connect` is included.

    Shape (requests,), s.
    """
    return service_ttft(records) + _before_the_send(records)


declare(
    Quantity(
        name="connect",
        unit="s",
        per="request",
        better="lower",
        kind="validity",
        label="connection set-up",
        function=lambda records: as_floats(records.connected) - as_floats(records.connecting),
        formula="connected − connecting, including the TLS handshake; null for a reused connection.",
    )
)


@quantity(**PER_REQUEST, kind="latency", label="TTFT of the answer")
def answer_ttft(records: Records) -> Floats:
    """first token after visible reasoning, measured like ttft; null if there is no visible reasoning.

    Shape (requests,), s.
    """
    return as_floats(records.first_answer) + _before_the_send(records)


@quantity(**PER_REQUEST, kind="latency", event="last", label="TPOT", headline={"p50": 4}, spaced=True)
def tpot(records: Records) -> Floats:
    """(last token − first token) / (streamed tokens − tokens of the first arrival).

    Undefined if all tokens arrived at once, or if only the final usage counts tokens, its count is over 5% above the
    number of events, and no tokenizer has counted the text. Shape (requests,), s.
    """
    if not tokens_are_stamped(records):
        return np.full(len(records), np.nan)
    first, last = token_times(records)
    return divided(last - first, later_tokens(records))


@quantity(**PER_REQUEST, kind="latency", label="TPOT end to end")
def tpot_e2e(records: Records) -> Floats:
    """e2el / output_tokens, which includes TTFT. Shape (requests,), s."""
    return divided(e2el(records), np.asarray(records.output_tokens))


@quantity(unit="s", per="gap", better="lower", kind="latency", event="last", label="ITL", spaced=True)
def itl(block: Block) -> NDArray[np.int64]:
    """arrival of a chunk with a token − arrival of the previous such chunk, for all such gaps. Shape (gaps,), µs."""
    return block.gaps()


@quantity(unit="s", per="gap", better="lower", kind="latency", label="ITL per token", spaced=True)
def itl_token(block: Block) -> NDArray[Any]:
    """itl / number of tokens in the later chunk. Shape (gaps,), µs."""
    return block.gaps() / block.tokens[1:][block.inside()]


@quantity(**PER_REQUEST, kind="latency", event="last", spaced=True)
def longest_gap(records: Records) -> Floats:
    """longest itl of the request, since percentiles of itl do not show a single stall among hundreds of gaps. Shape
    (requests,), s.
    """
    longest = np.full(len(records), np.nan)
    for block in blocks(records, np.ones(len(records), np.bool_)):
        request = block.request[1:][block.inside()]
        if request.size:
            begins = np.flatnonzero(np.r_[True, request[1:] != request[:-1]])
            longest[request[begins]] = np.maximum.reduceat(block.gaps(), begins) / 1e6
    return longest


@quantity(**PER_REQUEST, kind="latency", event="last", label="E2EL")
def e2el(records: Records) -> Floats:
    """last token − scheduled; if there is no schedule, last token − sent. Shape (requests,), s."""
    return service_e2el(records) + _before_the_send(records)


@quantity(**PER_REQUEST, kind="latency", event="first", label="service TTFT")
def service_ttft(records: Records) -> Floats:
    """first token − sent: what most tools call TTFT. Shape (requests,), s."""
    return token_times(records)[0]


@quantity(**PER_REQUEST, kind="latency", label="service E2EL")
def service_e2el(records: Records) -> Floats:
    """last token − sent. Shape (requests,), s."""
    return token_times(records)[1]


@quantity(**PER_REQUEST, kind="latency", event="sent", label="slot wait")
def slot_wait(records: Records) -> Floats:
    """released − scheduled: wait at a cap on requests in flight; null if there is no schedule. Shape (requests,), s."""
    return as_floats(records.released) - as_floats(records.scheduled)


@quantity(**PER_REQUEST, kind="validity", event="sent", label="client lag")
def lag(records: Records) -> Floats:
    """sent − max(scheduled, released): the client's delay; null if there is no schedule. Excludes the set-up of
    connections that are closed after each answer. Shape (requests,), s.
    """
    due = np.maximum(as_floats(records.scheduled), as_floats(records.released))
    return as_floats(records.sent) - due - _set_up(records, due)[1]


@quantity(**PER_REQUEST, kind="validity", event="sent", label="client turnaround")
def turnaround(records: Records) -> Floats:
    """sent − released in a load without a schedule: the delay caused by the client. It is counted from the last byte of
    the user's previous answer (in lockstep: of the previous batch; at first: from the start), plus the think time. Null
    in an open loop. Excludes the set-up of connections that are closed after each answer.

    Shape (requests,), s.
    """
    released = as_floats(records.released)
    delay = as_floats(records.sent) - released - _set_up(records, released)[1]
    return np.where(np.isnan(as_floats(records.scheduled)), delay, np.nan)


@quantity(unit="share", kind="validity", better="lower", label="Client turnaround share")
def turnaround_share(records: Records, mask: Mask) -> float | None:
    """Σ turnaround / Σ (turnaround + e2el) of the successful requests; null in an open loop."""
    delay, latency = turnaround(records), e2el(records)
    mask = mask & succeeded(records) & ~np.isnan(delay + latency)
    total = float((delay + latency)[mask].sum())
    return float(delay[mask].sum()) / total if total > 0 else None


def _before_the_send(records: Records) -> Floats:
    """Return the delay before each request was sent, in s: from its schedule (if any), plus the set-up of a connection
    that is closed after its answer. Shape (requests,).
    """
    early, late = _set_up(records, as_floats(records.released))
    waited = as_floats(records.sent) - as_floats(records.scheduled)
    return early + np.where(np.isnan(as_floats(records.scheduled)), late, waited)


def _set_up(records: Records, due: Floats) -> tuple[Floats, Floats]:
    """Return the connection set-up time before and after each request was due, in s; 0 unless most connections are
    closed after their answer. It is included even if the client connected in advance, since an occasional user would
    wait for it. Each has shape (requests,).
    """
    begin, end = as_floats(records.connecting), as_floats(records.connected)
    counts = ~np.isnan(begin) & ((closed_share(records, succeeded(records)) or 0) > MOSTLY)
    early, late = np.minimum(end, due) - begin, end - np.maximum(begin, due)
    return np.where(counts, early.clip(0), 0.0), np.where(counts, late.clip(0), 0.0)


@quantity(unit="share", kind="validity", better="lower")
def closed_share(records: Records, mask: Mask) -> float | None:
    """share of answers after which the server or `backend.headers` closed the connection; null if none was closed."""
    answered = np.asarray(records.closed)[mask & succeeded(records)]
    return float(answered.mean()) if answered.any() else None
