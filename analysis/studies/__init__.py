"""The published studies: their tables as data, with source and conditions, and their findings as checks on a run."""
