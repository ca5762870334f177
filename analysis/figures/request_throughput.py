"""Request throughput of a ladder's steps: successful requests divided by the duration, including the drain."""

from analysis.plotting.drawing import curve

POSITION = 11
draw = curve("request_throughput", of_ladder=True)
