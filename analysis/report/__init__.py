"""The report, its tables, and the summary in the terminal."""
