"""Goodput share: requests that met every bound of `slo`, out of all measured requests, including failed requests."""

from functools import partial

from analysis.plotting.drawing import against_load

POSITION = 26
draw = partial(against_load, column="goodput_share")
