"""Shows the progress of a run: its live lines, its totals and status on disk, and the time left."""
