"""Draws curves over an axis, in panels; figures say what is drawn."""
