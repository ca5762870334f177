"""Prepares what an engine needs on a node: its environment, its sources, and weights in its format."""
