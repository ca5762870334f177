"""Time per output token after the first: the median of the requests of all replicates."""

from analysis.plotting.drawing import curve

POSITION = 40
draw = curve("tpot_p50", also="tpot_p99")
