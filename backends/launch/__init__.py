"""Launches an engine's process tree, watches it, and leaves nothing of it behind."""
