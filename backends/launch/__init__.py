"""Launches an engine's process tree, watches it, and leaves none of its processes behind."""
