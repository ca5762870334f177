"""Capacity: whether a plan's points fit the memory of its hardware, and the least time that they can take on it."""
