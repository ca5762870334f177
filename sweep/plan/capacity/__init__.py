"""Capacity: whether the points of a plan fit in the memory of its hardware, and their minimum duration."""
