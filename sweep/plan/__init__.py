"""Turns an experiment into a plan of deployments and trials, and estimates its duration and cost."""
