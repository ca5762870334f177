"""Runs one deployment on one node: prepares and launches its engine, measures its trials, and judges them."""
