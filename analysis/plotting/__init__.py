"""Draws curves over an axis, in panels. Each figure's module chooses the content."""
