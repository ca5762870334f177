"""The cache of answers: which requests may be answered from it, by whose answer, and what is served and kept."""
