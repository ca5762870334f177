"""Total throughput of a ladder's steps: input and output tokens of successful requests over the duration."""

from functools import partial

from analysis.plotting.drawing import of_a_ladder

POSITION = 12
draw = partial(of_a_ladder, column="total_throughput")
