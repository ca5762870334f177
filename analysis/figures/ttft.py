"""Time to first token: the median of the requests of all replicates."""

from functools import partial

from analysis.plotting.drawing import against_load

POSITION = 20
draw = partial(against_load, column="ttft_p50", also="ttft_p99")
