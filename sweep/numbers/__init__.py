"""Defines every measured quantity as a formula over the raw records of a trial."""
