"""Computes intervals of a point's values over its replicates, for these launches and for a new launch.

A replicate's requests are not independent, since they share a queue. So a value's variance is estimated from batches of
successive requests, including the correlation between batches ("batch means"). If the correlation is too strong for the
replicates' length, the requests give no interval. The interval of a median, a mean or a throughput then comes from
Student's t over the launches' values. docs/metrics.md has the formulas and their sources, and
docs/measurements/coverage.md shows how often the intervals hold.

Every function works along the last axes and accepts any axes before them, so the coverage study runs the same functions
that summarise a run. Missing values are NaN.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from sweep.numbers.quantile import between

FloatArray = NDArray[np.float64]

CONFIDENCE = 0.95
BATCHES = (20, 10, 5)  # batches per replicate; the largest of the resulting variances is used
FEWEST_REPLICATES = 2  # minimum replicates for an interval, since one does not show how much they differ
FEWEST_BEYOND = 5  # requests beyond a quantile, over all replicates, that its value needs
BEYOND = 40  # requests beyond a quantile that its interval needs, with three replicates
FEWEST_FOR_MEAN = 1000  # requests that the interval of a mean needs, since fewer may contain no rare slow request
MOST_DEPENDENCE = 3.0  # requests per independent request; above it there is no interval
FEWEST_IN_A_REPLICATE = 50  # requests that any interval needs, except a throughput's
HIDDEN_VARIANCE, HIDDEN_DEPENDENCE = 30.0, 115.0  # length (requests) at which a replicate hides as much as it shows
HIDE_MOST_VARIANCE, HIDE_MOST_DEPENDENCE = 100, 74  # requests in a replicate; fewer do not hide more
NEW_LAUNCH_MARGIN = 1.1  # factor on an interval of a new launch, since a few launches' values are not quite normal
FEWEST_FOR_STEADY_RATES = 5  # replicates that a steady throughput's interval needs (Student's t over them)
DOUBTFUL = 2.2  # dependence above which replicates are trusted more than batches, if there are ENOUGH replicates
ENOUGH = 5
LONGEST_DRAIN = 0.15  # standard deviation / a replicate's duration, for the interval of a throughput
LAUNCHES_FOR_INTERVAL = 3  # minimum launches for an interval from their values; two that are 1% apart would give ±9%
FEWEST_IN_ALL = 50  # requests for a throughput's interval, since fewer may miss one slow in fifty
FEWEST_CARRIERS = 5.0  # requests that make up the latencies' variance; with fewer a mean is chance
CARRYING_SHARE = 1 / 7.5  # of the batches, which must make up the variance between them, within the following bounds
FEWEST_CARRYING_BATCHES, ENOUGH_CARRYING_BATCHES = 5.0, 8.0
LEAST_INDEX_OF_RATE, LEAST_INDEX_OF_MEAN = 3.0, 2.0  # of a power law, for an interval
TAILS, FEWEST_OF_A_TAIL = (0.05, 0.01), 8  # shares of the requests, and requests
SOON_AFTER = 0.002  # median latencies after an answer's end, within which a user sends again
CERTAIN_CORRELATION = 1.5  # standard errors of a correlation between batches, from which it is taken as real
TWO_MARGIN = 1.3  # factor on the interval of two replicates, which cannot show what outlasts them
LEAST_CARRYING_SHARE = 0.01  # least share of the requests that must make up the variance, if the slowest matters
SHARE_OF_INFINITE_VARIANCE = 0.004  # share of the requests that make up the variance, below which it may be infinite
SMALLEST_GROWTH = 1e-6  # of a share within a step; less is treated as flat
RARE = 0.15  # share of a replicate's total; a slowest request that adds less never matters


class Interval(NamedTuple):
    """A value with the ends of its two 95% intervals. Missing values are NaN."""

    value: FloatArray
    low: FloatArray  # of these launches
    high: FloatArray
    new_low: FloatArray  # of a new launch
    new_high: FloatArray
    effective_n: FloatArray  # independent requests; or replicates, if the value does not come from requests
    by_launches: NDArray[np.bool_]  # whether the ends come from the launches' values, since the requests give none


def t(freedom: FloatArray | float) -> FloatArray:
    """Return Student's t quantile at 0.975, from scipy.special, since scipy.stats is slow to import."""
    return np.asarray(special.stdtrit(freedom, (1 + CONFIDENCE) / 2), np.float64)


