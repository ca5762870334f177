"""Runs deployments on nodes, through Ray or in this process, and quarantines nodes that fail."""
