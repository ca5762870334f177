"""Runs a plan: decides what starts next and what is retried, commits each row to the ledger, and reports progress."""
