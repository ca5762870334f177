"""Draws curves over an axis, in panels; each figure's module chooses the content."""
