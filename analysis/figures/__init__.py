"""One file per figure; `analysis.plots` finds them."""
