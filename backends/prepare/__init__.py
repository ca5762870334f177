"""Prepares an engine's needs on a node: its environment, its sources, weights in its format."""
