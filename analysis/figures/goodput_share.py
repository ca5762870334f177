"""Goodput share: requests that met every bound of `slo`, out of all measured requests, including failed requests."""

from analysis.plotting.drawing import curve

POSITION = 26
draw = curve("goodput_share")
