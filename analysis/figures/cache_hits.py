"""Cache hits and, in thin dashes, false hits: shares of requests answered by the gateway, rightly or wrongly."""

from functools import partial

from analysis.plotting.drawing import against_load

POSITION = 60
draw = partial(against_load, column="cache_hit_rate", also="false_hit_rate")
