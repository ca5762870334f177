"""Duration of a ladder's steps, from the first request sent to the last completion; all steps get the same requests."""

from analysis.plotting.drawing import curve

POSITION = 13
draw = curve("duration", of_ladder=True)
