"""Goodput: requests per second that met every bound of `slo`."""

from functools import partial

from analysis.plotting.drawing import against_load

POSITION = 25
draw = partial(against_load, column="goodput")
