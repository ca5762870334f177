"""Compares points at one task and load: paired by replicate, and corrected for the number of comparisons.

A quantity's logarithm is fitted as point + block + error (a randomised block design). A block is a replicate. Within it
all engines get the same prompts and arrivals at about the same time, so a replicate's peculiarities cancel. The error
is the spread between launches, since each replicate is launched separately. Replicates that share a launch of any
compared engine form one block, since measuring again does not average out the launch's random effect. A difference is
accepted only if it passes two tests. One has the error variance pooled over the points, and is corrected for the number
of comparisons. The other has each point's own variance (Welch 1938), since one engine may vary more than others.
"""

import math
from collections.abc import Sequence
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import special

from analysis.statistics.intervals import CONFIDENCE, FloatArray, t
from analysis.statistics.power import Error

Positions = NDArray[np.int64]  # positions of rows or points

MARGIN = 0.03  # default; a smaller difference is a tie
WEIGHTLESS = 1e-12  # a weight this small is a rounding error
PRIOR_FREEDOM = 0.3  # weight of the pooled variance in a point's own variance, as a number of launches


class Trials(NamedTuple):
    """The trials of a comparison, each with its point (an index from 0), replicate and launch."""

    point: Positions
    replicate: Positions
    launch: NDArray[np.object_]  # None: sweep did not launch the engine

    def select(self, chosen: NDArray[np.bool_] | Positions) -> "Trials":
        """Return the chosen trials."""
        return Trials(self.point[chosen], self.replicate[chosen], self.launch[chosen])


def trials_of(rows: pd.DataFrame, point: Positions) -> Trials:
    """Return the trials in these rows. A missing replicate is treated as the first."""
    launch = rows["launch"].astype(object)
    replicate = rows["replicate"].fillna(0).to_numpy(np.int64)
    return Trials(point, replicate, launch.where(launch.notna(), None).to_numpy(object))


def comparison_blocks(trials: Trials) -> Positions:
    """Return each trial's block: its replicate, joined with replicates that share a compared launch.

    If all points were measured in the same launches, the launches' effects cancel, so nothing is joined.
    """
    replicates, block = np.unique(trials.replicate, return_inverse=True)
    launched = np.array([launch is not None for launch in trials.launch], np.bool_)
    pairs = set(zip(trials.launch[launched], block[launched], strict=True))
    launches = {launch for launch, _ in pairs}
    launches_in = np.bincount([index for _, index in pairs], minlength=len(replicates))
    if len(pairs) == len(launches) or (launched.all() and (launches_in == 1).all()):
        return block
    label = np.arange(len(replicates))
    for launch in launches:
        joined = label[[index for other, index in pairs if other == launch]]
        label[np.isin(label, joined)] = joined.min()
    return label[block]


