"""Computes weights: a weighted sum of the points' logarithms gives a knob's effect, for any measured combinations.

A row of weights gives one effect, a column is one measured combination of switched-on knobs, and the effect is weights
@ logarithms. A knob's Shapley value (1953) is its contribution, averaged over all orders in which the knobs can be
turned on. If the total is written as one term per set of knobs (Harsanyi's dividends), every knob gets an equal part of
each term that it is in. So a fraction of the combinations suffices if terms of many knobs are zero and the remaining
terms are not confounded. The half with an even number of knobs on frees every share from interactions of two knobs.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from analysis.statistics.intervals import FloatArray

Combination = frozenset[str]
FEWEST_ORDER = 2  # order of the terms that a fraction must separate, since knobs are rarely independent
SOLVED = 1e-8


def difference(measured: Sequence[Combination], after: Combination, before: Combination) -> FloatArray | None:
    """Return the weights for the change from one combination to another; None if either was not measured."""
    if after not in measured or before not in measured:
        return None
    weights = np.zeros(len(measured))
    weights[measured.index(after)] += 1
    weights[measured.index(before)] -= 1
    return weights


def shapley(measured: Sequence[Combination], knobs: Sequence[str]) -> tuple[FloatArray, int] | None:
    """Return the weights for the knobs' Shapley values, and the order of interactions up to which they are exact.

    The values always add up to the change from no knob to all knobs. None if these combinations do not suffice.
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
    """Return the weights for each pair's interaction, averaged over the other knobs. Confounded pairs share a group.

    An interaction is the joint contribution of two knobs minus the sum of their separate contributions. It needs a
    regular design: every knob is on in half of the combinations, whether another knob is on or off.
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


def interactions_alone(
    measured: Sequence[Combination], knobs: Sequence[str]
) -> list[tuple[list[tuple[str, str]], FloatArray]]:
    """Return the weights for each pair's interaction with all other knobs off, where that was measured."""
    groups: list[tuple[list[tuple[str, str]], FloatArray]] = []
    for pair in combinations(knobs, 2):
        both = difference(measured, frozenset(pair), frozenset(pair[:1]))
        alone = difference(measured, frozenset(pair[1:]), frozenset())
        if both is not None and alone is not None:
            groups.append(([pair], both - alone))
    return groups
