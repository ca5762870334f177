"""Cost per million output tokens: price per hour over output throughput."""

from functools import partial

from analysis.plotting.drawing import against_load

POSITION = 30
draw = partial(against_load, column="cost_per_million_tokens")
