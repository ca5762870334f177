"""Launching an engine's process tree, watching it, and leaving none of its processes behind."""
