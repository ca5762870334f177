"""Total throughput of a ladder's steps: input and output tokens of successful requests divided by the duration."""

from analysis.plotting.drawing import curve

POSITION = 12
draw = curve("total_throughput", of_ladder=True)
