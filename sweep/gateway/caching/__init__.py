"""The cache of answers: which answers are stored, and which requests they may be served to."""
