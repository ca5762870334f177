"""Duration of a ladder's steps, from the first send to the last completion of the same requests."""

from analysis.plotting.drawing import curve

POSITION = 13
draw = curve("duration", of_ladder=True)
