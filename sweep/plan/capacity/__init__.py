"""Capacity: whether a plan's points fit the memory of its hardware, and their least possible time on it."""
