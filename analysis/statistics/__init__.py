"""Computes the figures of points with their intervals, and compares points: by ratio and by rank."""
