"""One file per figure; `analysis.plotting.figure_files` finds them."""
