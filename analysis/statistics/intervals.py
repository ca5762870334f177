"""Intervals of a point's figures, over its replicates: of these launches, and of a new launch.

The requests of a replicate are not independent: they share a queue. So the variance of a figure is estimated from
batches of successive requests, with the correlation between the batches ("batch means"). If that correlation is too
strong for the length of the replicates, there is no interval. A median, a mean or a throughput then has Student's t
over the launches' own figures. docs/metrics.md has the formulas and their sources, docs/measurements/coverage.md how
often the intervals hold.

Every function works along the last axes and may have any in front of them, so the coverage study runs the very
functions that summarise a run. NaN without a figure.
"""

import math
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

FloatArray = NDArray[np.float64]

CONFIDENCE = 0.95
BATCHES = (20, 10, 5)  # in a replicate: the variance is the largest of those that they give
FEWEST_REPLICATES = 2  # for an interval: a single one does not show how much they differ
FEWEST_BEYOND = 5  # requests beyond a quantile, of all replicates, for a figure
BEYOND = 40  # requests beyond a quantile for an interval, with three replicates
FEWEST_FOR_MEAN = 300  # requests for the interval of a mean: fewer may miss what is rare and slow
MOST_DEPENDENCE = 3.0  # requests for each independent one, beyond which there is no interval
FEWEST_IN_A_REPLICATE = 50  # requests for an interval of anything but a throughput
HIDDEN_VARIANCE, HIDDEN_DEPENDENCE = 30.0, 115.0  # requests of a replicate that hides as much of them as it shows
HIDE_MOST_VARIANCE, HIDE_MOST_DEPENDENCE = 100, 74  # requests of a replicate: fewer hide no more of them
NEW_LAUNCH_MARGIN = 1.1  # of an interval of a new launch: few launches, whose figures are not quite normal
FEWEST_FOR_STEADY_RATES = 5  # replicates for the interval of a steady state's throughput, by Student's t over them
DOUBTFUL = 2.2  # dependence from which replicates are trusted more than batches, if there are ENOUGH of them
ENOUGH = 5
LONGEST_DRAIN = 0.15  # of a replicate's duration, as a standard deviation, for the interval of a throughput
LAUNCHES_FOR_INTERVAL = 3  # whose own figures give an interval: two that are 1 % apart would give one of ±9 %
FEWEST_IN_ALL = 50  # requests for the interval of a throughput or a mean: fewer may miss what is slow once in fifty
FEWEST_CARRIERS = 5.0  # requests that make up the variance of the latencies: of fewer a mean is chance
SMALLEST_GROWTH = 1e-6  # of a share within a step, below which it counts as flat
RARE = 0.15  # of a replicate's total: a slowest request that adds less does not matter, however few are like it


class Interval(NamedTuple):
    """A figure with the ends of its two 95 % intervals; NaN where missing."""

    value: FloatArray
    low: FloatArray  # of these launches
    high: FloatArray
    new_low: FloatArray  # of a new launch
    new_high: FloatArray
    effective_n: FloatArray  # independent requests, or replicates of a figure that is not of requests
    by_launches: NDArray[np.bool_]  # the requests give no interval: the ends are from the launches' own figures


def t(freedom: FloatArray | float) -> FloatArray:
    """Student's t quantile at 0.975, from scipy.special: importing scipy.stats takes as long as all the rest."""
    return np.asarray(special.stdtrit(freedom, (1 + CONFIDENCE) / 2), np.float64)


class Estimate(NamedTuple):
    """A figure of a point with the ends of its two 95 % intervals, and the number of replicates behind it."""

    value: float
    low: float  # of these launches
    high: float
    n: int
    new_low: float = math.nan  # of a new launch
    new_high: float = math.nan
    by_launches: bool = False  # the ends are from the launches' own figures, since the requests give none

    @property
    def relative_half_width(self) -> float:
        """Half the interval of these launches over the value: 0.05 reads as ±5 %. NaN without one."""
        return (self.high - self.low) / 2 / abs(self.value) if self.value else math.nan


NO_ESTIMATE = Estimate(math.nan, math.nan, math.nan, 0)


