"""Runs a plan: starts launches, retries failed trials, commits each row to the ledger, and reports progress."""