class BlockModel(NamedTuple):
    """A least-squares fit of point + block + error to the logarithms of one quantity."""

    effects: FloatArray  # of the points; NaN if a point has no value
    variance: float  # variance of the error; NaN if there are no degrees of freedom
    freedom: int  # degrees of freedom of that estimate
    own_variance: FloatArray  # error variance of each point; its degrees of freedom are below
    own_freedom: FloatArray
    shares: FloatArray  # points x blocks: share of a point's values in each block
    blocks_matrix: FloatArray  # the blocks' part of the normal equations
    blocks_inverse: FloatArray  # the generalised inverse of `blocks_matrix`
    n: FloatArray  # blocks in which each point has a value

    def contrasts(self, weights: FloatArray, critical: FloatArray | float) -> tuple[FloatArray, FloatArray]:
        """Return weighted sums of the points' effects and half their intervals. Each row of weights adds up to zero and
        gives one sum.

        The wider of two intervals is used: from the pooled variance at the critical value, or from the points'
        variances.
        """
        pooled, separate, freedom = self.errors(weights)
        measured = (np.abs(weights[:, self.n == 0]) < WEIGHTLESS).all(axis=1)
        sums = np.where(measured, weights @ np.nan_to_num(self.effects), np.nan)
        return sums, np.maximum(critical * pooled, t(freedom) * separate)

    def errors(self, weights: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return the sums' standard errors, from the pooled and from the points' own variances, and the latter's
        degrees of freedom. NaN if points have no value, or share no block, directly or through other points.
        """
        missing = (np.abs(weights[:, self.n == 0]) > WEIGHTLESS).any(axis=1)
        relevant = (np.abs(weights) > WEIGHTLESS).any(axis=0) & (self.n > 0)
        weights, n = weights[:, relevant], self.n[relevant]
        blocks = weights @ self.shares[relevant]
        connected = np.abs(blocks @ self.blocks_inverse @ self.blocks_matrix - blocks).max(axis=1, initial=0.0) < 1e-6
        variances, freedom = self.own_variance[relevant], self.own_freedom[relevant]
        with np.errstate(invalid="ignore", divide="ignore"):
            factor = (weights**2 / n).sum(axis=1) + np.einsum("ij,jk,ik->i", blocks, self.blocks_inverse, blocks)
            factor = np.where(connected & ~missing, factor, np.nan)
            squares = weights**2 * variances
            of_own = squares.sum(axis=1) ** 2 / (squares**2 / freedom).sum(axis=1)  # Welch and Satterthwaite
            own_variance = squares.sum(axis=1) / (weights**2).sum(axis=1)
            of_own = np.where(own_variance > 0, of_own, self.freedom)
            return np.sqrt(self.variance * factor), np.sqrt(own_variance * factor), of_own

    def pairs(self, above: Sequence[int] | Positions, below: Sequence[int] | Positions) -> FloatArray:
        """Return the weights for the differences between pairs of points."""
        unit = np.eye(len(self.n))
        return np.asarray(unit[np.asarray(above, np.int64)] - unit[np.asarray(below, np.int64)], np.float64)

    def sidak(self, comparisons: float) -> float:
        """Return the critical value for this many simultaneous comparisons (Sidak 1967): Student's t at 0.95^(1/m)."""
        return _sidak(max(1, comparisons), self.freedom)

    def tukey(self, points: float) -> float:
        """Return the critical value for all pairs of this many points (Tukey 1953, Kramer 1956)."""
        return _studentized_range(points, self.freedom) / math.sqrt(2)


def fit(values: FloatArray, trials: Trials, points: int) -> BlockModel:
    """Fit point + block + error to a quantity of these trials. Trials without a positive value are excluded.

    Several trials of a point in one block are replaced by their mean.
    """
    usable = np.isfinite(values) & (values > 0)
    trials = trials.select(usable)
    block = np.unique(comparison_blocks(trials), return_inverse=True)[1] if usable.any() else np.zeros(0, np.int64)
    size = max(1, int(block.max(initial=-1)) + 1)
    cell = trials.point * size + block
    counts = np.bincount(cell, minlength=points * size).reshape(points, size).astype(np.float64)
    sums = np.bincount(cell, np.log(values[usable]), minlength=points * size).astype(np.float64).reshape(points, size)
    present = (counts > 0).astype(np.float64)
    logs = np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)
    n = present.sum(axis=1)
    shares = np.divide(present, n[:, None], out=np.zeros_like(present), where=n[:, None] > 0)
    matrix = np.diag(present.sum(axis=0)) - present.T @ shares
    # A single block leaves nothing to estimate; most points of a plan without replicates have only one.
    inverse = np.linalg.pinv(matrix, hermitian=True) if size > 1 else np.zeros_like(matrix)
    means = (logs * shares).sum(axis=1)
    block_effects = inverse @ (logs - present * means[:, None]).sum(axis=0)
    effects = np.where(n > 0, means - shares @ block_effects, np.nan)
    residuals = np.where(counts > 0, logs - effects[:, None] - block_effects, np.nan)
    freedom = int(present.sum() - (n > 0).sum() - (np.linalg.matrix_rank(matrix, hermitian=True) if size > 1 else 0))
    variance = float(np.nansum(residuals**2) / freedom) if freedom > 0 else math.nan
    separate = _own_variances(residuals, n, variance, freedom)
    return BlockModel(effects, variance, freedom, *separate, shares, matrix, inverse, n)


