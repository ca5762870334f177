"""Request throughput of a ladder's steps: successful requests divided by the duration, including the drain."""

from functools import partial

from analysis.plotting.drawing import against_step

POSITION = 11
draw = partial(against_step, column="request_throughput")
