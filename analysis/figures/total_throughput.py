"""Total throughput of a ladder's steps: input and output tokens of successful requests divided by the duration."""

from functools import partial

from analysis.plotting.drawing import against_step

POSITION = 12
draw = partial(against_step, column="total_throughput")
