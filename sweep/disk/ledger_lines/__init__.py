"""The lines of a ledger and of other files of a run: their checksums, the texts that rows share, their agreement."""
