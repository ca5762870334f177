"""Time per output token after the first: the median of the requests of all replicates."""

from functools import partial

from analysis.plotting.drawing import against_load

POSITION = 40
draw = partial(against_load, column="tpot_p50", also="tpot_p99")
