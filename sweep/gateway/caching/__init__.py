"""The cache of answers: which requests it may answer, with which stored answer, and what is stored and served."""
