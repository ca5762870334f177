"""Request throughput of a ladder's steps: successful requests over the duration, drain included."""

from functools import partial

from analysis.plotting.drawing import of_a_ladder

POSITION = 11
draw = partial(of_a_ladder, column="request_throughput")
