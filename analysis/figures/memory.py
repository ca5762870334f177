"""A trial's mean memory (of the GPU or, without a GPU, of the engine's processes), and its peak in thin dashes."""

from functools import partial

from analysis.plotting.drawing import against_load

POSITION = 45
draw = partial(against_load, column="memory_mean_bytes", also="memory_peak_bytes")
