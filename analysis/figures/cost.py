"""Cost per million output tokens: price per hour over output throughput."""

from analysis.plotting.drawing import curve

POSITION = 30
draw = curve("cost_per_million_tokens")
