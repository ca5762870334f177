"""Cache hits and, in thin dashes, false hits: shares of requests that the gateway answered, and answered wrongly."""

from functools import partial

from analysis.plotting.drawing import against_load

POSITION = 60
draw = partial(against_load, column="cache_hit_rate", also="false_hit_rate")
