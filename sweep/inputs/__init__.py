"""Provides what a trial is made of: models and their weights, tokenizers, workloads, loads."""
