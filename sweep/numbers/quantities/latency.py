"""Latencies of one request and of one gap between chunks."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sweep.numbers.chunks import Block, Floats, as_floats, later_tokens, token_times
from sweep.numbers.quantity import quantity
from sweep.numbers.selection import divided
from sweep.records import Records

PER_REQUEST = {"unit": "s", "per": "request", "better": "lower"}


@quantity(**PER_REQUEST, kind="latency", event="first", label="TTFT", headline={"p50": 2, "p99": 5})
def ttft(records: Records) -> Floats:
    """first token − scheduled: includes the wait for a slot and the client's lag. Shape (requests,), s."""
    return service_ttft(records) + (as_floats(records.sent) - as_floats(records.scheduled))


@quantity(**PER_REQUEST, kind="latency", label="TTFT of the answer")
def answer_ttft(records: Records) -> Floats:
    """first token after visible reasoning − scheduled; null where there is no such reasoning. Shape (requests,), s."""
    return as_floats(records.first_answer) + (as_floats(records.sent) - as_floats(records.scheduled))


@quantity(**PER_REQUEST, kind="latency", event="last", label="TPOT", headline={"p50": 4}, spaced=True)
def tpot(records: Records) -> Floats:
    """(last token − first token) / (streamed tokens − tokens of the first arrival).

    Undefined if all came at once. Shape (requests,), s.
    """
    first, last = token_times(records)
    return divided(last - first, later_tokens(records))


@quantity(**PER_REQUEST, kind="latency", label="TPOT end to end")
def tpot_e2e(records: Records) -> Floats:
    """e2el / output_tokens: TTFT included. Shape (requests,), s."""
    return divided(e2el(records), np.asarray(records.output_tokens))


@quantity(unit="s", per="gap", better="lower", kind="latency", event="last", label="ITL", spaced=True)
def itl(block: Block) -> NDArray[np.int64]:
    """arrival of a chunk with a token − arrival of the previous one; every such gap. Shape (gaps,), µs."""
    return block.gaps()


@quantity(unit="s", per="gap", better="lower", kind="latency", label="ITL per token", spaced=True)
def itl_token(block: Block) -> NDArray[Any]:
    """itl / number of tokens in the later chunk. Shape (gaps,), µs."""
    return block.gaps() / block.tokens[1:][block.inside()]


@quantity(**PER_REQUEST, kind="latency", event="last", label="E2EL")
def e2el(records: Records) -> Floats:
    """last token − scheduled. Shape (requests,), s."""
    return service_e2el(records) + (as_floats(records.sent) - as_floats(records.scheduled))


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
    """released − scheduled: waiting at the cap on requests in flight. Shape (requests,), s."""
    return as_floats(records.released) - as_floats(records.scheduled)


@quantity(**PER_REQUEST, kind="validity", event="sent", label="client lag")
def lag(records: Records) -> Floats:
    """sent − max(scheduled, released): the client's own delay. Shape (requests,), s."""
    return as_floats(records.sent) - np.maximum(as_floats(records.scheduled), as_floats(records.released))
