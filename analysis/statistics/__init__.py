"""Computes points' values with their intervals, and compares points by ratio and by rank."""
