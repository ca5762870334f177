"""A trial's mean memory (the GPU's, or the engine processes' if there is no GPU) and its peak in thin dashes."""

from analysis.plotting.drawing import curve

POSITION = 45
draw = curve("memory_mean_bytes", also="memory_peak_bytes")
