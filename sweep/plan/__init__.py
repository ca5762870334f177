"""Composes an experiment into a plan of deployments and trials, and says what it will take."""
