"""Gaps between token arrivals for a ladder's steps: a trial's median, averaged over replicates."""

from functools import partial

from analysis.plotting.drawing import against_step

POSITION = 41
draw = partial(against_step, column="itl_p50", also="itl_p99")
