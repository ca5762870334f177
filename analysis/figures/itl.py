"""Gaps between token arrivals at a ladder's steps: the median of each trial, averaged over replicates."""

from analysis.plotting.drawing import curve

POSITION = 41
draw = curve("itl_p50", also="itl_p99", of_ladder=True)
