"""Duration of a ladder's steps, from the first request sent to the last completion, for equal requests."""

from functools import partial

from analysis.plotting.drawing import against_step

POSITION = 13
draw = partial(against_step, column="duration")
