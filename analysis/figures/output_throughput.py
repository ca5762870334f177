"""Output throughput: tokens of successful requests divided by the duration, including the drain."""

from functools import partial

from analysis.plotting.drawing import against_load

POSITION = 10
draw = partial(against_load, column="output_throughput")
