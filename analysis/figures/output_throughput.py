"""Output throughput: tokens of successful requests over the duration, drain included."""

from functools import partial

from analysis.plotting.drawing import against_load

POSITION = 10
draw = partial(against_load, column="output_throughput")
