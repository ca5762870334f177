"""A trial's mean memory (of the GPU or, without a GPU, of the engine's processes), and its peak in thin dashes."""

from analysis.plotting.drawing import curve

POSITION = 45
draw = curve("memory_mean_bytes", also="memory_peak_bytes")
