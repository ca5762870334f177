"""Cache hits (solid) and false hits (dashed): requests answered by the gateway, and those answered wrongly, of all."""

from functools import partial

from analysis.plotting.drawing import against_load

POSITION = 60
draw = partial(against_load, column="cache_hit_rate", also="false_hit_rate")
