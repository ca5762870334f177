"""Cache hits and, in thin dashes, false hits: shares of requests answered by the gateway, rightly or wrongly."""

from analysis.plotting.drawing import curve

POSITION = 60
draw = curve("cache_hit_rate", also="false_hit_rate")
