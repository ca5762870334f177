"""Cache hits and, in thin dashes, false hits: shares of requests that the gateway answered, and answered wrongly."""

from analysis.plotting.drawing import curve

POSITION = 60
draw = curve("cache_hit_rate", also="false_hit_rate")
