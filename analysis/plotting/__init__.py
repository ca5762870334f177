"""Draws curves over an axis, in panels. Each chart's module chooses what to draw."""
