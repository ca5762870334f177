"""One file per figure; `analysis.plotting.plots` finds them."""
