"""Finds the cheapest or fastest configuration of each task in a run, its certainty, and the runner-up."""
