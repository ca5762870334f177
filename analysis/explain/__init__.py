"""Attributes a gain to settings: computes each engine setting's share of the total speed-up or saving.

`sweep explain` prints `decomposition.explanations(run, layout)`. For a factorial, where settings are switched off and
on in many combinations, it shows each setting's Shapley share. For a ladder it shows each step's gain, in order.
"""
