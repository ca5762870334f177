"""Mean memory of a trial: of the GPU, or of the engine's processes without one; in thin dashes its peak."""

from functools import partial

from analysis.plotting.drawing import against_load

POSITION = 45
draw = partial(against_load, column="memory_mean_bytes", also="memory_peak_bytes")
