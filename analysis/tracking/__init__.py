"""Passes rows and telemetry to experiment trackers, in a process that can never fail a sweep."""
