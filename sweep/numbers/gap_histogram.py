"""A histogram of gaps between chunks, from which quantiles of a billion gaps can be computed.

A bin is the upper half of a gap's bits as a 32-bit float: 128 bins for each power of two. The middle of a bin differs
by at most 0.4% from any gap in the bin; this bounds the error of a quantile. Histograms of trials, files and processes
can be added.
"""

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]

LARGEST_ERROR = 2.0**-8  # relative error of a quantile: half a bin
GAP_BINS = 1 << 15  # the bins of positive floats
GAPS_AT_ONCE = 1 << 20  # gaps
WRAPS = np.uint32(1 << 31)  # µs above which a difference may be a negative one that wrapped around


def count_gaps(stamps: NDArray[np.uint32], offsets: NDArray[np.int64]) -> Counts:
    """Count the gaps between neighbouring stamps of each request, in µs; decreasing stamps give 0.

    `offsets` holds the start of each request's stamps, and the end of the last request's stamps.
    """
    counts = np.zeros(GAP_BINS, np.int64)
    wide = bool(stamps.size) and bool(stamps.max() >= WRAPS)
    for begin in range(0, stamps.size - 1, GAPS_AT_ONCE):
        part = stamps[begin : begin + GAPS_AT_ONCE + 1]
        counts += np.bincount(_bins(part, wide), minlength=GAP_BINS)
    between = np.unique(offsets[(offsets > offsets[0]) & (offsets < offsets[-1])]) - offsets[0]
    if between.size:  # neighbours that belong to different requests
        pairs = np.stack([stamps[between - 1], stamps[between]], axis=1)
        counts -= np.bincount(_bins(pairs, wide).ravel(), minlength=GAP_BINS)
    return counts


def quantile_of_counts(counts: Counts, share: float) -> float:
    """Return the quantile of the gaps in s, within LARGEST_ERROR; NaN if there are no gaps."""
    cumulative = np.cumsum(counts)
    if not cumulative[-1]:
        return float("nan")
    index = int(np.searchsorted(cumulative, share * (cumulative[-1] - 1), side="right"))
    return _middle(index) / 1e6


def _bins(stamps: NDArray[np.uint32], wide: bool) -> NDArray[np.intp]:
    """Return the bin of each difference between neighbours along the last axis."""
    if wide:
        gaps = np.maximum(np.diff(stamps.astype(np.int64)), 0).astype(np.float32)
    else:
        gaps = np.maximum(np.diff(stamps).view(np.int32), 0).astype(np.float32)
    return (gaps.view(np.uint32) >> 16).astype(np.intp)


def _middle(index: int) -> float:
    """Return the middle of a bin in µs, counting only whole numbers, since stamps are whole."""
    low, high = np.array([index << 16, (index + 1) << 16], np.uint32).view(np.float32).astype(np.float64)
    first, last = np.ceil(low), np.ceil(high) - 1
    return float((first + last) / 2) if last >= first else float(low)
