"""Stores a run on disk: its paths, schemas and ledger, and its copy in an object store."""
