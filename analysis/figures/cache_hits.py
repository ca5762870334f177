"""Cache hits and, in thin dashes, false hits, as shares of all requests."""

from analysis.plotting.drawing import curve

POSITION = 60
draw = curve("cache_hit_rate", also="false_hit_rate")
