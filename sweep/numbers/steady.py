"""The steady state of a trial: the part detected as stationary, or None.

The window
  * begins when the load has turned over once, that is, when as many requests have ended as are typically in flight. The
    first requests, which came all at once or met an idle engine, have ended by then;
  * ends when the last request is sent, after which the load drains;
  * is trimmed by the marginal standard error rule MSER-5 (White, Cobb & Spratt, "A comparison of five steady-state
    truncation heuristics for simulation", Proc. Winter Simulation Conf. 2000) at its beginning, and, since cooling down
    is warming up in reverse, at its end, but there only if fewer requests are in flight than before: an engine that
    slows down under the same load has not cooled down, and trimming that part would flatter it;
  * must be at least LIFETIMES × the p90 of e2el long (infinite for failed requests), and as long as the slowest answer:
    a shorter window may contain no slow request at all. (MLPerf Endpoints requires such a multiple too: the
    "relaxation" in docs/steady-state-detection.md of mlcommons/endpoints);
  * must not be the part of the run with the fewest slow requests (`quiet_part`);
  * must then be stationary, by the test of Heidelberger and Welch ("Simulation run length control in the presence of an
    initial transient", Operations Research 31, 1983).
Two series are examined: the output tokens that arrive in each bin of time, and the requests in flight. In lockstep
there is one series, the tokens per second of each batch, and no drain. `quantities.steady` defines its quantities.
"""

import numpy as np

from sweep.base.records import UNKNOWN, Records
from sweep.numbers.chunks import Floats, Mask, as_floats, token_times, tokens_per_bin
from sweep.numbers.quantile import statistics
from sweep.numbers.quantities.batches import batches
from sweep.numbers.quantities.latency import e2el, service_e2el
from sweep.numbers.quantities.load import GROWING, queue_score
from sweep.numbers.selection import Window, measured, sent_within, succeeded, with_failures

LIFETIMES = 5  # minimum length of a window, in durations of a slow request (p90)
LIGHTER_TAIL = 2.0  # ratio of the p99 with the cut-off parts to the p99 without them
SAME_MEDIAN = 1.1  # ratio of the medians of the cut-off parts and the rest
BINS = 500  # maximum number of bins
TOKENS_PER_BIN = 10  # at least this many tokens per bin; fewer tokens give fewer bins
FEWEST_MEANS = 10  # needed by MSER: 10 x 5 bins of time, or 10 batches
SLACK = 2.0  # accepted multiple of the minimum squared standard error
NEGLIGIBLE = 0.01  # share of the mean: a smaller standard error is not reduced further
DRIFT = 0.05  # share of the mean: a smaller change between the window's halves is not drift
CRAMER_VON_MISES_99 = 0.743  # 99% of ∫B² of a Brownian bridge B (Anderson & Darling 1952, table 1)


def steady_window(records: Records, discard_first_batch: bool = False) -> Window:
    """Detect the steady state of a trial's measured requests; `method` is the rule, or why no state is steady."""
    mask = measured(records, discard_first_batch)
    if not (mask & succeeded(records)).any():
        return _none("no request succeeded")
    if (score := queue_score(records, mask)) is not None and score >= GROWING:
        return _none("the queue grows: requests arrive faster than they are answered")
    lockstep = np.any(np.asarray(records.batch)[mask] != UNKNOWN)
    window = _batch_window(records, mask) if lockstep else _time_window(records, mask)
    if window.begin is None or window.end is None:
        return window
    reason = too_short(records, mask, window.end - window.begin) or quiet_part(records, mask, window)
    return _none(reason) if reason else window


def too_short(records: Records, mask: Mask, length: float) -> str | None:
    """Return why a window of this length may miss slow requests; None if it is long enough."""
    lasted = statistics(with_failures(e2el(records), ~succeeded(records))[mask], (90,))
    p90, longest = lasted["p90"], lasted["max"]
    if p90 is None or longest is None:
        return "more than 10% of the requests failed or were never sent, so that e2el has no p90"
    if length < LIFETIMES * p90:
        return f"the settled part of {length:.3g} s is shorter than {LIFETIMES} times the p90 of e2el, {p90:.3g} s"
    if length < longest:
        return f"the settled part of {length:.3g} s is shorter than the slowest request of {longest:.3g} s"
    return None


