"""Compares configurations across runs: a ratio with its interval for each, and a verdict that a script can act on.

`compare([side("results/a"), side("results/b")])` is what `sweep compare` prints: the first is the reference.
"""

from analysis.compare.conditions import Condition, condition, failures
from analysis.compare.output import FORMATS, text
from analysis.compare.sides import Side, side
from analysis.compare.verdicts import MARGIN, Comparison, Verdict, compare

__all__ = [
    "FORMATS",
    "MARGIN",
    "Comparison",
    "Condition",
    "Side",
    "Verdict",
    "compare",
    "condition",
    "failures",
    "side",
    "text",
]
