"""Defines every number: formulas over the raw records of a trial."""
