"""Finds the cheapest or fastest configuration of each task in a run, the runner-up, and how certain the lead is."""
