"""Runs a plan: what starts next, what is tried again, each row committed to the ledger, and progress."""
