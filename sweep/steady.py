"""The part of a trial in which it was in steady state: found, not assumed, and None where there is none to be found.

Two series are looked at: the output tokens that arrive per bin of time and the requests in flight; in lockstep, one
series: the tokens per second of each batch. The window
  * begins where MSER-5 truncates the later-settling of them (White, Cobb & Spratt, "A comparison of five steady-state
    truncation heuristics for simulation", Proc. Winter Simulation Conf. 2000): at the cut that minimises the standard
    error of the mean of what remains; a cut in the second half means that the run never settled;
  * ends with the last send at the latest (what follows is drain), and before that where the same rule, applied from the
    end backwards, cuts: cooling down is warming up seen in reverse;
  * must then be stationary: its two halves differ by at most `DRIFT`, or by no more than its own noise explains, which
    is Heidelberger and Welch's test (Simulation run length control in the presence of an initial transient, Operations
    Research 31, 1983) with the Cramér-von Mises statistic at 1 %.

What the figures in a window mean is in `metrics`.
"""

import numpy as np

from sweep.metrics import Floats, Mask, Window, batches, measured, service_e2el, succeeded, tokens_per_bin
from sweep.records import UNKNOWN, Records

BINS = 500  # at most: the window is found to 1/100 of the run (5 bins)
TOKENS_PER_BIN = 10  # at least: fewer bins where there are fewer tokens
FEWEST = 10  # means that MSER needs: 10 x 5 bins of time, or 10 batches
REQUEST_TIMES = 2.0  # the window must hold two typical requests one after the other
DRIFT = 0.05
CRAMER_VON_MISES_99 = 0.743  # of a Brownian bridge (Anderson & Darling 1952, table 1)


def steady_window(records: Records) -> Window:
    """The steady state of a trial's measured requests; its `method` says how it was found, or why it was not."""
    of = measured(records)
    if not (of & succeeded(records)).any():
        return _none("no request succeeded")
    if np.any(np.asarray(records.batch)[of] != UNKNOWN):
        return _of_batches(records, of)
    return _of_time(records, of)


def _of_batches(records: Records, of: Mask) -> Window:
    """Batches leave one after the other, so time is counted in them and there is nothing to drain."""
    found = batches(records, of)
    rates = found.output_tokens / found.latency
    kept = settled([rates], means_of=1)
    if isinstance(kept, str):
        return _none(f"{kept} ({rates.size} batches)")
    last = kept.stop - 1
    return Window(float(found.begin[kept.start]), float((found.begin + found.latency)[last]), "MSER over batches")


def _of_time(records: Records, of: Mask) -> Window:
    sent = np.asarray(records.sent)[of]
    begin, end = float(np.nanmin(sent)), float(np.nanmax(sent))
    if end <= begin:
        return _none("all requests were sent at once")
    tokens = tokens_per_bin(records, of, begin, end - begin, 1)[0]
    bins = min(BINS, int(tokens / TOKENS_PER_BIN)) // 5 * 5
    if bins < 5 * FEWEST:
        return _none(f"{tokens:.0f} tokens before the last send are too few")
    width = (end - begin) / bins
    edges = begin + width * np.arange(bins + 1)
    kept = settled([tokens_per_bin(records, of, begin, width, bins), in_flight(records, of, edges)], means_of=5)
    if isinstance(kept, str):
        return _none(kept)
    window = Window(float(edges[kept.start]), float(edges[kept.stop]), "MSER-5 over tokens/s and requests in flight")
    typical = float(np.nanmedian(service_e2el(records)[of]))
    if edges[kept.stop] - edges[kept.start] < REQUEST_TIMES * typical:
        return _none(f"what settled is shorter than {REQUEST_TIMES:g} typical requests of {typical:.3g} s")
    return window


def in_flight(records: Records, of: Mask, edges: Floats) -> Floats:
    """Mean number of requests in flight (sent, last token not there) between each two edges. Shape (edges - 1,)."""
    sent = np.asarray(records.sent)[of]
    ended = sent + service_e2el(records)[of]
    some = ~np.isnan(ended)
    return np.diff(_time_since(sent[some], edges) - _time_since(ended[some], edges)) / np.diff(edges)


def _time_since(events: Floats, at: Floats) -> Floats:
    """Σ over the events before t of (t − event), for each t in `at`. Shape of `at`."""
    events = np.sort(events)
    before = np.searchsorted(events, at)
    sums = np.concatenate([[0.0], np.cumsum(events)])
    return np.asarray(before * at - sums[before], np.float64)


def settled(series: list[Floats], means_of: int) -> slice | str:
    """The observations in which every series is in steady state, or why there are none.

    Args:
        series: one or more of the same length, in order of time.
        means_of: observations that MSER takes the mean of (5 for MSER-5).
    """
    if series[0].size < FEWEST * means_of:
        return "too short a run"
    heads = [mser(values, means_of) for values in series]
    tails = [mser(values[::-1], means_of) for values in series]
    if None in heads or None in tails:
        return "it never settled"
    begin = max(head for head in heads if head is not None)
    end = series[0].size - max(tail for tail in tails if tail is not None)
    if end - begin < FEWEST * means_of // 2:
        return "it never settled"
    if not all(stationary(values[begin:end]) for values in series):
        return "it drifted to the end"
    return slice(begin, end)


def mser(values: Floats, means_of: int = 5) -> int | None:
    """How many of the first observations to leave out, by the marginal standard error rule; None if too many.

    d* = argmin over d of Σ_{i>d} (y_i − ȳ_d)² / (n − d)², y being the n means of `means_of` observations each, ȳ_d the
    mean of those after d. Cuts that leave fewer than five means are not tried. None if d* > n/2.
    """
    n = values.size // means_of
    means = values[: n * means_of].reshape(n, means_of).mean(axis=1)
    errors = [np.var(means[d:]) / (n - d) for d in range(n - 4)]
    best = int(np.argmin(errors)) if errors else n
    return best * means_of if best <= n // 2 else None


def stationary(values: Floats) -> bool:
    """Whether the mean does not drift: by at most DRIFT from half to half, or not beyond the noise of the series.

    Heidelberger and Welch: B(k) = (S_k − k·ȳ) / √(n·p(0)) is a Brownian bridge if the mean is constant, S_k being the
    sum of the first k values. p(0), the spectral density at 0, is the variance of the means of √n values, times √n, in
    the second half, where a transient that was left in does not inflate it.
    """
    n = values.size
    half = n // 2
    mean = values.mean()
    if abs(values[half:].mean() - values[:half].mean()) <= DRIFT * abs(mean):
        return True
    size = max(1, int(np.sqrt(n)))
    groups = (n - half) // size
    if groups < 3:
        return False
    density = np.var(values[n - groups * size :].reshape(groups, size).mean(axis=1), ddof=1) * size
    bridge = np.cumsum(values - mean)
    return bool(np.mean(bridge**2) <= CRAMER_VON_MISES_99 * n * density)


def _none(why: str) -> Window:
    return Window(None, None, f"none: {why}")
