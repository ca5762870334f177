"""Compares configurations across runs: each gets a ratio with its interval, and a verdict for scripts.

`sweep compare` prints `comparisons([side("results/a"), side("results/b")])`. The first side is the reference.
"""

from analysis.compare.capacities import capacity_ratios, with_capacities
from analysis.compare.conditions import Condition, condition, failures, unjudged
from analysis.compare.noise import noise_of
from analysis.compare.output import comparison_output
from analysis.compare.sides import Side, side, sides_of_one
from analysis.compare.verdicts import Finding, PointComparison, comparisons
from analysis.statistics.comparison import MARGIN

__all__ = [
    "MARGIN",
    "Condition",
    "Finding",
    "PointComparison",
    "Side",
    "capacity_ratios",
    "comparison_output",
    "comparisons",
    "condition",
    "failures",
    "noise_of",
    "side",
    "sides_of_one",
    "unjudged",
    "with_capacities",
]
