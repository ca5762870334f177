"""Keeps a run on disk: its paths, schemas, ledger, and its copy in an object store."""
