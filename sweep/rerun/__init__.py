"""Runs rows of a run again, from the rows alone, and says whether they were reproduced: `sweep rerun`."""
