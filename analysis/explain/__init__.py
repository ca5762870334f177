"""Attributes the gain: the shares of an engine's settings in how much faster, or cheaper, all of them make it.

`decomposition.explanations(run, layout)` is what `sweep explain` prints: of a factorial, in which settings are off and
on in many combinations, each setting's Shapley share; of a ladder the gain of each step, in its own order.
"""