def _own_variances(
    residuals: FloatArray, n: FloatArray, variance: float, freedom: int
) -> tuple[FloatArray, FloatArray]:
    """Return each point's error variance, mixed with a little of the pooled variance, and its degrees of freedom.

    The residuals of just two points mirror each other, so only the variance of their difference can be estimated.
    """
    if (n > 0).sum() <= 2:
        return np.full(len(n), variance), np.full(len(n), float(freedom))
    present = np.isfinite(residuals)
    in_block, own_freedom = present.sum(axis=0), n - 1 + PRIOR_FREEDOM
    with np.errstate(invalid="ignore", divide="ignore"):
        # Estimating the blocks' effects takes away 1 / points of each residual's variance
        squares = np.where(present, residuals**2 * in_block / np.maximum(in_block - 1, 1), 0).sum(axis=1)
        return (squares + PRIOR_FREEDOM * variance) / own_freedom, own_freedom


def comparisons_with_best(points: int, choices: int) -> float:
    """Return the number of comparisons in a test of the best point if each point is the best of several choices.

    If each comparison has probability p, a point with L choices is falsely named with probability at most Lp. Of two
    equal points ahead of all other points, one may be falsely named. If p = 5% / (points - 1) / (mean of L) / 2, this
    happens at most 5% of the time (Bonferroni).
    """
    return max(1.0, (points - 1) * max(choices, points) / max(1, points))


class Contest(NamedTuple):
    """Points at one task and load, compared by one quantity. Each ratio of two points has one interval and one verdict.

    The intervals hold for all pairs at once (Tukey). A point wins if its differences from all other points exceed
    Sidak's intervals, which cover only these comparisons. Then its ratios have the intervals of that test.
    """

    model: BlockModel
    sign: int = 0  # 1: higher is better, -1: lower is better, 0: neither
    best: int | None = None  # None if neither direction is better, or there is only one point
    won: bool = False
    choices: int = 0  # number of choices over all points, if a point is the best of several

    def gains(self, weights: FloatArray, comparisons: int = 1) -> FloatArray:
        """Return these weighted sums of logarithms as factors, with the ends of their intervals. Shape (3, sums).

        A sum that is a ratio of two points has the ratio's interval. Other intervals hold for `comparisons` at once.
        """
        is_ratio = (np.abs(weights) > WEIGHTLESS).sum(axis=1) == 2
        is_ratio &= (np.abs(weights).max(axis=1) - 1 < WEIGHTLESS) & (np.abs(weights.sum(axis=1)) < WEIGHTLESS)
        of_best = np.abs(weights[:, self.best]) > 0.5 if self.won else np.zeros(len(weights), np.bool_)
        count, critical = int((self.model.n > 0).sum()), np.full(len(weights), self.model.sidak(comparisons))
        if (is_ratio & of_best).any():
            critical[is_ratio & of_best] = self.model.sidak(self.compared)
        if (is_ratio & ~of_best).any():
            critical[is_ratio & ~of_best] = self.model.tukey(max(count, self.choices))
        sums, half = self.model.contrasts(weights, critical)
        return np.asarray(np.exp([sums, sums - half, sums + half]), np.float64)

    @property
    def compared(self) -> float:
        """The number of comparisons made in a test of the best point, or of any other single point."""
        return comparisons_with_best(int((self.model.n > 0).sum()), self.choices)

    def ratios(self, above: Sequence[int] | Positions, below: Sequence[int] | Positions) -> FloatArray:
        """Return the ratios of pairs of points and the ends of their intervals. Shape (3, pairs)."""
        return self.gains(self.model.pairs(above, below))

    def error(self, above: int, below: int) -> Error:
        """Return the standard error of a pair's difference, from the pooled variance."""
        error = float(self.model.errors(self.model.pairs([above], [below]))[0][0])
        return Error(error, float(self.model.freedom), int(min(self.model.n[above], self.model.n[below])))

    def tied(self, point: int) -> NDArray[np.bool_]:
        """Return a mask of the points that are not significantly worse than this point."""
        points = np.arange(len(self.model.n))
        rivals = points[points != point]
        _, low, high = self.ratios(rivals, np.full_like(rivals, point))
        tied = np.zeros(len(points), np.bool_)
        tied[rivals] = (self.model.n[rivals] > 0) & ~(high < 1 if self.sign > 0 else low > 1)
        return tied


