"""Computes points' figures with their intervals, and compares points by ratio and by rank."""
