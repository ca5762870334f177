"""Output throughput: tokens of successful requests divided by the duration, including the drain."""

from analysis.plotting.drawing import curve

POSITION = 10
draw = curve("output_throughput")
