"""Runs rows of a run again, from what they say of themselves, and says whether they were reproduced: `sweep rerun`."""
