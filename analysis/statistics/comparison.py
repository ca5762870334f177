"""Comparisons of points that were asked the same: paired by replicate, and corrected for their number.

The logarithm of a figure is modelled as point + block + error (a randomised block design). A block is a replicate: in
it all engines get the same prompts and arrivals, at about the same time, so what is peculiar to a replicate cancels.
The error is the spread between launches, since each replicate is a launch of its own. Replicates that share a launch of
any compared engine are one block: its luck at that launch is not averaged out by measuring it again. A difference must
hold twice: with the variance of the error that is pooled over the points, corrected for the number of comparisons, and
with the two points' own variances (Welch 1938), since one engine may be less steady than the others.
"""

import math
from collections.abc import Sequence
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from analysis.statistics.intervals import CONFIDENCE, FloatArray, t

PointIndices = NDArray[np.int64]

WEIGHTLESS = 1e-12  # a weight that only rounding makes
PRIOR_FREEDOM = 0.3  # of the pooled variance in a point's own: as if each had so much of a launch more, of that spread


class Trials(NamedTuple):
    """The trials of a comparison, each with its point (an index from 0), replicate and launch."""

    point: PointIndices
    replicate: PointIndices
    launch: NDArray[np.object_]  # None: of an engine that was not launched here

    def select(self, chosen: NDArray[np.bool_] | PointIndices) -> "Trials":
        """Some of the trials."""
        return Trials(self.point[chosen], self.replicate[chosen], self.launch[chosen])


def comparison_blocks(trials: Trials) -> PointIndices:
    """The block of each trial: its replicate, joined with those that share one of the compared launches with it.

    Points that were all measured in the same launches differ by nothing that a launch changes: nothing is joined.
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
    """Point + block + error, by least squares, of the logarithms of one figure."""

    effects: FloatArray  # of the points; NaN without a value
    variance: float  # of the error; NaN if there is nothing left to estimate it from
    freedom: int  # of that estimate
    residuals: FloatArray  # points x blocks; NaN without a value
    shares: FloatArray  # points x blocks: the share of a point's values in each block
    blocks_matrix: FloatArray  # the blocks' part of the normal equations
    blocks_inverse: FloatArray  # its generalised inverse
    n: FloatArray  # blocks in which each point has a value

    def half_widths(self, above: PointIndices, below: PointIndices, *criticals: float) -> list[FloatArray]:
        """Half of the intervals of the differences between points, for each critical value of the pooled variance.

        NaN where points have no block in common, directly or through others.
        """
        contrast = self.shares[above] - self.shares[below]
        connected = np.abs(contrast @ self.blocks_inverse @ self.blocks_matrix - contrast).max(axis=1) < 1e-6
        variances, freedom = self.own_variances
        with np.errstate(invalid="ignore", divide="ignore"):
            factor = 1 / self.n[above] + 1 / self.n[below]
            factor += np.einsum("ij,jk,ik->i", contrast, self.blocks_inverse, contrast)
            both = variances[above] + variances[below]
            # Welch and Satterthwaite's freedom of the sum of two variances
            of_both = both**2 / (variances[above] ** 2 / freedom[above] + variances[below] ** 2 / freedom[below])
            of_both = np.where(both > 0, of_both, freedom[above])
            pooled, welch = np.sqrt(self.variance * factor), t(of_both) * np.sqrt(both / 2 * factor)
            return [np.where(connected, np.maximum(critical * pooled, welch), np.nan) for critical in criticals]

    def contrasts(self, weights: FloatArray, comparisons: int) -> tuple[FloatArray, FloatArray]:
        """Sums of the points' effects with these weights (a row a sum, of zero in all), and half of their intervals.

        The intervals hold for so many comparisons at once, by the wider of both variances as in `half_widths`.
        """
        relevant = (np.abs(weights) > WEIGHTLESS).any(axis=0)
        weights, n = weights[:, relevant], self.n[relevant]
        blocks = weights @ self.shares[relevant]
        connected = np.abs(blocks @ self.blocks_inverse @ self.blocks_matrix - blocks).max(axis=1, initial=0.0) < 1e-6
        variances, freedom = (values[relevant] for values in self.own_variances)
        with np.errstate(invalid="ignore", divide="ignore"):
            factor = (weights**2 / n).sum(axis=1) + np.einsum("ij,jk,ik->i", blocks, self.blocks_inverse, blocks)
            squares = weights**2 * variances
            of_own = squares.sum(axis=1) ** 2 / (squares**2 / freedom).sum(axis=1)  # Welch and Satterthwaite
            own_variance = squares.sum(axis=1) / (weights**2).sum(axis=1)
            of_own = np.where(own_variance > 0, of_own, self.freedom)
            pooled = _sidak(comparisons, self.freedom) * np.sqrt(self.variance * factor)
            half = np.maximum(pooled, t(of_own) * np.sqrt(own_variance * factor))
        return weights @ self.effects[relevant], np.where(connected, half, np.nan)

    @property
    def own_variances(self) -> tuple[FloatArray, FloatArray]:
        """The variance of the error of each point, with a little of the pooled one, and its freedom.

        Of two points the residuals are each other's, and only the variance of their difference can be known.
        """
        present = np.isfinite(self.residuals)
        if (self.n > 0).sum() <= 2:
            return np.full(len(self.n), self.variance), np.full(len(self.n), float(self.freedom))
        in_block = present.sum(axis=0)
        freedom = self.n - 1 + PRIOR_FREEDOM
        with np.errstate(invalid="ignore", divide="ignore"):
            # The blocks' effects take away 1 / points of each residual's variance
            squares = np.where(present, self.residuals**2 * in_block / np.maximum(in_block - 1, 1), 0).sum(axis=1)
            return (squares + PRIOR_FREEDOM * self.variance) / freedom, freedom


def fit(values: FloatArray, trials: Trials, points: int) -> BlockModel:
    """Fit the model to a figure of some trials; those without a positive value are left out.

    Several trials of a point in one block count as one: their mean.
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
    # One block leaves nothing to estimate: most points of a plan without replicates.
    inverse = np.linalg.pinv(matrix, hermitian=True) if size > 1 else np.zeros_like(matrix)
    means = (logs * shares).sum(axis=1)
    block_effects = inverse @ (logs - present * means[:, None]).sum(axis=0)
    effects = np.where(n > 0, means - shares @ block_effects, np.nan)
    residuals = np.where(counts > 0, logs - effects[:, None] - block_effects, np.nan)
    freedom = int(present.sum() - (n > 0).sum() - (np.linalg.matrix_rank(matrix, hermitian=True) if size > 1 else 0))
    variance = float(np.nansum(residuals**2) / freedom) if freedom > 0 else math.nan
    return BlockModel(effects, variance, freedom, residuals, shares, matrix, inverse, n)


