"""Tokens: who counted them, how they were delivered, and how many were requested.

`output_tokens` is the server's count, including hidden reasoning; *streamed* tokens are those that were received.
"""

from array import array
from collections import Counter

import numpy as np

from sweep.base.records import UNKNOWN, Records
from sweep.numbers.chunks import Floats, Mask, blocks, near, token_chunks
from sweep.numbers.quantity import quantity
from sweep.numbers.selection import engine_answered, succeeded, total_tokens

FINISHES = {
    "stop": ("stop", "eos_token", "stop_sequence", "end_turn"),
    "length": ("length", "max_tokens"),
    "content_filter": ("content_filter",),
}
"""Our names of finish reasons -> the servers' names."""


@quantity(unit="", kind="validity", type=str)
def token_source(records: Records, mask: Mask) -> str | None:
    """who counted output tokens: the server (ids, running usage, final usage), our tokenizer (text), nobody (events).

    Several sources are joined, the one with the most requests first.
    """
    sources = Counter(records.token_source[index] for index in np.flatnonzero(mask & succeeded(records)))
    return ", ".join(source for source, _ in sources.most_common() if source) or None


@quantity(unit="share", kind="validity")
def recounted_share(records: Records, mask: Mask) -> float | None:
    """tokens of the answers' text by the model's own tokenizer / tokens by the server, without its hidden reasoning.

    Covers answers whose text was kept; null if there is no tokenizer, or the server counted nothing.
    """
    recounted, counted = np.asarray(records.recounted_tokens), np.asarray(records.output_tokens)
    server = np.fromiter((source not in ("text", "events") for source in records.token_source), np.bool_, len(records))
    chosen = mask & succeeded(records) & server & (recounted != UNKNOWN) & (counted != UNKNOWN)
    visible = int((counted - np.asarray(records.hidden_tokens))[chosen].sum())
    return float(recounted[chosen].sum()) / visible if visible > 0 else None


@quantity(unit="tokens", kind="count", type=int)
def streamed_tokens(records: Records, mask: Mask) -> int | None:
    """Σ output tokens of the successful requests received in their streams: all but hidden reasoning."""
    return total_tokens(records.streamed_tokens, mask & succeeded(records))


@quantity(unit="share", kind="validity")
def hidden_share(output_tokens: int | None, streamed_tokens: int | None) -> float | None:
    """share of the output tokens that were never sent: the server counted them, as hidden reasoning."""
    return None if not output_tokens or streamed_tokens is None else 1 - streamed_tokens / output_tokens


@quantity(unit="tokens/event", kind="validity")
def tokens_per_event(records: Records, mask: Mask) -> float | None:
    """streamed tokens / events with a token: above 1 with speculative decoding, or if events are merged."""
    answered = mask & succeeded(records)
    tokens, events = total_tokens(records.streamed_tokens, answered), int(token_chunks(records)[answered].sum())
    return tokens / events if tokens and events else None


@quantity(unit="share", kind="validity", better="lower")
def buffered_share(records: Records, mask: Mask) -> float | None:
    """share of the events that arrived together (in one read, or within 0.1 ms) with another event of the same answer;
    the gateway's own answers are left out."""
    together = events = 0
    for block in blocks(records, mask & engine_answered(records)):
        close = np.concatenate([[False], near(block), [False]])
        together += int((close[1:] | close[:-1]).sum())
        events += block.us.size
    return together / events if events else None


@quantity(unit="tokens/request", kind="count", per="request", recorded_as="input_tokens")
def input_length(records: Records) -> Floats:
    """input tokens of a request. Shape (requests,)."""
    return _known(records.input_tokens)


@quantity(unit="tokens/request", kind="count", per="request", recorded_as="output_tokens")
def output_length(records: Records) -> Floats:
    """output tokens of a request, including hidden reasoning. Shape (requests,)."""
    return _known(records.output_tokens)


@quantity(unit="tokens", kind="count", type=int)
def asked_input_tokens(records: Records, mask: Mask) -> int | None:
    """Σ input tokens of the successful requests as the model's own tokenizer counts prompts; null without one."""
    return total_tokens(records.asked_input_tokens, mask & succeeded(records))


@quantity(unit="tokens", kind="count", type=int)
def asked_output_tokens(records: Records, mask: Mask) -> int | None:
    """Σ output tokens that the successful requests were allowed (max_tokens)."""
    return total_tokens(records.asked_output_tokens, mask & succeeded(records))


@quantity(unit="share", kind="validity")
def output_length_ratio(
    streamed_tokens: int | None, asked_output_tokens: int | None, fixed_length: bool
) -> float | None:
    """streamed_tokens / asked_output_tokens; null if answers may be shorter (workload.ignore_eos=false)."""
    return streamed_tokens / asked_output_tokens if fixed_length and streamed_tokens and asked_output_tokens else None


@quantity(unit="share", kind="validity")
def finish_stop_share(records: Records, mask: Mask) -> float | None:
    """share of the answers that the model ended (finish reason stop, eos_token, stop_sequence, end_turn)."""
    return _finished(records, mask, "stop")


@quantity(unit="share", kind="validity")
def finish_length_share(records: Records, mask: Mask) -> float | None:
    """share of the answers that ended at the requested length (finish reason length, max_tokens)."""
    return _finished(records, mask, "length")


@quantity(unit="share", kind="validity", better="lower")
def finish_content_filter_share(records: Records, mask: Mask) -> float | None:
    """share of the answers that a content filter ended."""
    return _finished(records, mask, "content_filter")


@quantity(unit="share", kind="validity")
def finish_other_share(records: Records, mask: Mask) -> float | None:
    """share of the answers with another finish reason, or none."""
    return _finished(records, mask, "other")


def _finished(records: Records, mask: Mask, end: str) -> float | None:
    answered = np.flatnonzero(mask & succeeded(records))
    kinds = {reason: kind for kind, reasons in FINISHES.items() for reason in reasons}
    ends = [kinds.get(records.finish_reason[index] or "", "other") for index in answered]
    return ends.count(end) / len(ends) if ends else None


def _known(counts: "array[int]") -> Floats:
    tokens = np.asarray(counts, np.float64)
    return np.where(tokens == UNKNOWN, np.nan, tokens)
