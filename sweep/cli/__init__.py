"""The `sweep` command: its subcommands, the implementation of `sweep run`, help and shell completion."""
