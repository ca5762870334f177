"""Intervals of shares and means over the tokens of several texts. Texts are the sample: tokens in a text are alike."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sweep.numbers.chunks import Floats

COVERAGE = 0.95


class Bounded(NamedTuple):
    """An estimate with its 95% interval, whose ends are infinite if there is only one text."""

    value: float
    low: float
    high: float


def share(hits: Sequence[int], sizes: Sequence[int]) -> Bounded:
    """Return the share of hits, `hits[i]` of `sizes[i]` in text i, with Wilson's interval for the effective size.

    The effective size is the number of tokens, divided by the ratio of the variance between texts to the variance of
    independent tokens.
    """
    counts, totals = np.asarray(hits, float), np.asarray(sizes, float)
    total = totals.sum()
    value = float(counts.sum() / total)
    independent = value * (1 - value) / total
    between = _variance(counts - totals * value) / total**2
    effective = float(total / max(1.0, between / independent) if independent > 0 else total)
    z = _quantile(len(counts)) if len(counts) > 1 else math.inf
    if math.isinf(z):
        return Bounded(value, 0.0, 1.0)
    scale = 1 + z**2 / effective
    centre = (value + z**2 / (2 * effective)) / scale
    half = z * math.sqrt(value * (1 - value) / effective + z**2 / (4 * effective**2)) / scale
    return Bounded(value, max(0.0, min(value, centre - half)), min(1.0, max(value, centre + half)))


def ratio_of_likelihoods(texts: Sequence[Sequence[float]], baseline: Sequence[Sequence[float]]) -> Bounded:
    """Return exp of the mean log-probability difference, paired by token, with Student's t interval over texts."""
    pairs = zip(texts, baseline, strict=True)
    differences = [np.asarray(a, float) - np.asarray(b, float) for a, b in pairs]
    total = sum(map(len, differences))
    mean = float(sum(each.sum() for each in differences) / total)
    deviations = np.array([each.sum() - len(each) * mean for each in differences])
    half = _quantile(len(texts)) * math.sqrt(_variance(deviations)) / total if len(texts) > 1 else math.inf
    return Bounded(math.exp(mean), math.exp(mean - half), math.exp(mean + half))


def _variance(deviations: Floats) -> float:
    """Return the variance of the sum over texts, from the deviation of each text."""
    return float((deviations**2).sum() * len(deviations) / max(1, len(deviations) - 1))


def _quantile(texts: int) -> float:
    from scipy import special  # imported here, since scipy takes a third of a task's import time

    return float(special.stdtrit(texts - 1, 0.5 + COVERAGE / 2))
