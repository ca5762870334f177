"""Gaps between the arrivals of a ladder's steps: the median of a trial, averaged over replicates."""

from functools import partial

from analysis.plotting.drawing import of_a_ladder

POSITION = 41
draw = partial(of_a_ladder, column="itl_p50", also="itl_p99")
