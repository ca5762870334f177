"""The flags, routes and messages of each engine, read from its own sources by scripts/engine_tables.py."""
