"""Prepares what an engine needs on a node: its environment, its sources, weights in its format."""
