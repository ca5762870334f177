"""Cached input of later turns and, in thin dashes, what an infinite cache would have of it, as shares."""

from analysis.plotting.drawing import curve

POSITION = 24
draw = curve("later_turn_cached_share", also="later_turn_sent_hit_rate")
