"""Runs a plan: what starts next, what is retried, each row committed to the ledger, and progress."""