class PooledRequests:
    """The values of the requests of a point's replicates, pooled.

    Args:
        values: in the order of the sends, +∞ for a request that failed, NaN after the last. Shape (..., R, n).
        launches: of each replicate, the number of its launch from 0; None: each is a launch of its own.
    """

    def __init__(self, values: FloatArray, launches: Sequence[int] | None = None) -> None:
        self.launches = launches
        self.present = ~np.isnan(values)
        self.values = values
        self.lengths = self.present.sum(-1)  # (..., R)
        self.replicates = values.shape[-2]
        self.n = self.lengths.sum(-1)  # (...)
        self.length = self.n / self.replicates  # mean
        flat = values.reshape(*values.shape[:-2], -1)
        self.order = np.argsort(flat, axis=-1)
        self.sorted = np.take_along_axis(flat, self.order, -1)

    @cached_property
    def dependence(self) -> FloatArray:
        """Requests for each independent one, by the requests' ranks: of no quantile in particular. Shape (...)."""
        parts, variance = self._rank_parts
        return self._factor(parts, variance, BATCHES[:1])

    @cached_property
    def dependence_within(self) -> FloatArray:
        """The dependence without differences between replicates, such as between launches. Shape (...)."""
        parts, variance = self._rank_parts
        return self._factor(parts - parts.mean(-1, keepdims=True), variance, BATCHES[:1])

    @cached_property
    def _rank_parts(self) -> tuple[FloatArray, FloatArray]:
        ranks = np.empty_like(self.sorted)
        np.put_along_axis(ranks, self.order, _middle_ranks(self.sorted), -1)
        return self._parts(np.where(self.present, ranks.reshape(self.values.shape), 0.0))

    @property
    def effective_n(self) -> FloatArray:
        """The number of independent requests that would say as much. Shape (...)."""
        return np.asarray(self.n / np.maximum(self.dependence, 1.0))

    def quantile(self, q: float) -> Interval:
        """The q-quantile of the pooled requests; its ends are order statistics."""
        value = _between(self.sorted, q * (self.n - 1.0), self.n)
        beyond = self.n * min(q, 1 - q)
        value = np.where((q <= 0.5) | (beyond >= FEWEST_BEYOND), value, np.nan)
        below = (self.values <= value[..., None, None]).astype(np.float64)
        enough = beyond >= BEYOND * _hidden_variance(self.length) * max(1, 3 / self.replicates)
        halves = (np.where(enough, each, np.nan) for each in self._halves(below, q * (1 - q)))
        figure = _whole(value, _ends(self.sorted, q, halves, self.n), self.effective_n)
        if q != 0.5:
            return figure
        return _by_launches(figure, _medians(self.values, self.lengths), self.launches, ~(enough & self._long_enough))

    def mean(self) -> Interval:
        """The mean of the requests; its interval is of the logarithm, since means of latencies are skewed."""
        values = np.where(self.present, self.values, 0.0)
        value = values.sum((-2, -1)) / self.n
        halves = (np.where(self.n >= FEWEST_FOR_MEAN, half, np.nan) for half in self._halves(values))
        figure = _relative(value, (half / value for half in halves), self.effective_n)
        few = (self.n >= FEWEST_IN_ALL) & ((self.n < FEWEST_FOR_MEAN) | ~self._long_enough)
        usual = few & ~_rests_on_few(self.values, self.n, value * self.length)
        return _by_launches(figure, values.sum(-1) / self.lengths, self.launches, usual)

    @property
    def _long_enough(self) -> NDArray[np.bool_]:
        return np.asarray(self.lengths.min(-1) >= FEWEST_IN_A_REPLICATE, np.bool_)

    def _halves(self, values: FloatArray, variance: float | None = None) -> tuple[FloatArray, FloatArray]:
        """Half of the intervals of the mean of the values (0 after the last); NaN where missing.

        `variance` is the variance of one value, if it is known.
        """
        parts, seen = self._parts(values)
        factor = np.maximum(self._factor(parts, seen, BATCHES), 1.0) * _hidden_variance(self.length)
        half = t(BATCHES[0] * self.replicates - 1) * np.sqrt(factor * (seen if variance is None else variance) / self.n)
        hidden = 1 + HIDDEN_DEPENDENCE / np.maximum(self.length, HIDE_MOST_DEPENDENCE)
        half, new = _at_least(half, parts.sum(-1), self.launches, self.dependence * hidden > DOUBTFUL)
        sound = self._long_enough & (self.dependence * hidden < min(MOST_DEPENDENCE, self.replicates))
        sound_new = self._long_enough & (self.dependence_within * hidden < MOST_DEPENDENCE)
        return np.where(sound, half, np.nan), np.where(sound_new, new, np.nan)

    def _parts(self, values: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Each batch's part of the mean's deviation, about the mean of all, and the variance of one value.

        Shapes (..., R, B) and (...). The values are 0 after the last.
        """
        centre = values.sum((-2, -1)) / self.n
        deviations = values - centre[..., None, None]
        if not self.present.all():
            deviations[~self.present] = 0.0
        variance = np.einsum("...ij,...ij->...", deviations, deviations) / self.n
        return _batch_sums(deviations, self.lengths) / self.n[..., None, None], variance

    def _factor(self, parts: FloatArray, variance: FloatArray, batches: Sequence[int]) -> FloatArray:
        """Variance of the pooled mean over its variance for independent values, the largest over numbers of batches.

        The means of successive batches correlate as ρ, ρ², ρ³, …: an autoregression of order 1, as in ASAP3 (Steiger,
        Lada, Wilson et al., ACM TOMACS 15, 2005). Shape (...).
        """
        largest = np.zeros_like(variance)
        for count in batches:
            joined = parts.reshape(*parts.shape[:-1], count, -1).sum(-1)
            with np.errstate(invalid="ignore", divide="ignore"):
                largest = np.fmax(largest, _correlated(joined) * self.n / variance)
        return np.where(variance > 0, largest, 1.0)


class PooledGaps(PooledRequests):
    """The gaps of the requests of a point's replicates, pooled.

    The unit is the request, since its gaps are alike: a gap's share of the information is estimated from the variance
    between requests of the share of gaps that are not above a quantile.

    Args:
        gaps: of the requests that have any, in the order of the sends, NaN after a request's last and after the last
            request. Shape (..., R, n, m).
        launches: as of PooledRequests.
    """

    def __init__(self, gaps: FloatArray, launches: Sequence[int] | None = None) -> None:
        self.gaps, self.sizes = gaps, (~np.isnan(gaps)).sum(-1)
        with np.errstate(invalid="ignore"):
            super().__init__(np.nansum(gaps, -1) / self.sizes, launches)
        self.total = self.sizes.sum((-2, -1))
        self.sorted_gaps = np.sort(gaps.reshape(*gaps.shape[:-3], -1), axis=-1)

    def quantile(self, q: float) -> Interval:
        """The q-quantile of the pooled gaps; its ends are order statistics."""
        value = _between(self.sorted_gaps, q * (self.total - 1.0), self.total)
        below = (self.gaps <= value[..., None, None, None]).sum(-1)
        excess = (below - q * self.sizes) * (self.n / self.total)[..., None, None]  # their mean is the gaps'
        variance = (excess**2).sum((-2, -1)) / self.n
        with np.errstate(divide="ignore"):
            independent = np.minimum(self.n * q * (1 - q) / variance, self.total)
        beyond = independent * min(q, 1 - q)
        value = np.where((q <= 0.5) | (beyond >= FEWEST_BEYOND), value, np.nan)
        enough = beyond >= BEYOND * _hidden_variance(self.length) * max(1, 3 / self.replicates)
        halves = (np.where(enough, each, np.nan) for each in self._halves(excess))
        figure = _whole(value, _ends(self.sorted_gaps, q, halves, self.total), self.effective_n)
        if q != 0.5:
            return figure
        gaps = self.gaps.reshape(*self.gaps.shape[:-2], -1)
        return _by_launches(figure, _medians(gaps, self.sizes.sum(-1)), self.launches, ~(enough & self._long_enough))


def quantile_alone(sample: FloatArray, q: float) -> Interval:
    """The q-quantile of a point's values, if they are too many for an interval. Shape (1,)."""
    quantile, nothing = np.array([np.quantile(sample, q)], np.float64), np.full(1, np.nan)
    return _whole(quantile, [nothing] * 4, nothing)


def _medians(samples: FloatArray, lengths: NDArray[np.int64]) -> FloatArray:
    """The median of each replicate. Shape (..., R)."""
    return _between(np.sort(samples, -1), np.asarray(0.5 * (lengths - 1), np.float64), lengths)


def _by_launches(
    figure: Interval, own: FloatArray, launches: Sequence[int] | None, usable: NDArray[np.bool_]
) -> Interval:
    """A figure with intervals from the launches' own figures if its requests are too few.

    Student's t over the logarithms of the replicates' own figures, and over launches, with NEW_LAUNCH_MARGIN, about the
    figure of all requests. A median of few requests is hardly biased, unlike a quantile near the end. There is no
    interval if the own figures (shape (..., R)) are all equal, or one is missing, or where they are not `usable`.
    """
    count = own.shape[-1]
    missing = np.asarray(np.isnan(figure.low) & np.isfinite(figure.value) & usable, np.bool_)
    if count < LAUNCHES_FOR_INTERVAL or not missing.any():
        return figure
    logs = np.log(np.where((own > 0) & np.isfinite(own), own, np.nan))
    parts = (logs - logs.mean(-1, keepdims=True)) / count
    half = t(count - 1.0) * _error(parts) * NEW_LAUNCH_MARGIN
    missing &= half > 0
    members = _members(launches, count)
    new = np.full_like(half, np.nan)
    if members.shape[-1] >= LAUNCHES_FOR_INTERVAL:
        new = np.maximum(half, t(members.shape[-1] - 1.0) * _error(parts @ members) * NEW_LAUNCH_MARGIN)
    ends = _relative(figure.value, (half, new), figure.effective_n)
    low, high, new_low, new_high = (np.where(missing, *pair) for pair in zip(ends[1:5], figure[1:5], strict=True))
    return Interval(figure.value, low, high, new_low, new_high, figure.effective_n, missing)


def _members(launches: Sequence[int] | None, replicates: int) -> FloatArray:
    """The launch of each replicate, as ones: a sum over replicates becomes one over launches. Shape (R, L)."""
    return np.eye(replicates) if launches is None else np.eye(max(launches) + 1)[list(launches)]


def _rests_on_few(latencies: FloatArray, n: NDArray[np.int64], total: FloatArray) -> NDArray[np.bool_]:
    """Whether a few requests make most of the variance, and the slowest adds much to a replicate's total.

    Then the next replicate may have one more slow request, or none, and so few do not show how often. Shape (...).
    """
    flat = latencies.reshape(*latencies.shape[:-2], -1)
    with np.errstate(invalid="ignore", divide="ignore"):
        squares = (flat - (np.nansum(flat, -1) / n)[..., None]) ** 2
        carriers = np.nansum(squares, -1) ** 2 / np.nansum(squares**2, -1)
        excess = np.fmax.reduce(flat, -1) - _medians(flat, n)
    return np.asarray((carriers < FEWEST_CARRIERS) & (excess > RARE * total), np.bool_)


def _ends(ordered: FloatArray, q: float, halves: Iterable[FloatArray], n: NDArray[np.int64]) -> Iterable[FloatArray]:
    """The ends of a quantile's intervals: the order statistics at half of an interval of its share from it."""
    return (_between(ordered, (q + sign * half) * n - 0.5, n) for half in halves for sign in (-1, 1))


def _hidden_variance(length: FloatArray) -> FloatArray:
    """The factor on the variance of short replicates, where dependence as long as a replicate does not show."""
    return np.asarray(1 + HIDDEN_VARIANCE / np.maximum(length, HIDE_MOST_VARIANCE), np.float64)


def _batch_sums(values: FloatArray, lengths: NDArray[np.int64]) -> FloatArray:
    """Sums over BATCHES[0] parts of each replicate, 0 after its last value. Shape (..., R, B)."""
    parts = np.arange(BATCHES[0] + 1)
    longest = values.shape[-1]
    if longest >= BATCHES[0] and (lengths == longest).all():
        return np.asarray(np.add.reduceat(values, longest * parts[:-1] // BATCHES[0], axis=-1), np.float64)
    sums = np.zeros((*values.shape[:-1], longest + 1))
    np.cumsum(values, -1, out=sums[..., 1:])
    return np.diff(np.take_along_axis(sums, lengths[..., None] * parts // BATCHES[0], -1), axis=-1)


def _correlated(parts: FloatArray) -> FloatArray:
    """Variance of the sum of the batches' parts of a mean, shape (..., R, B); successive parts are correlated."""
    replicates, count = parts.shape[-2:]
    total = replicates * count
    variance = (parts**2).sum((-2, -1)) / (total - 1)  # of one
    product = (parts[..., 1:] * parts[..., :-1]).sum((-2, -1)) / (replicates * (count - 1))
    rho = np.clip(product / np.maximum(variance, np.finfo(float).tiny), 0, 0.95)[..., None]
    lags = np.arange(1, count)
    factor = 1 + 2 * ((1 - lags / count) * rho**lags).sum(-1)
    return np.asarray(variance * total * factor, np.float64)


def _at_least(
    half: FloatArray, parts: FloatArray, launches: Sequence[int] | None, doubtful: NDArray[np.bool_] | bool
) -> tuple[FloatArray, FloatArray]:
    """Half of the intervals of these launches and of a new one: no less than the replicates and launches differ.

    Args:
        half: from the batches. Shape (...).
        parts: what each replicate adds to the deviation of the figure: their sum is 0. Shape (..., R).
        launches: of each replicate; None: each its own.
        doubtful: where the replicates are trusted more than the batches.
    """
    nothing = np.full_like(half, np.nan)
    count = parts.shape[-1]
    if count < FEWEST_REPLICATES:
        return nothing, nothing
    half = np.maximum(half, special.ndtri((1 + CONFIDENCE) / 2) * _error(parts))
    if count >= ENOUGH:
        half = np.where(doubtful, np.maximum(half, t(count - 1.0) * _error(parts)), half)
    members = _members(launches, count)
    if members.shape[-1] < 2:
        return half, nothing
    new = t(members.shape[-1] - 1.0) * _error(parts @ members) * NEW_LAUNCH_MARGIN
    return half, np.maximum(half, new)


def _error(parts: FloatArray) -> FloatArray:
    """Standard error of a sum from the independent parts of its deviation."""
    count = parts.shape[-1]
    return np.asarray(np.sqrt((parts**2).sum(-1) * count / (count - 1)))


def throughput(
    counts: FloatArray, sent: FloatArray, latency: FloatArray, launches: Sequence[int] | None = None
) -> Interval:
    """Σ counts / Σ durations of the replicates, with an interval from batches of successive completions.

    The residual of a batch is its count − throughput × its time (a ratio estimator: Cochran, Sampling Techniques, 3rd
    ed., §6.4). It is taken about the mean of the batches at the same position in the replicates, since all of them
    start and drain. The interval is on the logarithm. `counts` are of each request in the order of the sends, tokens or
    1, NaN after the last; `latency` is from then to its end, s. Shape of all three (..., R, n).
    """
    replicates, lengths = counts.shape[-2], (~np.isnan(counts)).sum(-1)
    order = np.argsort(sent + latency, axis=-1)
    ends, done = (np.take_along_axis(each, order, -1) for each in (sent + latency, counts))
    sums = np.zeros((*counts.shape[:-1], counts.shape[-1] + 1))
    np.nancumsum(done, -1, out=sums[..., 1:])
    start = sent[..., :1]
    times = np.concatenate([start, ends], -1)
    duration = np.take_along_axis(times, lengths[..., None], -1)[..., 0] - start[..., 0]
    total, seconds = sums[..., -1].sum(-1), duration.sum(-1)
    value, drain = total / seconds, _drain(sent, latency, lengths) * (replicates / seconds) ** 2
    variance = np.zeros_like(value)
    for count in BATCHES[:2] if replicates >= FEWEST_REPLICATES else ():
        edges = lengths[..., None] * np.arange(count + 1) // count
        took, output = (np.diff(np.take_along_axis(each, edges, -1), axis=-1) for each in (times, sums))
        residual = (output - value[..., None, None] * took) / total[..., None, None]
        residual = residual - residual.mean(-2, keepdims=True)
        freedom = (replicates - 1) * count
        variance = np.fmax(variance, _correlated(residual) * (replicates * count - 1) / freedom)
    variance = variance * _hidden_variance(lengths.mean(-1))
    half = t(max(replicates - 1.0, 1) * BATCHES[0]) * np.sqrt(np.fmax(variance, drain / replicates))
    parts = (sums[..., -1] - duration * value[..., None]) / total[..., None]
    halves = _at_least(half, parts, launches, False)
    n = lengths.sum(-1)
    usual = (n >= FEWEST_IN_ALL) & (drain < LONGEST_DRAIN**2) & ~_rests_on_few(latency, n, seconds / replicates)
    enough = usual & (lengths.min(-1) >= BATCHES[0])
    figure = _relative(value, (np.where(enough, half, np.nan) for half in halves), n * 1.0)
    return _by_launches(figure, sums[..., -1] / duration, launches, usual)


def _drain(sent: FloatArray, latency: FloatArray, lengths: NDArray[np.int64]) -> FloatArray:
    """Variance of the time from a replicate's last send to its end, s².

    The drain ends with the last of c requests in flight. The position of slow ones is chance, which few replicates do
    not show. The rest of an answer in flight has the distribution ∫ (1 − F) / mean (renewal theory), F being the
    distribution of all latencies; c is the mean number in flight at the last send. Shape (...).
    """
    last = np.take_along_axis(sent, lengths[..., None] - 1, -1)
    flying = (sent + latency > last).sum((-2, -1)) / sent.shape[-2]
    flat = np.sort(latency.reshape(*latency.shape[:-2], -1), -1)
    n = lengths.sum(-1)[..., None]
    places = np.arange(flat.shape[-1])
    ends = np.where(places < n, flat, np.take_along_axis(flat, n - 1, -1))
    steps = np.diff(ends, axis=-1, prepend=0.0)
    remaining = np.clip(1 - places / n, 0, 1) * steps
    finished = np.clip(np.cumsum(remaining, -1) / remaining.sum(-1, keepdims=True), 0, 1)
    c = np.maximum(flying, 1.0)[..., None]
    # The share that has ended grows linearly within a step, and F^c of the slowest of c is integrated over it exactly:
    # where latencies are alike, the first step is nearly all of the time.
    before = np.concatenate([np.zeros_like(finished[..., :1]), finished[..., :-1]], -1)
    growth = np.maximum(finished - before, SMALLEST_GROWTH)
    shares, squares = ((finished**power - before**power) / (power * growth) for power in (c + 1, c + 2))
    later = (finished ** (c + 1) - squares) / ((c + 1) * growth)  # the part of it in a step's later half
    steep = finished - before > SMALLEST_GROWTH
    shares, later = (np.where(steep, *pair) for pair in ((shares, finished**c), (later, finished**c / 2)))
    mean = (steps * (1 - shares)).sum(-1)
    square = 2 * (steps * ((ends - steps) * (1 - shares) + steps * (0.5 - later))).sum(-1)
    return np.asarray(np.maximum(square - mean**2, 0))


def over_replicates(
    values: FloatArray, point: NDArray[np.int64], launch: NDArray[np.int64], count: int, fewest: int = FEWEST_REPLICATES
) -> Interval:
    """The mean of a figure with one value per replicate, with Student's t over replicates, and over launches.

    Where all of a point are positive the intervals are of the logarithm; in no case do they go below zero. `values` are
    of all replicates of all `count` points; NaN is left out. These launches have no interval of under `fewest`.
    """
    there = ~np.isnan(values)
    values, point, launch = values[there], point[there], launch[there]
    n = np.bincount(point, minlength=count).astype(np.float64)
    smallest = np.full(count, np.inf)
    np.minimum.at(smallest, point, values)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = np.bincount(point, values, count) / n
        parts = (values - value[point]) / n[point]
        half, new = _over(parts, point, launch, count)
        half = np.where(n >= fewest, half, np.nan)
        scale = np.where(smallest > 0, value, 1.0)
        relative = _relative(value, (half / scale, new / scale), n)
    ends = (end for each in (half, new) for end in (np.maximum(value - each, 0), value + each))
    plain = _whole(value, ends, n)
    pairs = zip(relative[1:5], plain[1:5], strict=True)
    low, high, new_low, new_high = (np.where(smallest > 0, *pair) for pair in pairs)
    return Interval(plain.value, low, high, new_low, new_high, n, plain.by_launches)


def without_intervals(figure: Interval, where: NDArray[np.bool_] | bool = True) -> Interval:
    """A figure without its intervals, or without the intervals of some points."""
    low, high, new_low, new_high = (np.where(where, np.nan, end) for end in figure[1:5])
    return Interval(
        figure.value, low, high, new_low, new_high, figure.effective_n, figure.by_launches & ~np.asarray(where)
    )


def _over(
    parts: FloatArray, point: NDArray[np.int64], launch: NDArray[np.int64], count: int
) -> tuple[FloatArray, FloatArray]:
    """Half of the intervals of these launches and of a new one, by Student's t over replicates and over launches."""
    errors, n = _errors(parts, point, count)
    half = t(np.where(n >= FEWEST_REPLICATES, n - 1, np.nan)) * errors
    pairs, member = np.unique(np.stack([point, launch]), axis=1, return_inverse=True)
    of_launches = np.asarray(np.bincount(member.ravel(), parts, pairs.shape[1]), np.float64)
    errors, launches = _errors(of_launches, pairs[0], count)
    new = np.fmax(half, t(np.where(launches > 1, launches - 1, np.nan)) * errors)
    return half, np.where(launches > 1, new, np.nan)


def _errors(parts: FloatArray, point: NDArray[Any], count: int) -> tuple[FloatArray, FloatArray]:
    """`_error` of each point's parts, and their number."""
    n = np.bincount(point, minlength=count).astype(np.float64)
    return np.asarray(np.sqrt(np.bincount(point, parts**2, count) * n / (n - 1)), np.float64), n


def _relative(value: FloatArray, halves: Iterable[FloatArray], effective_n: FloatArray) -> Interval:
    """A figure with intervals of its logarithm, of these halves."""
    return _whole(value, (value * np.exp(sign * half) for half in halves for sign in (-1, 1)), effective_n)


def _whole(value: FloatArray, ends: Iterable[FloatArray], effective_n: FloatArray) -> Interval:
    """Intervals with both of their ends or none; `ends` are for these launches, then for a new launch."""
    low, high, new_low, new_high = ends
    shown = np.isfinite(value)
    these, new = (shown & np.isfinite(begin) & np.isfinite(end) for begin, end in ((low, high), (new_low, new_high)))
    low, high = np.where(these, low, np.nan), np.where(these, high, np.nan)
    new_low, new_high = np.where(new, new_low, np.nan), np.where(new, new_high, np.nan)
    by_launches = np.zeros(np.shape(value), np.bool_)
    return Interval(np.where(shown, value, np.nan), low, high, new_low, new_high, effective_n, by_launches)


def _between(ordered: FloatArray, place: FloatArray, n: NDArray[np.int64]) -> FloatArray:
    """The value at a place (from 0) between two of n order statistics, linearly; NaN outside them. Shape (...).

    It is infinite if the upper one is.
    """
    exists = (place >= 0) & (place <= n - 1)
    place = np.where(exists, place, 0.0)
    lower = np.floor(place + 1e-9)
    share = np.clip(place - lower, 0, 1)
    low, high = (
        np.take_along_axis(ordered, at.astype(np.int64)[..., None], -1)[..., 0] for at in (lower, lower + (share > 0))
    )
    with np.errstate(invalid="ignore"):
        return np.where(exists, np.where(np.isfinite(high), low + share * (high - low), high), np.nan)


def _middle_ranks(ordered: FloatArray) -> FloatArray:
    """The rank of each sorted value; equal values share their middle rank, or their order would look like a trend."""
    places = np.broadcast_to(np.arange(ordered.shape[-1], dtype=np.float64), ordered.shape)
    equal = ordered[..., 1:] == ordered[..., :-1]
    if not equal.any():
        return places
    begins, ends = np.ones(ordered.shape, np.bool_), np.ones(ordered.shape, np.bool_)
    begins[..., 1:] = ends[..., :-1] = ~equal
    lowest = np.maximum.accumulate(np.where(begins, places, 0), -1)
    highest = np.minimum.accumulate(np.where(ends, places, np.inf)[..., ::-1], -1)[..., ::-1]
    return (lowest + highest) / 2
