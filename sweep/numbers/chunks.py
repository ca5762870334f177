"""The chunks of a trial's answers as arrays: arrival times and token counts.

Chunks without a token (a role, a usage report) are excluded. Chunks are processed in blocks, so
that a million requests of 128 chunks need little more memory than their Records. Times are in seconds.
"""

from array import array
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sweep.base.records import UNKNOWN, Records

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

BLOCK_CHUNKS = 1 << 20
TOGETHER = 100  # µs: no engine generates tokens faster, so closer chunks of an answer arrived together


class Block(NamedTuple):
    """Consecutive chunks with tokens; each array has shape (chunks,)."""

    request: NDArray[np.int64]  # index of the Record
    us: NDArray[np.int64]  # arrival, in µs since the send
    tokens: NDArray[np.uint16]

    def inside(self) -> Mask:
        """Return a mask of neighbouring chunks that belong to the same request. Shape (chunks - 1,)."""
        return np.asarray(self.request[1:] == self.request[:-1])

    def gaps(self) -> NDArray[np.int64]:
        """Return the gaps between neighbouring chunks of a request in µs, 0 if stamps go back. Shape (pairs,)."""
        return np.maximum(np.diff(self.us)[self.inside()], 0)

    def counted(self, records: Records) -> Floats:
        """Return the tokens of each chunk, scaled to add up to the request's streamed tokens. Shape (chunks,).

        The factor is 1 if the stream reports the tokens of each chunk. Otherwise each chunk was counted as one token,
        and the tokens are spread evenly over the chunks.
        """
        parsed = np.bincount(self.request - self.request[0], weights=self.tokens)
        reported = np.asarray(records.streamed_tokens, np.float64)[self.request[0] : self.request[0] + parsed.size]
        factor = np.divide(reported, parsed, out=np.ones_like(parsed), where=(reported > 0) & (parsed > 0))
        return np.asarray(self.tokens * factor[self.request - self.request[0]], np.float64)

    def times(self, records: Records) -> Floats:
        """Return the arrivals in s from the trial's start. Shape (chunks,)."""
        return as_floats(records.sent)[self.request] + self.us / 1e6


def blocks(records: Records, mask: Mask) -> Iterator[Block]:
    """Yield the chunks of the requests in `mask`, in blocks of complete requests of about BLOCK_CHUNKS chunks."""
    offsets, us, tokens = np.asarray(records.offsets), np.asarray(records.chunk_us), np.asarray(records.chunk_tokens)
    begin, count = 0, len(records)
    while begin < count:
        end = max(begin + 1, int(np.searchsorted(offsets, offsets[begin] + BLOCK_CHUNKS, side="right")) - 1)
        chunks = slice(offsets[begin], offsets[end])
        request = np.repeat(np.arange(begin, end), np.diff(offsets[begin : end + 1]))
        selected = mask[request] & (tokens[chunks] > 0)
        if selected.any():
            yield Block(request[selected], us[chunks][selected].astype(np.int64), tokens[chunks][selected])
        begin = end


def tokens_per_bin(
    records: Records, mask: Mask, begin: float, width: float, bins: int, *, chunks: bool = False
) -> Floats:
    """Return the tokens (or chunks) that arrived in each of `bins` bins of `width` s from `begin`. Shape (bins,)."""
    totals = np.zeros(bins)
    for block in blocks(records, mask):
        index = np.floor((block.times(records) - begin) / width).astype(np.int64)
        inside = (index >= 0) & (index < bins)
        weights = None if chunks else block.counted(records)[inside]
        totals += np.bincount(index[inside], weights=weights, minlength=bins)
    return totals


def tokens_within(records: Records, mask: Mask, begin: float, end: float) -> int:
    """Return the number of tokens that arrived after `begin` and not after `end`."""
    tokens = sum(
        float(block.counted(records)[within(block.times(records), begin, end)].sum()) for block in blocks(records, mask)
    )
    return round(tokens)


def token_times(records: Records) -> tuple[Floats, Floats]:
    """Return the arrival of each request's first and last token, in s since it was sent; NaN if it got none."""
    first, last = np.full(len(records), np.nan), np.full(len(records), np.nan)
    tokens, us = np.asarray(records.chunk_tokens), np.asarray(records.chunk_us)
    if np.all(tokens > 0):  # usual case: the first and last chunk of each request suffice
        offsets = np.asarray(records.offsets)
        some = offsets[1:] > offsets[:-1]
        first[some], last[some] = us[offsets[:-1][some]] / 1e6, us[offsets[1:][some] - 1] / 1e6
        return first, last
    for block in blocks(records, np.ones(len(records), np.bool_)):
        edges = ~block.inside()
        first[block.request[np.r_[True, edges]]] = block.us[np.r_[True, edges]] / 1e6
        last[block.request[np.r_[edges, True]]] = block.us[np.r_[edges, True]] / 1e6
    return first, last


def near(block: Block) -> Mask:
    """Return a mask of neighbouring chunks that arrived together. Shape (chunks - 1,)."""
    return block.inside() & (np.diff(block.us) <= TOGETHER)


def later_tokens(records: Records) -> Floats:
    """Return each request's streamed tokens after the first arrival; NaN if unknown. Shape (requests,).

    The first arrival consists of the first chunk and all chunks that arrived together with it.
    """
    first, parsed = np.zeros(len(records)), np.zeros(len(records))
    for block in blocks(records, np.ones(len(records), np.bool_)):
        starts = np.flatnonzero(np.r_[True, ~block.inside()])
        request, sizes = block.request[starts], np.diff(np.r_[starts, block.us.size])
        early = block.us <= np.repeat(block.us[starts], sizes) + TOGETHER
        parsed[request] = np.add.reduceat(block.tokens, starts, dtype=np.int64)
        first[request] = np.add.reduceat(block.tokens * early, starts, dtype=np.int64)
    streamed = np.asarray(records.streamed_tokens, np.float64)
    share = np.divide(parsed - first, parsed, out=np.zeros_like(parsed), where=parsed > 0)
    return np.where(streamed == UNKNOWN, np.nan, streamed * share)


def token_chunks(records: Records) -> NDArray[np.int64]:
    """Return the number of chunks with a token in each request. Shape (requests,)."""
    empty = np.flatnonzero(np.asarray(records.chunk_tokens) == 0)  # chunks without a token are rare
    offsets = np.asarray(records.offsets)
    requests_of_empty = np.searchsorted(offsets, empty, side="right") - 1
    return np.diff(offsets) - np.bincount(requests_of_empty, minlength=len(records))


def as_floats(column: "array[float]") -> Floats:
    """Return a column of Records as a numpy array, without copying. Shape (requests,)."""
    return np.asarray(column, np.float64)


def within(times: Floats, begin: float, end: float) -> Mask:
    """Return a mask of the times after `begin` and not after `end`. Shape of `times`."""
    return np.asarray((times > begin) & (times <= end))