class Estimate(NamedTuple):
    """A point's value with the ends of its two 95% intervals and its number of replicates."""

    value: float
    low: float  # of these launches
    high: float
    n: int
    new_low: float = math.nan  # of a new launch
    new_high: float = math.nan
    by_launches: bool = False  # whether the ends come from the launches' values, since the requests give none


NO_ESTIMATE = Estimate(math.nan, math.nan, math.nan, 0)


class PooledRequests:
    """The pooled values of the requests in a point's replicates.

    Args:
        values: in order of sending, +∞ for a failed request, NaN after the last. Shape (..., R, n).
        launches: each replicate's launch number from 0; None: each replicate was launched separately.
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
        """The number of requests per independent request, from ranks, so not for a particular quantile. Shape (...)."""
        parts, variance = self._rank_parts
        return self._factor(parts, variance, BATCHES[:1])

    @cached_property
    def dependence_within(self) -> FloatArray:
        """Like `dependence`, but without differences between replicates (e.g. between launches). Shape (...)."""
        parts, variance = self._rank_parts
        return self._factor(parts - parts.mean(-1, keepdims=True), variance, BATCHES[:1])

    @cached_property
    def _rank_parts(self) -> tuple[FloatArray, FloatArray]:
        ranks = np.empty_like(self.sorted)
        np.put_along_axis(ranks, self.order, _middle_ranks(self.sorted), -1)
        return self._parts(np.where(self.present, ranks.reshape(self.values.shape), 0.0))

    @property
    def effective_n(self) -> FloatArray:
        """The effective sample size: the equivalent number of independent requests. Shape (...)."""
        return np.asarray(self.n / np.maximum(self.dependence, 1.0))

    def quantile(self, q: float) -> Interval:
        """Return the q-quantile of the pooled requests. Its ends are order statistics."""
        value = _between(self.sorted, q * (self.n - 1.0), self.n, between)
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
        """Return the requests' mean. It has a logarithmic interval, since means of latencies are skewed."""
        values = np.where(self.present, self.values, 0.0)
        value = values.sum((-2, -1)) / self.n
        enough = (self.n >= FEWEST_FOR_MEAN) & ~_rests_on_few(self.values, self.n, value * self.length)
        enough &= _tail_index(self.sorted) >= LEAST_INDEX_OF_MEAN
        halves = (np.where(enough, half, np.nan) for half in self._halves(values))
        divisor = np.where(value == 0, np.nan, value)
        return _relative(value, (half / divisor for half in halves), self.effective_n)

    @property
    def _long_enough(self) -> NDArray[np.bool_]:
        return np.asarray(self.lengths.min(-1) >= FEWEST_IN_A_REPLICATE, np.bool_)

    def _halves(self, values: FloatArray, variance: float | None = None) -> tuple[FloatArray, FloatArray]:
        """Return half the intervals of the mean of the values (0 after the last); NaN if missing.

        `variance` is the variance of one value, if it is known.
        """
        parts, seen = self._parts(values)
        factor = np.maximum(self._factor(parts, seen, BATCHES), 1.0) * _hidden_variance(self.length)
        half = t(BATCHES[0] * self.replicates - 1) * np.sqrt(factor * (seen if variance is None else variance) / self.n)
        hidden = 1 + HIDDEN_DEPENDENCE / np.maximum(self.length, HIDE_MOST_DEPENDENCE)
        half, new = _at_least(half, parts.sum(-1), self.launches, self.dependence * hidden > DOUBTFUL)
        sound = self._long_enough & (self.dependence * hidden < min(MOST_DEPENDENCE, self.replicates))
        sound &= _many_carry(parts)
        sound_new = self._long_enough & (self.dependence_within * hidden < MOST_DEPENDENCE)
        sound_new &= _many_carry(parts - parts.mean(-1, keepdims=True))
        return np.where(sound, half, np.nan), np.where(sound_new, new, np.nan)

    def _parts(self, values: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return each batch's part of the mean's deviation from the mean of all, and the variance of one value.

        Shapes (..., R, B) and (...). The values are 0 after the last.
        """
        centre = values.sum((-2, -1)) / self.n
        deviations = values - centre[..., None, None]
        if not self.present.all():
            deviations[~self.present] = 0.0
        variance = np.einsum("...ij,...ij->...", deviations, deviations) / self.n
        return _batch_sums(deviations, self.lengths) / self.n[..., None, None], variance

    def _factor(self, parts: FloatArray, variance: FloatArray, batches: Sequence[int]) -> FloatArray:
        """Return the pooled mean's variance relative to independent values: the largest over the BATCHES tried.

        The means of successive batches correlate as ρ, ρ², ρ³, …, i.e. an autoregression of order 1, as in ASAP3
        (Steiger, Lada, Wilson et al., ACM TOMACS 15, 2005). Shape (...).
        """
        largest = np.zeros_like(variance)
        for count in batches:
            joined = parts.reshape(*parts.shape[:-1], count, -1).sum(-1)
            with np.errstate(invalid="ignore", divide="ignore"):
                largest = np.fmax(largest, _correlated(joined) * self.n / variance)
        return np.where(variance > 0, largest, 1.0)


class PooledGaps(PooledRequests):
    """The pooled gaps of the requests in a point's replicates.

    The unit is the request, since a request's gaps are similar. A gap's information is estimated from the variance,
    between requests, of the share of gaps at or below a quantile.

    Args:
        gaps: of the requests with gaps, in order of sending, NaN after a request's last gap and after the last
            request. Shape (..., R, n, m).
        launches: as in PooledRequests.
    """

    def __init__(self, gaps: FloatArray, launches: Sequence[int] | None = None) -> None:
        self.gaps, self.sizes = gaps, (~np.isnan(gaps)).sum(-1)
        with np.errstate(invalid="ignore"):
            super().__init__(np.nansum(gaps, -1) / self.sizes, launches)
        self.total = self.sizes.sum((-2, -1))
        self.sorted_gaps = np.sort(gaps.reshape(*gaps.shape[:-3], -1), axis=-1)

    def quantile(self, q: float) -> Interval:
        """Return the q-quantile of the pooled gaps. Its ends are order statistics."""
        value = _between(self.sorted_gaps, q * (self.total - 1.0), self.total, between)
        below = (self.gaps <= value[..., None, None, None]).sum(-1)
        excess = (below - q * self.sizes) * (self.n / self.total)[..., None, None]  # their mean is the mean of the gaps
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
    """Return the q-quantile of a point's values, without an interval, if they are too many for one. Shape (1,)."""
    quantile, nothing = np.array([np.quantile(sample, q)], np.float64), np.full(1, np.nan)
    return _whole(quantile, [nothing] * 4, nothing)


def _medians(samples: FloatArray, lengths: NDArray[np.int64]) -> FloatArray:
    """Return the median of each replicate. Shape (..., R)."""
    return _between(np.sort(samples, -1), np.asarray(0.5 * (lengths - 1), np.float64), lengths)


def _by_launches(
    figure: Interval, own: FloatArray, launches: Sequence[int] | None, usable: NDArray[np.bool_]
) -> Interval:
    """Add intervals that come from the launches' values to values that have too few requests.

    They use Student's t over the logarithms of the replicates' values, and over launches with NEW_LAUNCH_MARGIN, around
    the value of all requests. A median of few requests is hardly biased, unlike an extreme quantile. There is no
    interval if the replicates' values (`own`, shape (..., R)) are all equal, one is missing, or they are not `usable`.
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
    """Return the indicator matrix that turns sums over replicates into sums over launches. Shape (R, L)."""
    return np.eye(replicates) if launches is None else np.eye(max(launches) + 1)[list(launches)]


def _rests_on_few(latencies: FloatArray, n: NDArray[np.int64], total: FloatArray) -> NDArray[np.bool_]:
    """Return whether few requests cause most of the variance, and the slowest request adds much to a replicate's total.

    Then the next replicate may have one more slow request or none, and a few do not show how frequent they are. Shape
    (...).
    """
    flat = latencies.reshape(*latencies.shape[:-2], -1)
    with np.errstate(invalid="ignore", divide="ignore"):
        squares = (flat - (np.nansum(flat, -1) / n)[..., None]) ** 2
        carriers = np.nansum(squares, -1) ** 2 / np.nansum(squares**2, -1)
        excess = np.fmax.reduce(flat, -1) - _medians(flat, n)
    few = (carriers < np.maximum(FEWEST_CARRIERS, n * LEAST_CARRYING_SHARE)) & (excess > RARE * total)
    return np.asarray(few | (carriers < n * SHARE_OF_INFINITE_VARIANCE), np.bool_)


def _ends(ordered: FloatArray, q: float, halves: Iterable[FloatArray], n: NDArray[np.int64]) -> Iterable[FloatArray]:
    """Return the ends of a quantile's intervals: the order statistics at `q` plus or minus `halves`."""
    return (_between(ordered, (q + sign * half) * n - 0.5, n) for half in halves for sign in (-1, 1))


def _hidden_variance(length: FloatArray) -> FloatArray:
    """Return the factor that raises the variance of short replicates: they hide dependence as long as themselves."""
    return np.asarray(1 + HIDDEN_VARIANCE / np.maximum(length, HIDE_MOST_VARIANCE), np.float64)


def _batch_sums(values: FloatArray, lengths: NDArray[np.int64]) -> FloatArray:
    """Return sums over BATCHES[0] parts of each replicate; values after its last are 0. Shape (..., R, B)."""
    parts = np.arange(BATCHES[0] + 1)
    longest = values.shape[-1]
    if longest >= BATCHES[0] and (lengths == longest).all():
        return np.asarray(np.add.reduceat(values, longest * parts[:-1] // BATCHES[0], axis=-1), np.float64)
    sums = np.zeros((*values.shape[:-1], longest + 1))
    np.cumsum(values, -1, out=sums[..., 1:])
    return np.diff(np.take_along_axis(sums, lengths[..., None] * parts // BATCHES[0], -1), axis=-1)


def _carriers(parts: FloatArray) -> FloatArray:
    """Return how many equal deviations would have the parts' fourth moment (shape (..., R, B)), ∞ without any."""
    squares = parts**2
    with np.errstate(invalid="ignore", divide="ignore"):
        carriers = squares.sum((-2, -1)) ** 2 / (squares**2).sum((-2, -1))
    return np.asarray(np.where(np.isnan(carriers), np.inf, carriers))


def _many_carry(parts: FloatArray) -> NDArray[np.bool_]:
    """Return whether enough batches make up their variance; if not, e.g. how often a server stalls is unknown."""
    fewest = CARRYING_SHARE * parts.shape[-2] * parts.shape[-1]
    return np.asarray(_carriers(parts) >= np.clip(fewest, FEWEST_CARRYING_BATCHES, ENOUGH_CARRYING_BATCHES))


def _correlated(parts: FloatArray) -> FloatArray:
    """Return the variance of the sum of the batches' parts (shape (..., R, B)); successive parts correlate."""
    replicates, count = parts.shape[-2:]
    total = replicates * count
    variance = (parts**2).sum((-2, -1)) / (total - 1)  # variance of one part
    product = (parts[..., 1:] * parts[..., :-1]).sum((-2, -1)) / (replicates * (count - 1))
    rho = product / np.maximum(variance, np.finfo(float).tiny)
    biased = (1 + 3 * rho) / count  # too low by as much on average (Kendall, Biometrika 41, 1954)
    rho = np.clip(np.where(rho > CERTAIN_CORRELATION / np.sqrt(total), rho + biased, rho), 0, 0.95)[..., None]
    lags = np.arange(1, count)
    factor = 1 + 2 * ((1 - lags / count) * rho**lags).sum(-1)
    return np.asarray(variance * total * factor, np.float64)


def _at_least(
    half: FloatArray, parts: FloatArray, launches: Sequence[int] | None, doubtful: NDArray[np.bool_] | bool
) -> tuple[FloatArray, FloatArray]:
    """Return half the intervals for these launches and for a new launch, widened to the differences between replicates
    and between launches.

    Args:
        half: half the interval from the batches. Shape (...).
        parts: each replicate's part of the value's deviation; they add up to 0. Shape (..., R).
        launches: launch of each replicate; None: all are different.
        doubtful: whether replicates are trusted more than batches.
    """
    nothing = np.full_like(half, np.nan)
    count = parts.shape[-1]
    if count < FEWEST_REPLICATES:
        return nothing, nothing
    error = _error(parts)
    of_replicates = t(count - 1.0) * error
    normal = special.ndtri((1 + CONFIDENCE) / 2) * error
    half = half * TWO_MARGIN if count == 2 else half
    if count >= LAUNCHES_FOR_INTERVAL:  # replicates that refute the batches are all that is known
        normal = np.where(normal > half, of_replicates, normal)
    half = np.maximum(half, normal)
    if count >= ENOUGH:
        half = np.where(doubtful, np.maximum(half, of_replicates), half)
    members = _members(launches, count)
    if members.shape[-1] < 2:
        return half, nothing
    new = t(members.shape[-1] - 1.0) * _error(parts @ members) * NEW_LAUNCH_MARGIN
    return half, np.maximum(half, new)


def _error(parts: FloatArray) -> FloatArray:
    """Return the standard error of a sum from the independent parts of its deviation."""
    count = parts.shape[-1]
    return np.asarray(np.sqrt((parts**2).sum(-1) * count / (count - 1)))


def throughput(
    counts: FloatArray, sent: FloatArray, latency: FloatArray, launches: Sequence[int] | None = None
) -> Interval:
    """Return Σ counts / Σ durations of the replicates, with an interval from batches of successive completions.

    The residual of a batch is its count − throughput × its time (a ratio estimator: Cochran, Sampling Techniques, 3rd
    ed., §6.4). It is relative to the mean of the batches at the same position in the replicates, since all replicates
    start and drain. The interval is symmetric on the logarithm. `counts` has each request's tokens or 1, in order of
    sending, NaN after the last. `latency` is from send to end, in seconds. All three have the shape (..., R, n).
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
    ordered = np.sort(latency.reshape(*latency.shape[:-2], -1), -1)
    value, drain = total / seconds, _drain(sent, latency, ordered, lengths) * (replicates / seconds) ** 2
    variance, sound = np.zeros_like(value), np.ones(value.shape, np.bool_)
    for count in BATCHES[:2] if replicates >= FEWEST_REPLICATES else ():
        edges = lengths[..., None] * np.arange(count + 1) // count
        took, output = (np.diff(np.take_along_axis(each, edges, -1), axis=-1) for each in (times, sums))
        residual = (output - value[..., None, None] * took) / total[..., None, None]
        residual = residual - residual.mean(-2, keepdims=True)
        freedom = (replicates - 1) * count
        variance = np.fmax(variance, _correlated(residual) * (replicates * count - 1) / freedom)
        if count == BATCHES[0]:  # without the last, whose time is the drain's
            sound = _many_carry(residual[..., :-1]) | (lengths.min(-1) < FEWEST_IN_A_REPLICATE)
    variance = variance * _hidden_variance(lengths.mean(-1))
    half = t(max(replicates - 1.0, 1) * BATCHES[0]) * np.sqrt(np.fmax(variance, drain / replicates))
    parts = (sums[..., -1] - duration * value[..., None]) / total[..., None]
    halves = (np.where(sound, each, np.nan) for each in _at_least(half, parts, launches, False))
    n = lengths.sum(-1)
    usual = (_tail_index(ordered) >= LEAST_INDEX_OF_RATE) & ~_few_arrivals(sent, latency)
    usual &= (n >= FEWEST_IN_ALL) & (drain < LONGEST_DRAIN**2) & ~_rests_on_few(latency, n, seconds / replicates)
    enough = usual & (lengths.min(-1) >= BATCHES[0])
    figure = _relative(value, (np.where(enough, half, np.nan) for half in halves), n * 1.0)
    return _by_launches(figure, sums[..., -1] / duration, launches, usual & ~enough)


def _tail_index(ordered: FloatArray) -> FloatArray:
    """Return Hill's estimate of the tail index: the larger one of the longest 5% and 1% of the finite values.

    A power law has the same index in both (Hill, Annals of Statistics 3, 1975). A second mode of slow requests has a
    low one in at most one of them, and a lognormal's grows. `ordered` is ascending, of shape (..., n). Shape (...).
    """
    finite = np.isfinite(ordered).sum(-1)[..., None]
    places, largest = np.arange(ordered.shape[-1]), np.zeros(ordered.shape[:-1])
    for share in TAILS:
        count = np.minimum(np.maximum(np.ceil(share * finite), FEWEST_OF_A_TAIL), finite - 1).astype(np.int64)
        bound = np.take_along_axis(ordered, np.maximum(finite - count - 1, 0), -1)
        beyond = (places >= finite - count) & (places < finite)
        with np.errstate(invalid="ignore", divide="ignore"):
            index = count[..., 0] / np.log(np.where(beyond, ordered, bound) / bound).sum(-1)
        largest = np.fmax(largest, index)
    return largest


def _few_arrivals(sent: FloatArray, latency: FloatArray) -> NDArray[np.bool_]:
    """Return whether few gaps between arrivals make up their variance, so that the rate is chance. Shape (...).

    Users who send when an answer has ended are no arrivals: most of their requests find all others in flight.
    """
    n = np.isfinite(sent).sum(-1)
    flat = latency.reshape(*latency.shape[:-2], -1)
    moment = SOON_AFTER * _medians(flat, n.sum(-1))[..., None, None]
    order = np.argsort(np.concatenate([sent + latency - moment, sent], -1), -1, kind="stable")
    sends = order >= sent.shape[-1]
    in_flight = np.where(sends, np.cumsum(np.where(sends, 1, -1), -1), 0)
    most = in_flight.max(-1)
    users = (in_flight == most[..., None]).sum(-1) > (n - most) / 2
    gaps = np.diff(sent, axis=-1)
    mean = np.nansum(gaps, (-2, -1)) / np.maximum(np.isfinite(gaps).sum((-2, -1)), 1)
    carriers = _carriers(np.nan_to_num(gaps - mean[..., None, None]))
    return np.asarray(~users.all(-1) & (carriers < FEWEST_CARRIERS))


def _drain(sent: FloatArray, latency: FloatArray, ordered: FloatArray, lengths: NDArray[np.int64]) -> FloatArray:
    """Return the variance of the time from a replicate's last sending to its end, in s².

    The drain ends with the last of c requests in flight. Where slow requests occur is random, which a few replicates do
    not reveal. The remaining time of an answer in flight has the distribution ∫ (1 − F) / mean (renewal theory). F is
    the distribution of all latencies (`ordered`), c the mean number in flight at the last sending. Shape (...).
    """
    last = np.take_along_axis(sent, lengths[..., None] - 1, -1)
    flying = (sent + latency > last).sum((-2, -1)) / sent.shape[-2]
    n = lengths.sum(-1)[..., None]
    places = np.arange(ordered.shape[-1])
    ends = np.where(places < n, ordered, np.take_along_axis(ordered, n - 1, -1))
    steps = np.diff(ends, axis=-1, prepend=0.0)
    remaining = np.clip(1 - places / n, 0, 1) * steps
    finished = np.clip(np.cumsum(remaining, -1) / remaining.sum(-1, keepdims=True), 0, 1)
    c = np.maximum(flying, 1.0)[..., None]
    # The ended share grows linearly within a step, and F^c for the slowest of c is integrated over the step exactly,
    # since with similar latencies the first step is nearly all of the time.
    before = np.concatenate([np.zeros_like(finished[..., :1]), finished[..., :-1]], -1)
    growth = np.maximum(finished - before, SMALLEST_GROWTH)
    shares, squares = ((finished**power - before**power) / (power * growth) for power in (c + 1, c + 2))
    later = (finished ** (c + 1) - squares) / ((c + 1) * growth)  # the part in a step's later half
    steep = finished - before > SMALLEST_GROWTH
    shares, later = (np.where(steep, *pair) for pair in ((shares, finished**c), (later, finished**c / 2)))
    mean = (steps * (1 - shares)).sum(-1)
    square = 2 * (steps * ((ends - steps) * (1 - shares) + steps * (0.5 - later))).sum(-1)
    return np.asarray(np.maximum(square - mean**2, 0))


def over_replicates(
    values: FloatArray, point: NDArray[np.int64], launch: NDArray[np.int64], count: int, fewest: int = FEWEST_REPLICATES
) -> Interval:
    """Return the mean of one value per replicate, with Student's t intervals over replicates and over launches.

    If all values of a point are positive, the intervals are symmetric on the logarithm. They never go below zero.
    `values` holds all replicates of all `count` points; NaN is ignored. Fewer than `fewest` values give no interval for
    these launches.
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
    """Return a copy without intervals, or without the intervals of some points."""
    low, high, new_low, new_high = (np.where(where, np.nan, end) for end in figure[1:5])
    return Interval(
        figure.value, low, high, new_low, new_high, figure.effective_n, figure.by_launches & ~np.asarray(where)
    )


def _over(
    parts: FloatArray, point: NDArray[np.int64], launch: NDArray[np.int64], count: int
) -> tuple[FloatArray, FloatArray]:
    """Return half the intervals for these launches and a new launch, by Student's t over replicates and launches."""
    errors, n = _errors(parts, point, count)
    half = t(np.where(n >= FEWEST_REPLICATES, n - 1, np.nan)) * errors
    pairs, member = np.unique(np.stack([point, launch]), axis=1, return_inverse=True)
    of_launches = np.asarray(np.bincount(member.ravel(), parts, pairs.shape[1]), np.float64)
    errors, launches = _errors(of_launches, pairs[0], count)
    new = np.fmax(half, t(np.where(launches > 1, launches - 1, np.nan)) * errors)
    return half, np.where(launches > 1, new, np.nan)


def _errors(parts: FloatArray, point: NDArray[Any], count: int) -> tuple[FloatArray, FloatArray]:
    """Return `_error` of each point's parts, and the number of parts."""
    n = np.bincount(point, minlength=count).astype(np.float64)
    return np.asarray(np.sqrt(np.bincount(point, parts**2, count) * n / (n - 1)), np.float64), n


def _relative(value: FloatArray, halves: Iterable[FloatArray], effective_n: FloatArray) -> Interval:
    """Return an Interval whose half-widths on the logarithm are `halves`."""
    return _whole(value, (value * np.exp(sign * half) for half in halves for sign in (-1, 1)), effective_n)


def _whole(value: FloatArray, ends: Iterable[FloatArray], effective_n: FloatArray) -> Interval:
    """Return intervals, each with both ends or none. `ends` are for these launches, then for a new launch."""
    low, high, new_low, new_high = ends
    shown = np.isfinite(value)
    these, new = (shown & np.isfinite(begin) & np.isfinite(end) for begin, end in ((low, high), (new_low, new_high)))
    low, high = np.where(these, low, np.nan), np.where(these, high, np.nan)
    new_low, new_high = np.where(new, new_low, np.nan), np.where(new, new_high, np.nan)
    by_launches = np.zeros(np.shape(value), np.bool_)
    return Interval(np.where(shown, value, np.nan), low, high, new_low, new_high, effective_n, by_launches)


def of_share(figure: Interval, independent: FloatArray) -> Interval:
    """Return a share with Wilson's interval (1927) for `independent` requests; a new launch's is clipped to 0 and 1."""
    z2 = float(special.ndtri((1 + CONFIDENCE) / 2)) ** 2
    share, n = figure.value, np.where(independent > 0, independent, np.nan)
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = np.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    new_low, new_high = (np.clip(end, 0, 1) for end in (figure.new_low, figure.new_high))
    return Interval(share, middle - half, middle + half, new_low, new_high, n, np.zeros(share.shape, np.bool_))


def _linear(low: FloatArray, high: FloatArray, share: FloatArray, _count: NDArray[np.int64]) -> FloatArray:
    return low + share * (high - low)


def _between(
    ordered: FloatArray,
    place: FloatArray,
    n: NDArray[np.int64],
    rule: Callable[[FloatArray, FloatArray, FloatArray, NDArray[np.int64]], FloatArray] = _linear,
) -> FloatArray:
    """Return the value at a position (from 0) between n order statistics, by a rule; NaN outside. Shape (...).

    The result is infinite if the upper order statistic is infinite.
    """
    exists = (place >= 0) & (place <= n - 1)
    place = np.where(exists, place, 0.0)
    lower = np.floor(place + 1e-9)
    share = np.clip(place - lower, 0, 1)
    low, high = (
        np.take_along_axis(ordered, at.astype(np.int64)[..., None], -1)[..., 0] for at in (lower, lower + (share > 0))
    )
    with np.errstate(invalid="ignore"):
        return np.where(exists, np.where(np.isfinite(high), rule(low, high, share, n), high), np.nan)


def _middle_ranks(ordered: FloatArray) -> FloatArray:
    """Return the rank of each sorted value. Equal values get the mean of their ranks, so that ties show no trend."""
    places = np.broadcast_to(np.arange(ordered.shape[-1], dtype=np.float64), ordered.shape)
    equal = ordered[..., 1:] == ordered[..., :-1]
    if not equal.any():
        return places
    begins, ends = np.ones(ordered.shape, np.bool_), np.ones(ordered.shape, np.bool_)
    begins[..., 1:] = ends[..., :-1] = ~equal
    lowest = np.maximum.accumulate(np.where(begins, places, 0), -1)
    highest = np.minimum.accumulate(np.where(ends, places, np.inf)[..., ::-1], -1)[..., ::-1]
    return (lowest + highest) / 2
