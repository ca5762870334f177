"""The `sweep` command: its subcommands, the sweep that `sweep run` runs, help and shell completion."""
