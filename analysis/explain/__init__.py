"""Attributes a gain: the share of each of an engine's settings in the total speed-up or saving.

`decomposition.explanations(run, layout)` is what `sweep explain` prints. In a factorial, where settings are off and on
in many combinations, it has each setting's Shapley share; in a ladder, the gain of each step, in its own order.
"""
