"""Runs one deployment on one node: prepares and launches its engine, measures trials, decides their outcomes."""