def differences(
    model: BlockModel, above: Sequence[int], below: Sequence[int], *comparisons: float
) -> tuple[FloatArray, ...]:
    """The differences between these pairs of points, and half of their intervals, which hold for all pairs at once.

    Also half of those that hold for as many `comparisons`. By Sidak's inequality (1967): with m pairs each interval is
    Student's t at 0.95^(1/m). Points that have no block in common, directly or through others, are not compared.
    """
    first, second = np.asarray(above, np.int64), np.asarray(below, np.int64)
    criticals = (_sidak(count, model.freedom) for count in (len(first), *comparisons))
    return model.effects[first] - model.effects[second], *model.half_widths(first, second, *criticals)


def comparisons_with_best(points: int, choices: int) -> float:
    """The comparisons that count in a test of the best point, where each is the best of several choices.

    With p the chance of each comparison, a point with L choices is named falsely with Lp at most. Of two equal points
    that are ahead of all others one is: with p = 5 % / (points - 1) / (mean of L) / 2 that is 5 % at most (Bonferroni).
    """
    return max(1.0, (points - 1) * max(choices, points) / max(1, points))


def indistinguishable(
    model: BlockModel, best: int, better: Literal["higher", "lower"], choices: int = 0
) -> NDArray[np.bool_]:
    """The points not told apart from the one with the best figure; none of them if it is the winner.

    It is the winner if the intervals of all differences from it leave out 0 (`differences`). Else the points are told
    apart from it by intervals that hold for all pairs at once: Tukey's (1953) with Kramer's extension (1956). `choices`
    are those of all points together, if a point is the best of several, which makes it look better than it is.
    """
    points = np.arange(len(model.n))
    lead = (model.effects[best] - model.effects) * (1 if better == "higher" else -1)
    rivals, count = (model.n > 0) & (points != best), int((model.n > 0).sum())

    def leads(critical: float) -> NDArray[np.bool_]:
        return np.asarray(lead > model.half_widths(points, np.full_like(points, best), critical)[0], np.bool_)

    if leads(_sidak(comparisons_with_best(count, choices), model.freedom))[rivals].all():
        return np.zeros(len(points), np.bool_)
    apart = leads(_studentized_range(max(count, choices), model.freedom) / math.sqrt(2))
    return np.asarray(rivals & ~apart, np.bool_)


@cache
def _sidak(comparisons: float, freedom: int) -> float:
    if freedom < 1:
        return math.nan
    return float(special.stdtrit(freedom, (1 + CONFIDENCE ** (1 / comparisons)) / 2))


@cache
def _studentized_range(points: int, freedom: int) -> float:
    """The quantile of the range of so many means over their standard error."""
    if freedom < 1 or points < 2:
        return math.nan
    if points == 2:
        return float(special.stdtrit(freedom, (1 + CONFIDENCE) / 2)) * float(np.sqrt(2))
    from scipy import stats  # takes as long to import as all the rest

    return float(stats.studentized_range.ppf(CONFIDENCE, points, freedom))
