"""The chunks of a trial's answers as arrays: arrival times and token counts.

Chunks without a token (a role, a usage report) are not arrivals and are left out. They are processed in blocks, so that
a million requests of 128 chunks need little more memory than their Records. Times are in seconds.
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
TOGETHER = 100  # µs: chunks of one answer no further apart came as one, since no engine makes token after token so fast


class Block(NamedTuple):
    """Consecutive chunks with tokens; each array has shape (chunks,)."""

    request: NDArray[np.int64]  # index of the Record
    us: NDArray[np.int64]  # arrival, µs since the send
    tokens: NDArray[np.uint16]

    def inside(self) -> Mask:
        """True for each two neighbouring chunks of the same request. Shape (chunks - 1,)."""
        return np.asarray(self.request[1:] == self.request[:-1])

    def gaps(self) -> NDArray[np.int64]:
        """Gaps between neighbouring chunks of one request in µs, 0 if the stamps go back. Shape (pairs inside,)."""
        return np.maximum(np.diff(self.us)[self.inside()], 0)

    def counted(self, records: Records) -> Floats:
        """Tokens of each chunk, scaled so that a request's sum is that of its streamed tokens. Shape (chunks,).

        The factor is 1 if the stream tells how many tokens each chunk holds. If it does not, each chunk was counted as
        one token, and the tokens are spread over the chunks evenly.
        """
        parsed = np.bincount(self.request - self.request[0], weights=self.tokens)
        reported = np.asarray(records.streamed_tokens, np.float64)[self.request[0] : self.request[0] + parsed.size]
        factor = np.divide(reported, parsed, out=np.ones_like(parsed), where=(reported > 0) & (parsed > 0))
        return np.asarray(self.tokens * factor[self.request - self.request[0]], np.float64)

    def times(self, records: Records) -> Floats:
        """Arrivals in s from the trial's start. Shape (chunks,)."""
        return as_floats(records.sent)[self.request] + self.us / 1e6


def blocks(records: Records, mask: Mask) -> Iterator[Block]:
    """The chunks of the requests in `mask`, in blocks of complete requests with about BLOCK_CHUNKS chunks each."""
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
    """Tokens (or chunks) that arrived in each of `bins` bins of `width` s from `begin`. Shape (bins,)."""
    totals = np.zeros(bins)
    for block in blocks(records, mask):
        index = np.floor((block.times(records) - begin) / width).astype(np.int64)
        inside = (index >= 0) & (index < bins)
        weights = None if chunks else block.counted(records)[inside]
        totals += np.bincount(index[inside], weights=weights, minlength=bins)
    return totals


def tokens_within(records: Records, mask: Mask, begin: float, end: float) -> int:
    """Tokens that arrived after `begin` and not after `end`."""
    tokens = sum(
        float(block.counted(records)[within(block.times(records), begin, end)].sum()) for block in blocks(records, mask)
    )
    return round(tokens)


def token_times(records: Records) -> tuple[Floats, Floats]:
    """Arrival of the first and the last token of each request, s since its send; NaN if there was none."""
    first, last = np.full(len(records), np.nan), np.full(len(records), np.nan)
    tokens, us = np.asarray(records.chunk_tokens), np.asarray(records.chunk_us)
    if np.all(tokens > 0):  # nearly always: the first and last chunk of each request suffice
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
    """True for neighbouring chunks of one request that came as one. Shape (chunks - 1,)."""
    return block.inside() & (np.diff(block.us) <= TOGETHER)


def later_tokens(records: Records) -> Floats:
    """Streamed tokens of each request that came after its first arrival; NaN if that is unknown. Shape (requests,).

    The first arrival is the first chunk with those that came together with it.
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
    """Number of chunks with a token in each request. Shape (requests,)."""
    empty = np.flatnonzero(np.asarray(records.chunk_tokens) == 0)  # few, if any
    offsets = np.asarray(records.offsets)
    requests_of_empty = np.searchsorted(offsets, empty, side="right") - 1
    return np.diff(offsets) - np.bincount(requests_of_empty, minlength=len(records))


def as_floats(column: "array[float]") -> Floats:
    """A column of Records as a numpy array, not copied. Shape (requests,)."""
    return np.asarray(column, np.float64)


def within(times: Floats, begin: float, end: float) -> Mask:
    """Mask of the times after `begin` and not after `end`. Shape of `times`."""
    return np.asarray((times > begin) & (times <= end))
