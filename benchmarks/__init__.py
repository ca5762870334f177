"""Programs that measure this project itself, and write the tables of docs/measurements."""
