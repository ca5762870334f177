"""Time to first token: the median of the requests of all replicates."""

from analysis.plotting.drawing import curve

POSITION = 20
draw = curve("ttft_p50", also="ttft_p99")
