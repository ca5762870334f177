"""Computes points' values with their intervals, and compares points: their ratios and their ranks."""
