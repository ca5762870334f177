"""Attributes a gain to settings: computes each engine setting's share of the total speed-up or saving.

`sweep explain` prints `decomposition.explanations(run, layout)`. In a factorial, where settings are off and on in many
combinations, it has each setting's Shapley share. In a ladder it has each step's gain, in the ladder's order.
"""
