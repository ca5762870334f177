"""The weighted sums of points' logarithms that give a knob's worth, for whatever combinations were measured.

A row of weights answers one question, a column is a measured combination of knobs that are on; the answer is weights @
logarithms. Shapley's value (1953) of a knob is its addition, averaged over all orders in which the knobs can be turned
on. Written with the terms of the sum over sets of knobs (Harsanyi's dividends), it is the sum of each term divided
among its knobs. So a fraction of the combinations gives it too, if terms of many knobs are zero and the others are not
confounded. Half of all combinations, those with an even number of knobs on, gives every share free of interactions
between two.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from analysis.statistics.intervals import FloatArray

Combination = frozenset[str]
FEWEST_ORDER = 2  # of terms that a fraction must tell from the shares: knobs are seldom independent of each other
SOLVED = 1e-8


def difference(measured: Sequence[Combination], after: Combination, before: Combination) -> FloatArray | None:
    """The weights of the change from one combination to another; None if either was not measured."""
    if after not in measured or before not in measured:
        return None
    weights = np.zeros(len(measured))
    weights[measured.index(after)] += 1
    weights[measured.index(before)] -= 1
    return weights


def shapley(measured: Sequence[Combination], knobs: Sequence[str]) -> tuple[FloatArray, int] | None:
    """The weights of each knob's Shapley value, and the most knobs of a term that they are exact for.

    They add up to the change from none to all, whatever the terms are. None if these combinations do not suffice.
    """
    total = difference(measured, frozenset(knobs), frozenset())
    if total is None:
        return None
    for order in range(len(knobs), min(FEWEST_ORDER, len(knobs)) - 1, -1):
        terms = [frozenset(term) for size in range(order + 1) for term in combinations(knobs, size)]
        effects = np.array([[float(term <= combination) for term in terms] for combination in measured])
        values = np.array([[1 / len(term) if knob in term else 0.0 for term in terms] for knob in knobs])
        weights = values @ np.linalg.pinv(effects)
        if np.abs(weights @ effects - values).max() < SOLVED:
            return weights + (total - weights.sum(axis=0)) / len(knobs), order
    return None


def interactions(
    measured: Sequence[Combination], knobs: Sequence[str]
) -> list[tuple[list[tuple[str, str]], FloatArray]]:
    """The weights of each pair's interaction, averaged over the other knobs; confounded pairs together.

    An interaction is how much more two knobs add together than each alone. It needs a regular design, in which each
    knob is on in half of the combinations, whatever another is.
    """
    signs = {knob: np.array([1.0 if knob in combination else -1.0 for combination in measured]) for knob in knobs}
    pairs = {pair: signs[pair[0]] * signs[pair[1]] for pair in combinations(knobs, 2)}
    groups: list[tuple[list[tuple[str, str]], FloatArray]] = []
    for pair, column in pairs.items():
        alike = next((group for group, other in groups if (other == column).all()), None)
        if alike is not None:
            alike.append(pair)
        else:
            groups.append(([pair], column))
    design = np.array([np.ones(len(measured)), *signs.values(), *(column for _, column in groups)])
    if np.abs(design @ design.T - len(measured) * np.eye(len(design))).max() > SOLVED:
        return []
    return [(group, 4 * column / len(measured)) for group, column in groups]