def quiet_part(records: Records, mask: Mask, window: Window) -> str | None:
    """Return a reason if a window is just the part of a run with the fewest slow requests, else None.

    A part that is cut off for being different should be slow as a whole, like a start-up. If its median equals the
    window's, but cutting it more than halves the p99, the cut has selected by chance.
    """
    latencies = with_failures(e2el(records), ~succeeded(records))
    inside = sent_within(records, mask, window)
    within, whole, cut = (statistics(latencies[part], (50, 99)) for part in (inside, mask, mask & ~inside))
    if within["p50"] is None or cut["p50"] is None or cut["p50"] > SAME_MEDIAN * within["p50"]:
        return None
    if within["p99"] is not None and (whole["p99"] is None or whole["p99"] > LIGHTER_TAIL * within["p99"]):
        return "the settled part excludes the slow requests of the run, and is not faster otherwise"
    return None


def _batch_window(records: Records, mask: Mask) -> Window:
    complete = batches(records, mask).whole()
    if np.isnan(complete.output_tokens).any():
        return _none("the server counted no tokens")
    if complete.latency.size < FEWEST_MEANS:
        return _none(f"{complete.latency.size} whole batches are fewer than {FEWEST_MEANS}")
    span = settled([complete.output_tokens / complete.latency], means_of=1, typical=1)
    if span is None:
        return _none("no steady state detected")
    last = span.stop - 1
    return Window(
        float(complete.begin[span.start]), float(complete.begin[last] + complete.latency[last]), "MSER over batches"
    )


