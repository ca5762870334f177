"""Runs a plan: packs deployments onto nodes, retries, commits rows, reports progress."""