def contest(
    model: BlockModel, better: Literal["higher", "lower"] | None, choices: int = 0, best: int | None = None
) -> Contest:
    """Return the contest of a fit's points. The best has the highest or lowest effect, unless `best` is given.

    `choices` is the number of choices over all points, since a point that is the best of several looks better than it
    is.
    """
    count, sign = int((model.n > 0).sum()), -1 if better == "lower" else 1
    if better is None or count < 2:
        return Contest(model)
    best = int(np.nanargmax(sign * model.effects)) if best is None else best
    return Contest(model, sign, best, bool(leads(model, sign, best, choices).certain.all()), choices)


class Leads(NamedTuple):
    """The best point's leads over its rivals, in a test of all of them at once."""

    rivals: Positions
    certain: NDArray[np.bool_]
    ratios: FloatArray  # rival / best, with the ends of the test's intervals. Shape (3, rivals)


def leads(model: BlockModel, sign: int, best: int, choices: int = 0) -> Leads:
    """Test the best point against every rival with a value. `choices`: as for `contest`."""
    count = int((model.n > 0).sum())
    rivals = np.flatnonzero((model.n > 0) & (np.arange(len(model.n)) != best))
    pairs = model.pairs(rivals, np.full_like(rivals, best))
    difference, half = model.contrasts(pairs, model.sidak(comparisons_with_best(count, choices)))
    ratios = np.exp([difference, difference - half, difference + half])
    return Leads(rivals, -sign * difference > half, np.asarray(ratios, np.float64))


@cache
def _sidak(comparisons: float, freedom: int) -> float:
    if freedom < 1:
        return math.nan
    return float(special.stdtrit(freedom, (1 + CONFIDENCE ** (1 / comparisons)) / 2))


@cache
def _studentized_range(points: float, freedom: int) -> float:
    """Return the quantile of the range of this many means divided by their standard error, to four digits.

    It equals scipy's, but importing scipy's distributions would take as long as all other imports.
    """
    if freedom < 1 or points < 2:
        return math.nan
    if points == 2:
        return float(special.stdtrit(freedom, (1 + CONFIDENCE) / 2)) * math.sqrt(2)
    error = np.sqrt(special.chdtri(freedom, (np.arange(512) + 0.5) / 512) / freedom)  # relative to the true error
    z, step = np.linspace(-8, 8, 161, retstep=True)
    density = points * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) * step

    def probability(span: float) -> float:
        inside = special.ndtr(z) - special.ndtr(z - span * error[:, None])
        return float((inside ** (points - 1) @ density).mean())

    low, high = 0.0, 4.0
    while probability(high) < CONFIDENCE:
        low, high = high, 2 * high
    while high - low > 1e-5 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if probability(middle) < CONFIDENCE else (low, middle)
    return high


def positions(point: Positions, points: int) -> list[Positions]:
    order = np.argsort(point, kind="stable")
    return np.split(order, np.searchsorted(point[order], np.arange(points)))[1:]
