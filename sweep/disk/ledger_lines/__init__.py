"""The lines of a ledger and of a run's other files: their checksums, shared texts, and consistency."""
