"""Runs rows of a run again, using only the rows, and says whether they were reproduced: `sweep rerun`."""
