"""Answers a run's question: the cheapest or fastest configuration of each task, its certainty, and the runner-up."""
