"""Answers what a run was made for: the cheapest or fastest configuration of each task, how sure, and the runner-up."""
