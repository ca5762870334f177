"""Prepares a node for an engine: its environment, its sources, and weights in its format."""
