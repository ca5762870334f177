"""The cache of answers: which requests it may answer, from whose answer, and what is served and stored."""
