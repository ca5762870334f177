"""The charts, one per file. `analysis.plotting.figure_files` finds them."""
