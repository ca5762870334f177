"""Goodput: requests per second that met every bound of `slo`."""

from analysis.plotting.drawing import curve

POSITION = 25
draw = curve("goodput")
