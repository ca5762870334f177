"""The `sweep` package: commands, planning, running, measuring and storing."""
