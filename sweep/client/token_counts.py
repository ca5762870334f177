"""The token counts of an answer: in total, received in its chunks, and the source of the count.

A server's usage may count tokens that were never sent (hidden reasoning), or nothing at all. Latencies are computed
from received tokens only, so that hidden tokens do not make later tokens look faster.
"""

from sweep.base.records import UNKNOWN, Record

TOLERANCE = 0.1  # relative difference allowed between a server's count and the client's count of the text


def settle(record: Record, fixed_length: bool) -> None:
    """Set a record's token counts from its stream, the server's usage and the client's tokenizer.

    `fixed_length`: ignore_eos was sent. Then a count of exactly the requested tokens is trusted, since end tokens are
    not in the text. On entry, `output_tokens` is the count from `token_source` (UNKNOWN for plain events),
    `hidden_tokens` the server's count of unsent reasoning, and `recounted_tokens` the client's count of the text.
    """
    if record.token_source == "events":
        if record.recounted_tokens > 0:
            record.token_source, record.output_tokens = "text", record.recounted_tokens
        record.streamed_tokens = record.output_tokens
    elif record.token_source == "final usage":
        record.streamed_tokens = _visible(record, fixed_length)
    else:
        if record.token_source == "running usage":
            _take_hidden_from_first_chunk(record, fixed_length)
        record.streamed_tokens = min(record.output_tokens, sum(record.chunk_tokens))


def _visible(record: Record, fixed_length: bool) -> int:
    """Return the tokens of the visible text, from the server's count and the text.

    If the client counted fewer tokens in the text, its count is used. Otherwise tokens above max_tokens are treated as
    hidden, except that at least one token per event is visible.
    """
    visible = max(1, record.output_tokens - record.hidden_tokens)
    if fixed_length and visible == record.asked_output_tokens:
        return visible
    if record.recounted_tokens != UNKNOWN:
        return record.recounted_tokens if record.recounted_tokens < (1 - TOLERANCE) * visible else visible
    return min(visible, max(record.asked_output_tokens, len(record.chunk_us)))


def _take_hidden_from_first_chunk(record: Record, fixed_length: bool) -> None:
    """Subtract the hidden tokens from the first chunk, since per-chunk usage adds them there."""
    tokens = record.chunk_tokens
    hidden = sum(tokens) - _visible(record, fixed_length)
    if hidden > 0 and tokens[0] > hidden:
        tokens[0] -= hidden
