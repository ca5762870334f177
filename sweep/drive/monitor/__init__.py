"""Shows how far a run is: its live lines, its totals and status on disk, and how long the rest takes."""
