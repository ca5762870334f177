"""`sweep rerun`: runs rows of a run again, using only the rows, and reports whether they were reproduced."""
