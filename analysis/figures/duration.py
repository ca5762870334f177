"""Duration of a ladder's steps: from the first send to the last completion of the same requests."""

from functools import partial

from analysis.plotting.drawing import of_a_ladder

POSITION = 13
draw = partial(of_a_ladder, column="duration")
