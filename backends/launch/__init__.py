"""Launches an engine's process tree, watches it, and ends every one of its processes."""
