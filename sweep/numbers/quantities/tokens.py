"""Tokens: the source of their count, their delivery, and the requested number.

`output_tokens` is the server's count, including hidden reasoning; *streamed* tokens are the tokens received.
"""

from array import array
from collections import Counter
from collections.abc import Callable

import numpy as np

from sweep.base.records import UNKNOWN, Records
from sweep.numbers.chunks import Floats, Mask, blocks, near, token_chunks
from sweep.numbers.quantities.answers import held_back
from sweep.numbers.quantity import Quantity, declare, quantity
from sweep.numbers.selection import engine_answered, per_second, succeeded, total_tokens

TOKENS_PER_WORD = 0.7, 2.5  # range over all tokenizers
CHAT_TEMPLATE = 64  # tokens that a chat template may add to a prompt
LEAST_GROWTH = 0.35  # minimum tokens per further word
UNEQUAL_PROMPTS = 0.1  # minimum standard deviation of prompt lengths over their mean
FEWEST_PROMPTS = 8
FINISHES = {
    "stop": ("stop", "eos_token", "stop_sequence", "end_turn"),
    "length": ("length", "max_tokens"),
    "content_filter": ("content_filter",),
}
"""Names of finish reasons used here -> the servers' names."""

FINISH_MEANINGS = {
    "stop": "that ended naturally (finish reason stop, eos_token, stop_sequence, end_turn)",
    "length": "that ended at the requested length (finish reason length, max_tokens)",
    "content_filter": "that a content filter ended",
    "other": "with another finish reason, or no finish reason",
}


@quantity(unit="", kind="validity", type=str)
def token_source(records: Records, mask: Mask) -> str | None:
    """who counted output tokens: the server (ids, running usage, final usage), the client's tokenizer (text), nobody
    (events). Several sources are joined, the most frequent first.
    """
    sources = Counter(records.token_source[index] for index in np.flatnonzero(mask & succeeded(records)))
    return ", ".join(source for source, _ in sources.most_common() if source) or None


@quantity(unit="share", kind="validity")
def recounted_share(records: Records, mask: Mask) -> float | None:
    """tokens in the answers' text as counted by the model's tokenizer / by the server, without hidden reasoning.

    Covers answers whose text was stored; null if there is no tokenizer, or the server counted nothing.
    """
    recounted, counted = np.asarray(records.recounted_tokens), np.asarray(records.output_tokens)
    server = np.fromiter((source not in ("text", "events") for source in records.token_source), np.bool_, len(records))
    chosen = mask & succeeded(records) & server & (recounted != UNKNOWN) & (counted != UNKNOWN)
    visible = int((counted - np.asarray(records.hidden_tokens))[chosen].sum())
    return float(recounted[chosen].sum()) / visible if visible > 0 else None


@quantity(unit="tokens", kind="count", type=int)
def streamed_tokens(records: Records, mask: Mask) -> int | None:
    """Σ output tokens that the successful requests received in their streams, i.e. without hidden reasoning."""
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
    """share of the events that arrived together (in one read, or within 0.1 ms) with another event of the same answer.
    In an answer that was held back, all events count. Answers from the gateway are excluded.
    """
    together = events = 0
    chosen = mask & engine_answered(records)
    in_one_piece = held_back(records, chosen)
    for block in blocks(records, chosen):
        close = np.concatenate([[False], near(block), [False]])
        together += int((close[1:] | close[:-1] | in_one_piece[block.request]).sum())
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


@quantity(unit="tokens/word", kind="validity")
def tokens_per_word(records: Records, mask: Mask) -> float | None:
    """input tokens / words in the prompts, of the successful requests. A text has at least a sixth as many words as
    bytes; a prompt sent as token ids has one word per id.
    """
    tokens, word_counts = _prompts(records, mask)
    return float(tokens.sum() / word_counts.sum()) if word_counts.sum() > 0 else None


@quantity(unit="", kind="validity", type=bool)
def prompts_counted(
    records: Records, mask: Mask, tokens_per_word: float | None, templated: bool = False
) -> bool | None:
    """whether the input tokens fit the text that was sent: 0.7 to 2.5 per word, plus up to 64 for a chat template. If
    the lengths of 8 or more prompts vary by a tenth, each further word must also add at least 0.35.
    """
    if tokens_per_word is None:
        return None
    tokens, word_counts = _prompts(records, mask)
    added = (CHAT_TEMPLATE if templated else 0) * word_counts.size
    low, high = (each * word_counts.sum() for each in TOKENS_PER_WORD)
    fits = bool(low <= tokens.sum() <= high + added)
    if word_counts.size < FEWEST_PROMPTS or word_counts.std() <= UNEQUAL_PROMPTS * word_counts.mean():
        return fits
    return fits and bool(np.polyfit(word_counts, tokens, 1)[0] >= LEAST_GROWTH)


def _prompts(records: Records, mask: Mask) -> tuple[Floats, Floats]:
    """Return input tokens and words of the successful requests' prompts, where both are known."""
    tokens, word_counts = _known(records.input_tokens), _known(records.prompt_words)
    chosen = mask & succeeded(records) & ~np.isnan(tokens + word_counts)
    return tokens[chosen], word_counts[chosen]


@quantity(unit="characters", kind="count", type=int)
def characters(records: Records, mask: Mask) -> int | None:
    """Σ characters of the successful answers' text; counting them needs no tokenizer."""
    return total_tokens(records.characters, mask & succeeded(records))


@quantity(unit="characters/s", kind="throughput", better="higher", label="Characters per second")
def character_throughput(characters: int | None, duration: float | None) -> float | None:
    """characters / duration: comparable even if token counts were not verified."""
    return per_second(characters, duration)


@quantity(unit="tokens", kind="count", type=int)
def asked_input_tokens(records: Records, mask: Mask) -> int | None:
    """Σ input tokens of the successful requests, counted by the model's tokenizer; null if the tokenizer is unknown."""
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


def _finish_share(kind: str) -> Callable[[Records, Mask], float | None]:
    return lambda records, mask: _finished(records, mask, kind)


for _kind, _meaning in FINISH_MEANINGS.items():
    declare(
        Quantity(
            name=f"finish_{_kind}_share",
            unit="share",
            kind="validity",
            better="lower" if _kind == "content_filter" else None,
            function=_finish_share(_kind),
            formula=f"share of the answers {_meaning}.",
        )
    )


def _finished(records: Records, mask: Mask, end: str) -> float | None:
    answered = np.flatnonzero(mask & succeeded(records))
    kinds = {reason: kind for kind, reasons in FINISHES.items() for reason in reasons}
    ends = [kinds.get(records.finish_reason[index] or "", "other") for index in answered]
    return ends.count(end) / len(ends) if ends else None


def _known(counts: "array[int]") -> Floats:
    tokens = np.asarray(counts, np.float64)
    return np.where(tokens == UNKNOWN, np.nan, tokens)
