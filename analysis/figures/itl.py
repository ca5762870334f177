"""Gaps between token arrivals for a ladder's steps: a trial's median, averaged over replicates."""

from analysis.plotting.drawing import curve

POSITION = 41
draw = curve("itl_p50", also="itl_p99", of_ladder=True)