def _time_window(records: Records, mask: Mask) -> Window:
    begin, end = turned_over(records, mask), float(np.nanmax(np.asarray(records.sent)[mask]))
    if begin is None or end <= begin:
        return _none("the last request was sent before the load had turned over once")
    tokens = int(tokens_per_bin(records, mask, begin, end - begin, 1)[0])
    bins = min(BINS, tokens // TOKENS_PER_BIN) // 5 * 5
    if bins < 5 * FEWEST_MEANS:
        return _none(f"{tokens} tokens under the full load are fewer than {5 * FEWEST_MEANS * TOKENS_PER_BIN}")
    width = (end - begin) / bins
    edges = begin + width * np.arange(bins + 1, dtype=np.float64)
    request = float(np.nanmedian(service_e2el(records)[mask]))
    load = in_flight(records, mask, edges)
    series = [tokens_per_bin(records, mask, begin, width, bins), load]
    span = settled(series, means_of=5, typical=round(request / width), load=load)
    if span is None:
        return _none("no steady state detected")
    return Window(float(edges[span.start]), float(edges[span.stop]), "MSER-5 over tokens/s and requests in flight")


def turned_over(records: Records, mask: Mask) -> float | None:
    """Return the time (s) when as many requests have ended as are typically in flight; None if that never happens.

    The typical number is the median over the sending time, from the first request to the last.
    """
    sent, ended = lifetimes(records, mask)
    if not sent.size or sent.max() <= sent.min():
        return None
    typical = int(np.median(in_flight(records, mask, np.linspace(sent.min(), sent.max(), BINS + 1))).round())
    return float(np.sort(ended)[max(typical, 1) - 1]) if typical <= ended.size else None


def in_flight(records: Records, mask: Mask, edges: Floats) -> Floats:
    """Return the mean number of requests in flight between successive edges. Shape (edges - 1,)."""
    sent, ended = lifetimes(records, mask)
    return np.diff(_time_since(sent, edges) - _time_since(ended, edges)) / np.diff(edges)


def lifetimes(records: Records, mask: Mask) -> tuple[Floats, Floats]:
    """Return the time of send and of the last token (or giving up) of each request, in s from the trial's start.

    A request that hangs is load: without it, an engine that stopped answering would look idle.
    """
    sent, last = as_floats(records.sent)[mask], token_times(records)[1][mask]
    ended = np.where(succeeded(records)[mask], np.nan, as_floats(records.ended)[mask])
    ended = np.where(np.isnan(ended), sent + last, ended)
    happened = ~np.isnan(ended)
    return sent[happened], ended[happened]


def _time_since(events: Floats, at: Floats) -> Floats:
    """Return Σ (t − event) over the events before t, for each t in `at`. Shape of `at`."""
    events = np.sort(events)
    before = np.searchsorted(events, at)
    sums = np.concatenate([[0.0], np.cumsum(events)])
    return np.asarray(before * at - sums[before], np.float64)


def settled(series: list[Floats], means_of: int, typical: int, load: Floats | None = None) -> slice | None:
    """Return the observations in which every series is in steady state, or None.

    Args:
        series: one or more series of the same length, in order of time.
        means_of: number of observations that MSER averages (5 for MSER-5).
        typical: number of observations during a typical request: closer observations are not independent.
        load: the series that falls when the load cools down; None if there is no such series.
    """
    for slack in (SLACK, 1.0):  # the strict rule only if the lenient one leaves a transient
        begin = max(mser(values, means_of, slack) for values in series)
        end = series[0].size if load is None else cooled_down(load, means_of, slack)
        enough = end - begin >= FEWEST_MEANS * means_of // 2
        if enough and all(stationary(values[begin:end], typical) for values in series):
            return slice(begin, end)
    return None


def cooled_down(load: Floats, means_of: int, slack: float) -> int:
    """Return the index where the load begins to cool down; the number of observations if it does not."""
    end = load.size - mser(load[::-1], means_of, slack)
    return end if end < load.size and load[end:].mean() < load[:end].mean() else load.size


def mser(values: Floats, means_of: int = 5, slack: float = 1.0) -> int:
    """Return the number of initial observations to discard, by the marginal standard error rule.

    With y the n means of `means_of` observations each, and ȳ_d the mean of those after d, the squared standard error is
    e(d) = Σ_{i>d} (y_i − ȳ_d)² / (n − d)². The strict rule (slack 1) takes the d ≤ n/2 with the smallest e. If there is
    no transient, that is just the last quiet stretch. So the lenient rule takes the first d with e(d) at most `slack`
    times the smallest, or with √e(d) at most NEGLIGIBLE of the mean.
    """
    n = values.size // means_of
    means = values[: n * means_of].reshape(n, means_of).mean(axis=1)
    rest = n - np.arange(n // 2 + 1)
    centred = means - means.mean()  # otherwise the difference of squares below would cancel
    mean_of_rest, square_of_rest = (np.cumsum(part[::-1])[::-1][: rest.size] / rest for part in (centred, centred**2))
    errors = np.maximum(square_of_rest - mean_of_rest**2, 0) / rest
    levels = means.mean() + mean_of_rest
    good = errors <= slack * errors.min()
    if slack > 1:
        good |= errors <= (NEGLIGIBLE * levels) ** 2
    return int(np.argmax(good)) * means_of


def stationary(values: Floats, typical: int) -> bool:
    """Return whether the mean drifts by at most DRIFT between the halves, or by no more than the series' noise.

    Heidelberger and Welch: B(k) = (S_k − k·ȳ) / √(n·p(0)) is a Brownian bridge if the mean is constant, S_k being the
    sum of the first k values, and ∫B² is then below CRAMER_VON_MISES_99 in 99 of 100 cases. p(0), the spectral density
    at 0, is estimated as m times the variance of the means of m values, where m is at least √n, and twice `typical` if
    that leaves eight means. Their variance is half the mean square of successive differences (von Neumann 1941), which
    a drift does not inflate. With so few means, a stationary series fails in 2 to 10 of 100 cases instead of 1.
    """
    n, mean = values.size, values.mean()
    halves = values[: n // 2].mean(), values[n // 2 :].mean()
    if abs(halves[1] - halves[0]) <= DRIFT * abs(mean):
        return True
    size = max(1, int(np.sqrt(n)), typical, min(2 * typical, n // 8))
    groups = n // size
    if groups < 4:
        return False
    means = values[n - groups * size :].reshape(groups, size).mean(axis=1)
    density = size * np.mean(np.diff(means) ** 2) / 2
    bridge = np.cumsum(values - mean)
    return bool(np.mean(bridge**2) <= CRAMER_VON_MISES_99 * n * density)


def _none(why: str) -> Window:
    return Window(None, None, f"none: {why}")
